"""Small pieces that several kernels share: a thread's share of the work, exp, and how matrices want their inputs.

Rows that meet a matrix in blocks are quantized to int8 in groups of 32; those of prompts are rounded to bfloat16
where the processor has tile registers for it. A quantized row is its int8, one after another, and then WORDS_BYTES of
each group: as float32 its scale, and the scaled sums of its first half, of its second and of all.
"""

from numba import njit

from residency.kernels.simd.language import (
    abs_f32,
    add_f32,
    add_i32,
    f32_from_bits,
    fma,
    largest_f32,
    load_f32x16,
    load_i64,
    max_f32,
    min_f32,
    mul_f32,
    reciprocal,
    round_f32,
    shift_left,
    splat_f32,
    splat_i32,
    store_bf16x32,
    store_f32,
    store_i8x16,
    sum_i32,
    to_i32,
)
from residency.kernels.simd.tiles import has_tiles

GROUP = 32  # values that share one scale when activations are quantized
WORDS_BYTES = 16  # of a group, beside its codes
MOST_TOGETHER = 8  # groups that share a scale, where a matrix wants it so
MADE_BYTES = 128 * MOST_TOGETHER  # as float32
ROW_GROUP_BYTES = 64  # for each group of a row, whichever way it is kept
TILE_TOKENS = 16  # rows of a tile register
HAS_TILES = has_tiles()

inlined = njit(error_model="numpy", nogil=True, forceinline=True)
function = njit(error_model="numpy", nogil=True)


@inlined
def share_start(units, thread, threads):
    """First unit of a thread when `units` are dealt out in runs; the next thread's start ends the run."""
    return units * thread // threads


@inlined
def run_start(units, each, thread, threads):
    """As `share_start`, where `each` units, of which there is a multiple, stay together."""
    return each * share_start(units // each, thread, threads)


@inlined
def exp_f32(x):
    """e**x for each lane, to 2 units in the last place: 2**n times a polynomial on [-ln 2 / 2, ln 2 / 2].

    Coefficients: Taylor's, whose error at |r| < 0.35 is under 1e-8 at degree 7. Below
    -86 it is that of -86: as good as 0, and no denormal, which processors are slow with.
    """
    x = max_f32(min_f32(x, splat_f32(88.0)), splat_f32(-86.0))
    n = round_f32(mul_f32(x, splat_f32(1.4426950408889634)))
    r = fma(n, splat_f32(-0.693359375), x)
    r = fma(n, splat_f32(2.12194440e-4), r)
    p = splat_f32(1.0 / 5040.0)
    p = fma(p, r, splat_f32(1.0 / 720.0))
    p = fma(p, r, splat_f32(1.0 / 120.0))
    p = fma(p, r, splat_f32(1.0 / 24.0))
    p = fma(p, r, splat_f32(1.0 / 6.0))
    p = fma(p, r, splat_f32(0.5))
    p = fma(p, r, splat_f32(1.0))
    p = fma(p, r, splat_f32(1.0))
    power = f32_from_bits(shift_left(add_i32(to_i32(n), splat_i32(127)), 23))
    return mul_f32(p, power)


@inlined
def _sigmoid_times(x, y):
    """x / (1 + exp(-y))."""
    return mul_f32(x, reciprocal(add_f32(splat_f32(1.0), exp_f32(mul_f32(y, splat_f32(-1.0))))))


@inlined
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return _sigmoid_times(splat_f32(1.0), x)


@inlined
def silu(x):
    """x * sigmoid(x)."""
    return _sigmoid_times(x, x)


@inlined
def gelu_tanh(x):
    """x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3))), by tanh(y) = 2 sigmoid(2 y) - 1."""
    cubic = fma(mul_f32(mul_f32(x, x), x), splat_f32(0.044715), x)
    return _sigmoid_times(x, mul_f32(cubic, splat_f32(1.5957691216057308)))


@inlined
def int8_rows(tokens, int8_at):
    """How many of the rows are quantized, the first ones; the rest are in bfloat16."""
    return load_i64(int8_at) if HAS_TILES else tokens


@inlined
def _quantize(values, groups, codes, words):
    """Write so many groups of 32 float32 values with one scale, that makes the largest of them 127 or -127."""
    largest = splat_f32(0.0)
    for half in range(2 * groups):
        largest = max_f32(largest, abs_f32(load_f32x16(values + 64 * half)))
    most = largest_f32(largest)
    scale = most / 127.0
    inverse = splat_f32(127.0 / most if most > 0.0 else 0.0)
    for group in range(groups):
        low = to_i32(round_f32(mul_f32(load_f32x16(values + 128 * group), inverse)))
        high = to_i32(round_f32(mul_f32(load_f32x16(values + 128 * group + 64), inverse)))
        store_i8x16(codes + GROUP * group, low)
        store_i8x16(codes + GROUP * group + 16, high)
        low_sum, high_sum = sum_i32(low), sum_i32(high)
        at = words + WORDS_BYTES * group
        store_f32(at, scale)
        store_f32(at + 4, scale * low_sum)
        store_f32(at + 8, scale * high_sum)
        store_f32(at + 12, scale * (low_sum + high_sum))


@inlined
def place_in_tiles(rows_at, stride, row, tokens, quantized):
    """Where a row's first group is, and how far on the next, of rows that are not quantized.

    They come after those that are, in tiles of 16 rows (the last may have fewer), which hold group after group, and in
    each group 64 bytes of every row.
    """
    in_tile = (row - quantized) % TILE_TOKENS
    first = row - in_tile
    return rows_at + stride * first + 64 * in_tile, 64 * min(TILE_TOKENS, tokens - first)


@function
def pack(values, first, last, groups, together, rows_at, stride, row, tokens, quantized):
    """Write groups first .. last of a row of so many, whose float32 are at `values`, in the way of that row.

    If it is quantized, each `together` of them share a scale.
    """
    if HAS_TILES and row >= quantized:
        place, group_bytes = place_in_tiles(rows_at, stride, row, tokens, quantized)
        for group in range(first, last):
            at = values + 128 * (group - first)
            store_bf16x32(place + group_bytes * group, load_f32x16(at), load_f32x16(at + 64))
        return
    codes = rows_at + stride * row
    words = codes + GROUP * groups
    for group in range(first, last, together):
        at = values + 128 * (group - first)
        _quantize(at, min(together, last - group), codes + GROUP * group, words + WORDS_BYTES * group)
