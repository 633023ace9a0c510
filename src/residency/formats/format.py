"""Number formats by name: how many values make a block, and how many bytes hold it."""

import math
from dataclasses import dataclass

from residency.errors import FileError


@dataclass(frozen=True, kw_only=True)
class Format:
    """A number format: a row is a run of blocks of `block_values` values in `block_bytes` bytes."""

    name: str
    block_values: int
    block_bytes: int

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of `shape`, blocks along the last axis. FileError if the axis is not whole blocks."""
        if shape and shape[-1] % self.block_values:
            raise FileError(
                f"a tensor of shape {shape} cannot be {self.name}: "
                f"its rows are not whole blocks of {self.block_values} values."
            )
        return math.prod(shape) // self.block_values * self.block_bytes

    @property
    def bits_per_value(self) -> float:
        """Bits per value, scales included."""
        return self.block_bytes * 8 / self.block_values

    @property
    def is_float(self) -> bool:
        """Whether the values are plain floating-point numbers."""
        return self.block_values == 1


# Block layouts as the GGUF specification gives them (ggml's gguf.md and ggml-common.h).
F32 = Format(name="F32", block_values=1, block_bytes=4)
F16 = Format(name="F16", block_values=1, block_bytes=2)
BF16 = Format(name="BF16", block_values=1, block_bytes=2)
Q4_0 = Format(name="Q4_0", block_values=32, block_bytes=18)
Q4_1 = Format(name="Q4_1", block_values=32, block_bytes=20)
Q5_0 = Format(name="Q5_0", block_values=32, block_bytes=22)
Q5_1 = Format(name="Q5_1", block_values=32, block_bytes=24)
Q8_0 = Format(name="Q8_0", block_values=32, block_bytes=34)
Q2_K = Format(name="Q2_K", block_values=256, block_bytes=84)
Q3_K = Format(name="Q3_K", block_values=256, block_bytes=110)
Q4_K = Format(name="Q4_K", block_values=256, block_bytes=144)
Q5_K = Format(name="Q5_K", block_values=256, block_bytes=176)
Q6_K = Format(name="Q6_K", block_values=256, block_bytes=210)
IQ4_NL = Format(name="IQ4_NL", block_values=32, block_bytes=18)
IQ4_XS = Format(name="IQ4_XS", block_values=256, block_bytes=136)
MXFP4 = Format(name="MXFP4", block_values=32, block_bytes=17)  # OCP Microscaling Formats 1.0: 32 E2M1, one E8M0

# Formats that are counted and not computed with: plain values of checkpoints, and ggml's other blocks.
F64 = Format(name="F64", block_values=1, block_bytes=8)
I64 = Format(name="I64", block_values=1, block_bytes=8)
I32 = Format(name="I32", block_values=1, block_bytes=4)
I16 = Format(name="I16", block_values=1, block_bytes=2)
I8 = Format(name="I8", block_values=1, block_bytes=1)
U8 = Format(name="U8", block_values=1, block_bytes=1)
BOOL = Format(name="BOOL", block_values=1, block_bytes=1)
F8_E4M3 = Format(name="F8_E4M3", block_values=1, block_bytes=1)
F8_E5M2 = Format(name="F8_E5M2", block_values=1, block_bytes=1)

FORMATS = {
    f.name: f
    for f in (
        *(F32, F16, BF16),
        *(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0),
        *(Q2_K, Q3_K, Q4_K, Q5_K, Q6_K),
        *(IQ4_NL, IQ4_XS, MXFP4),
    )
}

COUNTED_FORMATS = FORMATS | {
    f.name: f
    for f in (
        *(F64, I64, I32, I16, I8, U8, BOOL, F8_E4M3, F8_E5M2),
        Format(name="Q8_1", block_values=32, block_bytes=36),
        Format(name="Q8_K", block_values=256, block_bytes=292),
        Format(name="IQ1_S", block_values=256, block_bytes=50),
        Format(name="IQ1_M", block_values=256, block_bytes=56),
        Format(name="IQ2_XXS", block_values=256, block_bytes=66),
        Format(name="IQ2_XS", block_values=256, block_bytes=74),
        Format(name="IQ2_S", block_values=256, block_bytes=82),
        Format(name="IQ3_XXS", block_values=256, block_bytes=98),
        Format(name="IQ3_S", block_values=256, block_bytes=110),
        Format(name="TQ1_0", block_values=256, block_bytes=54),
        Format(name="TQ2_0", block_values=256, block_bytes=66),
    )
}
