"""A machine as numbers: processor, caches, tiers of memory, devices, links, and figures for the cost model."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from residency.errors import MachineError, UsageError
from residency.hardware.device import NUMBER_FORMATS, Device, Status
from residency.hardware.figures import Figure, assumed_device_figures, assumed_figures
from residency.hardware.toml import parse_toml, toml_text
from residency.records import from_data, to_data

MACHINE_VERSION = 1
MAX_DEVICES = 1024  # of one kind in one machine
TierKind = Literal["hbm", "ram", "cxl", "disk"]


@dataclass(frozen=True, kw_only=True)
class ThreadRate:
    """What a tier delivers to so many threads together that read the same bytes over and over."""

    threads: int
    bytes_per_second: float
    working_set_bytes: int | None = None  # how many bytes; None: more than any cache holds
    processor_share: float = 1.0  # of the time measured, how much the threads had a processor; less where others ran


@dataclass(frozen=True, kw_only=True)
class ReadShare:
    """The part of the read rate that products with matrices of a number format reach, as they also unpack."""

    working_set_bytes: int  # that are read over and over
    share: float


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A place where bytes live."""

    name: str  # "RAM", "disk"
    kind: TierKind
    capacity_bytes: int  # as the container allows, not as the host has
    available_bytes: int  # what was free when the machine was looked at
    read_rates: tuple[ThreadRate, ...]  # at least one, by rising thread count

    def read_bytes_per_second(self, threads: int, working_set_bytes: int | None = None) -> float:
        """The rate measured with the most threads that are at most `threads`; else that of the fewest.

        Of a working set between two that were measured, between their rates, by the logarithm of its bytes; without
        one, of the largest. A set that large caches partly hold is read faster than memory delivers.
        """
        counts = [rate.threads for rate in self.read_rates]
        chosen = max((count for count in counts if count <= threads), default=min(counts))
        rates = sorted(
            (rate.working_set_bytes or math.inf, rate.bytes_per_second)
            for rate in self.read_rates
            if rate.threads == chosen
        )
        return _between(rates, math.inf if working_set_bytes is None else working_set_bytes)


