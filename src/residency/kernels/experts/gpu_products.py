"""Products of a block's rows with its expert's matrix: see gpu.py. `places` says which of the matrices that lie one
behind the other, steps of each plane apart, is the expert's; without it, the one of its number.
"""

import triton
import triton.language as tl

from residency.kernels.matmul.gpu_few import few_rows
from residency.kernels.matmul.gpu_tiles import tile_sums


@triton.jit
def multiply_few_of_experts(
    x,
    codes,
    high,
    scales,
    supers,
    sorted_pairs,
    blocks,
    places,
    out,
    rows,
    columns,
    row_bytes,
    codes_step,
    high_step,
    scales_step,
    supers_step,
    x_stride,
    out_stride,
    PER_TOKEN: tl.constexpr,
    GATHERS: tl.constexpr,
    TOKENS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    SCALES: tl.constexpr,
):
    """R rows of a block's expert times the block's rows, of which there are at most TOKENS; the last stands for those
    that are missing.
    """
    block = blocks + tl.program_id(1) * 3
    expert, first, count = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    if count == 0:
        return
    which = (expert if places is None else tl.load(places + expert)).to(tl.int64)
    row = tl.program_id(0) * R + tl.arange(0, R)
    sources = ()
    for token in tl.static_range(TOKENS):
        place = (first + tl.minimum(token, count - 1)).to(tl.int64)
        source = tl.load(sorted_pairs + place).to(tl.int64) // PER_TOKEN if GATHERS else place
        sources = sources + (x + source * x_stride,)
    sums = few_rows(
        sources,
        codes + which * codes_step,
        high + which * high_step,
        scales + which * scales_step,
        supers + which * supers_step,
        row,
        row < rows,
        columns,
        row_bytes,
        TOKENS,
        R,
        C,
        BITS,
        GROUP,
        ZERO,
        SCALES,
    )
    for token in tl.static_range(TOKENS):
        place = (first + tl.minimum(token, count - 1)).to(tl.int64)
        target = place if GATHERS else tl.load(sorted_pairs + place).to(tl.int64)
        stored_rows = tl.where(token < count, rows, 0)
        tl.store(out + target * out_stride + row, tl.sum(sums[token], 1), mask=row < stored_rows)


@triton.jit
def multiply_tiles_of_experts(
    x,
    codes,
    high,
    scales,
    supers,
    sorted_pairs,
    blocks,
    places,
    out,
    rows,
    columns,
    row_bytes,
    codes_step,
    high_step,
    scales_step,
    supers_step,
    x_stride,
    out_stride,
    PER_TOKEN: tl.constexpr,
    GATHERS: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    SCALES: tl.constexpr,
):
    """R rows of a block's expert times the block's rows, on tensor cores."""
    block = blocks + tl.program_id(1) * 3
    expert, first, count = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    if count == 0:
        return
    which = (expert if places is None else tl.load(places + expert)).to(tl.int64)
    row = tl.program_id(0) * R + tl.arange(0, R)
    token = tl.arange(0, T)
    there = token < count
    pair = tl.load(sorted_pairs + first + token, mask=there, other=0).to(tl.int64)
    place = (first + token).to(tl.int64)
    source = x + (pair // PER_TOKEN if GATHERS else place)[None, :] * x_stride
    sums = tile_sums(
        source,
        codes + which * codes_step,
        high + which * high_step,
        scales + which * scales_step,
        supers + which * supers_step,
        row,
        row < rows,
        there,
        0,
        columns // 32,
        columns,
        row_bytes,
        R,
        T,
        C,
        BITS,
        GROUP,
        ZERO,
        SCALES,
    )
    target = place if GATHERS else pair
    tl.store(out + target[None, :] * out_stride + row[:, None], sums, mask=(row < rows)[:, None] & there[None, :])
