"""Rows of activations times rows of a matrix on tensor cores."""

import triton
import triton.language as tl

from residency.kernels.device_language import dot
from residency.kernels.matmul.gpu_unpack import unpack


@triton.jit
def tile_sums(
    source,
    codes,
    high,
    scales,
    supers,
    row,
    live_rows,
    live_tokens,
    begin,
    end,
    columns,
    row_bytes,
    R: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    SCALES: tl.constexpr,
):
    """The products (R, T) of R rows of the matrix with the rows of activations that `source` (1, T) points to, over the
    chunks of 32 columns begin .. end. `live_rows` (R,) and `live_tokens` (T,) say which are read.
    """
    place = tl.arange(0, 16 * C)
    sums = tl.zeros((R, T), tl.float32)
    for start in range(begin, end, C):
        chunk = start + tl.arange(0, C)
        live = live_rows[:, None] & (chunk < end)[None, :]
        low, upper = unpack(
            codes,
            high,
            scales,
            supers,
            row[:, None],
            chunk[None, :],
            live,
            columns,
            row_bytes,
            BITS,
            GROUP,
            ZERO,
            SCALES,
        )
        column = (start + place // 16) * 32 + place % 16
        mask = (column < end * 32)[:, None] & live_tokens[None, :]
        first = tl.load(source + column[:, None], mask=mask, other=0.0)
        last = tl.load(source + column[:, None] + 16, mask=mask, other=0.0)
        sums = dot(tl.reshape(low, (R, 16 * C)).to(first.dtype), first, sums)
        sums = dot(tl.reshape(upper, (R, 16 * C)).to(first.dtype), last, sums)
    return sums