@dataclass(frozen=True, kw_only=True)
class Link:
    """A way between two tiers or devices, or among `joins` devices that are alike."""

    source: str  # the name of a tier or device
    target: str  # the same name where devices that are alike are joined with each other
    bytes_per_second: float  # in one direction, while the other is as busy
    latency_seconds: float
    kind: str = ""  # "PCIe 5.0 x16", "NVLink 4"
    joins: int = 2  # how many it joins at that rate for each
    is_coherent: bool = False  # either end reads the other's memory in place
    is_mesh: bool = False  # wires to each peer, not to a switch: among fewer devices, fewer wires are used

    def among(self, num_devices: int) -> "Link":
        """The link as so many of the devices that it joins have it."""
        if not self.is_mesh:
            return self
        return replace(self, bytes_per_second=self.bytes_per_second * (num_devices - 1) / (self.joins - 1))


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One level of the processor's caches."""

    level: int
    kind: Literal["data", "instruction", "unified"]
    num_bytes: int
    sharing_threads: int  # processors that have this cache in common


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine: a host with its tiers, and devices beside it or none. `figures` are by the names that assumed.toml
    explains.
    """

    name: str
    processor: str
    threads: int  # processors that the container allows
    cores: int  # of these, with distinct arithmetic units
    instruction_sets: tuple[str, ...]  # sorted, by the names that the operating system gives
    caches: tuple[Cache, ...]
    tiers: tuple[Tier, ...]  # the host's, nearest first
    links: tuple[Link, ...]
    figures: Mapping[str, Figure]
    measured_unix_seconds: int | None = None  # None: written down, not measured
    runtime_bytes: int | None = None  # interpreter and compiled code without a model; None: not measured yet
    read_shares: Mapping[str, tuple[ReadShare, ...]] = field(default_factory=dict)  # by number format, where measured
    devices: tuple[Device, ...] = ()
    status: Status = "shipped"
    price_per_hour: float | None = None  # in the user's own currency; None: not told
    sources: Mapping[str, str] = field(default_factory=dict)  # by what they tell of the host

    def tier(self, kind: TierKind) -> Tier:
        """The nearest tier of a kind; MachineError where the machine has none."""
        for tier in self.tiers:
            if tier.kind == kind:
                return tier
        raise MachineError(
            f"the machine {self.name!r} has no {kind} tier; describe one, or run residency probe --renew."
        )

    def figure(self, name: str) -> float:
        """The value of a figure; MachineError for a name that the machine does not give."""
        if name not in self.figures:
            raise MachineError(f"the machine {self.name!r} gives no {name!r}; run residency probe --renew.")
        return self.figures[name].value

    def read_efficiency(self, number_format: str, working_set_bytes: int) -> float:
        """The part of the memory's read rate at which matrices of a format are read, where a step reads so much."""
        shares = sorted((each.working_set_bytes, each.share) for each in self.read_shares.get(number_format, ()))
        return _between(shares, working_set_bytes) if shares else self.figure("read_efficiency")

    def compute_devices(self) -> tuple[Device, ...]:
        """What computes: the devices, or the host's processor as a device of kind "cpu" where there are none.

        The processor's rates are what its kernels reach (see assumed.toml), so its matrix_efficiency is 1.
        """
        return self.devices or (self._processor_device(),)

    def host_link(self, device: Device) -> Link | None:
        """The way between the host's memory and each of these devices; None where they share one memory."""
        if device.kind in ("cpu", "unified"):
            return None
        for link in self.links:
            if {link.source, link.target} == {self.tier("ram").name, device.name}:
                return link
        raise MachineError(f"the machine {self.name!r} says no link from its RAM to {device.name!r}; describe one.")

    def peer_link(self, device: Device, num_devices: int) -> Link:
        """The fastest way among `num_devices` of these devices; MachineError where nothing joins that many."""
        joining = [link for link in self.links if link.source == link.target == device.name]
        links = [link.among(num_devices) for link in joining if link.joins >= num_devices]
        if not links:
            raise MachineError(f"no link of the machine {self.name!r} joins {num_devices} of {device.name!r}.")
        return max(links, key=lambda link: link.bytes_per_second)

    def with_measured(self, **values: float) -> "Machine":
        """The same machine with these figures measured; MachineError for names that assumed.toml does not explain."""
        unknown = [name for name in values if name not in self.figures]
        if unknown:
            raise MachineError(f"{unknown[0]!r} is not a figure of a machine; there are {', '.join(self.figures)}.")
        measured = {name: Figure(value=value, origin="measured") for name, value in values.items()}
        return replace(self, figures={**self.figures, **measured})

    def to_json(self) -> str:
        """The machine as JSON that `from_json` reads back to an equal machine."""
        return json.dumps({"machine_version": MACHINE_VERSION, **to_data(self)}, indent=2) + "\n"

    def to_toml(self) -> str:
        """The machine as TOML that `from_toml` reads back to an equal machine."""
        return toml_text({"machine_version": MACHINE_VERSION, **to_data(self)})

    @staticmethod
    def from_json(text: str) -> "Machine":
        """The machine that `to_json` wrote. Anything else is a MachineError."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise MachineError("the machine's description is not JSON; run residency probe --renew.") from None
        return _machine(data, _KEPT)

    @staticmethod
    def from_toml(text: str, *, what: str = "the machine's description") -> "Machine":
        """The machine that a TOML text describes. Amounts may be written "24GiB"; figures left out are assumed.

        Other text is a MachineError, in which `what` names it.
        """
        try:
            data = parse_toml(text)
        except ValueError as error:
            raise MachineError(f"{what} is not TOML ({error}); compare it with residency machines --toml.") from None
        except UsageError as error:
            raise MachineError(f"{what} cannot be used: {error}") from None
        source = _Text(what, "compare it with residency machines --toml")
        machine = _machine(_with_assumed(data), source)
        for device in machine.devices:
            unknown = sorted(set(device.figures) - set(assumed_device_figures(device.kind)))
            if unknown:
                raise source.refusal(f"cannot be used: {unknown[0]!r:.60} is not a figure of a device")
        return machine

    def _processor_device(self) -> Device:
        ram = self.tier("ram")
        rates = {"int8": "matrix_int8_operations_per_second", "fp32": "vector_f32_operations_per_second"}
        one = Figure(value=1.0, origin="assumed")
        return Device(
            name=self.processor,
            kind="cpu",
            listed_bytes=ram.capacity_bytes,
            usable_bytes=ram.available_bytes,
            memory_bytes_per_second=ram.read_bytes_per_second(self.threads),
            operations_per_second={short: self.figure(name) * self.cores for short, name in rates.items()},
            status=self.status,
            figures={**assumed_device_figures("cpu"), **self.figures, "matrix_efficiency": one, "link_efficiency": one},
            sources=self.sources,
        )


def _between(points: Sequence[tuple[float, float]], working_set_bytes: float) -> float:
    """The value for a working set, by the logarithm of its bytes; outside of what was measured, the nearest one's."""
    for (smaller, before), (larger, after) in pairwise(points):
        if smaller <= working_set_bytes < larger < math.inf:
            part = math.log(working_set_bytes / smaller) / math.log(larger / smaller)
            return before + (after - before) * part
    return next((value for set_bytes, value in points if working_set_bytes < set_bytes), points[-1][1])


