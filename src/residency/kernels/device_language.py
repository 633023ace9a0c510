"""What the Triton kernels have in common: a product of tiles, and the next power of two."""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))  # by NumPy, which has no bfloat16


@triton.jit
def dot(a, b, sums):
    """sums + a · b, added up in float32: on tensor cores, but for operands in float32, which stay exact."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


def power_of_two(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 1 << max(0, least - 1).bit_length()
