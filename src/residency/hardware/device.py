"""A device as numbers: an accelerator's memory, its dense rates by number format, and what of them steps reach."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from residency.errors import MachineError
from residency.hardware.figures import Figure

NumberFormat = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8", "int4"]
NUMBER_FORMATS: tuple[NumberFormat, ...] = ("fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8", "int4")
Status = Literal["shipped", "announced", "hypothetical"]
STATUSES: tuple[Status, ...] = ("shipped", "announced", "hypothetical")  # from what one can buy to what one cannot

# Where a device has no rate for a format, its numbers are widened first and computed with in the first of these it has.
_WIDER: Mapping[NumberFormat, tuple[NumberFormat, ...]] = {
    "fp4": ("fp8", "bf16", "fp16", "fp32"),
    "fp8": ("bf16", "fp16", "fp32"),
    "int4": ("int8", "bf16", "fp16", "fp32"),
    "int8": ("bf16", "fp16", "fp32"),
    "bf16": ("fp32",),
    "fp16": ("bf16", "fp32"),
    "tf32": ("fp32",),
    "fp32": (),
}


@dataclass(frozen=True, kw_only=True)
class Device:
    """Devices that are alike; every figure is of one of them.

    kind "unified": its memory is the host's RAM, and is not to be counted twice. "pim": it computes inside the memory,
    and `memory_bytes_per_second` is what its units read, not what leaves the chips.
    """

    name: str
    kind: Literal["cpu", "gpu", "unified", "pim"]
    count: int = 1
    listed_bytes: int  # as the data sheet says, in units of 2^30 bytes, as memory is made
    usable_bytes: int  # what the driver reports as its total, before any context
    memory_bytes_per_second: float
    operations_per_second: Mapping[str, float]  # dense, by NumberFormat; an addition and a multiplication are two
    cache_bytes: int | None = None  # the last level in front of the memory
    status: Status = "shipped"
    figures: Mapping[str, Figure] = field(default_factory=dict)  # by the names that assumed-device.toml explains
    sources: Mapping[str, str] = field(default_factory=dict)  # by the name of what they tell

    def figure(self, name: str) -> float:
        """The value of a figure; MachineError for a name that the device does not give."""
        if name not in self.figures:
            raise MachineError(f"the device {self.name!r} gives no {name!r}; it gives {', '.join(self.figures)}.")
        return self.figures[name].value

    def computing_format(self, wanted: NumberFormat) -> NumberFormat:
        """The format that numbers in `wanted` are computed with here: itself, or the nearest wider with a rate."""
        for each in (wanted, *_WIDER[wanted]):
            if each in self.operations_per_second:
                return each
        raise MachineError(
            f"the device {self.name!r} has no rate for {wanted} or anything wider; give it one for fp32."
        )

    def dense_operations_per_second(self, wanted: NumberFormat) -> float:
        """The listed dense rate of `computing_format(wanted)`."""
        return self.operations_per_second[self.computing_format(wanted)]