@dataclass(frozen=True)
class _Text:
    """What is read, and what to do where it is wrong."""

    what: str
    remedy: str

    def refusal(self, fault: str) -> MachineError:
        return MachineError(f"{self.what} {fault}; {self.remedy}.")


_KEPT = _Text("the machine's description", "run residency probe --renew")


def _machine(data: object, text: _Text) -> Machine:
    if not isinstance(data, dict) or "machine_version" not in data:
        raise text.refusal("has no 'machine_version'")
    fields = dict(data)
    version = fields.pop("machine_version")
    if version != MACHINE_VERSION or isinstance(version, bool):
        raise text.refusal(f"has version {version!r:.40} and this residency reads {MACHINE_VERSION}")
    machine = from_data(Machine, fields, what=text.what, error=MachineError, remedy=text.remedy)
    if machine.threads < 1 or machine.cores < 1:
        raise text.refusal("has no processor")
    for name, shares in machine.read_shares.items():
        if not all(each.share > 0 for each in shares):
            raise text.refusal(f"cannot be used: it reads {name!r:.60} at a share of 0")
    for tier in machine.tiers:
        if fault := _tier_fault(tier):
            raise text.refusal(f"cannot be used: its tier {tier.name!r:.60} {fault}")
    for device in machine.devices:
        if fault := _device_fault(device):
            raise text.refusal(f"cannot be used: its device {device.name!r:.60} {fault}")
    for link in machine.links:
        if not link.bytes_per_second > 0 or link.joins < 2:
            fault = "has a bytes_per_second of 0" if link.joins > 1 else f"joins {link.joins}, not two or more"
            raise text.refusal(f"cannot be used: its link from {link.source!r:.60} {fault}")
    return machine


def _tier_fault(tier: Tier) -> str | None:
    """What no tier can be like, as the end of a sentence; a disk may be full."""
    if not tier.read_rates or not all(rate.bytes_per_second > 0 for rate in tier.read_rates):
        return "has no read rate"
    if not tier.capacity_bytes or (tier.kind == "ram" and not tier.available_bytes):
        return f"has {'an available' if tier.capacity_bytes else 'a capacity'}_bytes of 0"
    if tier.available_bytes > tier.capacity_bytes:
        return f"has {tier.available_bytes} available_bytes of {tier.capacity_bytes} capacity_bytes"
    return None


def _device_fault(device: Device) -> str | None:
    """What no device can be like, as the end of a sentence."""
    if not 1 <= device.count <= MAX_DEVICES:
        return f"has a count of {device.count}, not 1 to {MAX_DEVICES}"
    for name in ("listed_bytes", "usable_bytes", "memory_bytes_per_second"):
        if not getattr(device, name) > 0:
            return f"has a {name} of 0"
    if device.usable_bytes > device.listed_bytes:
        return f"has {device.usable_bytes} usable_bytes of {device.listed_bytes} listed_bytes"
    for name, rate in device.operations_per_second.items():
        if name not in NUMBER_FORMATS:
            return f"has a rate for {name!r:.60}, not one of {', '.join(NUMBER_FORMATS)}"
        if not rate > 0:
            return f"has an operations_per_second of 0 for {name}"
    if not {"fp32", "fp16", "bf16"} & set(device.operations_per_second):
        return "has no operations_per_second for fp32, fp16 or bf16"
    return None


def _with_assumed(data: dict[str, Any]) -> dict[str, Any]:
    """What a person may leave out, filled in."""
    filled: dict[str, Any] = {"processor": "unknown", "instruction_sets": [], "caches": [], "links": [], **data}
    if isinstance(sets := filled["instruction_sets"], list):
        filled.setdefault("figures", to_data(assumed_figures(map(str, sets))))
    for device in filled.get("devices", ()) if isinstance(filled.get("devices"), list) else ():
        if isinstance(device, dict):
            given = device.get("figures", {})
            assumed = to_data(assumed_device_figures(str(device.get("kind"))))
            device["figures"] = {**assumed, **given} if isinstance(given, dict) else given
    return filled
