"""Small pieces that several kernels share: a thread's share of the work, exp, and how matrices want their inputs.

Rows that meet a matrix in blocks are quantized to int8 in groups of 32; those of prompts are rounded to bfloat16
where the processor has tile registers for it.
"""

from numba import njit

from residency.kernels.simd.language import (
    abs_f32,
    add_f32,
    add_i32,
    f32_from_bits,
    fma,
    largest_f32,
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
GROUP_BYTES = 48  # 32 int8, then float32: scale, scale * sum of each half, scale * sum of all
ROW_GROUP_BYTES = 64  # for each group of a row, whichever way it is kept
TILE_TOKENS = 16  # rows of a tile register
HAS_TILES = has_tiles()

inlined = njit(error_model="numpy", nogil=True, forceinline=True)


@inlined
def share_start(units, thread, threads):
    """First unit of a thread when `units` are dealt out in runs; the next thread's start ends the run."""
    return units * thread // threads


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
def quantize_group(low, high, out):
    """Write 32 values (two vectors) as one 48-byte group: int8 by the largest magnitude, and the sums."""
    largest = largest_f32(max_f32(abs_f32(low), abs_f32(high)))
    scale = largest / 127.0
    inverse = 127.0 / largest if largest > 0.0 else 0.0
    low_i32 = to_i32(round_f32(mul_f32(low, splat_f32(inverse))))
    high_i32 = to_i32(round_f32(mul_f32(high, splat_f32(inverse))))
    store_i8x16(out, low_i32)
    store_i8x16(out + 16, high_i32)
    low_sum, high_sum = sum_i32(low_i32), sum_i32(high_i32)
    store_f32(out + 32, scale)
    store_f32(out + 36, scale * low_sum)
    store_f32(out + 40, scale * high_sum)
    store_f32(out + 44, scale * (low_sum + high_sum))


@inlined
def int8_rows(tokens, int8_at):
    """How many of the rows are quantized, the first ones; the rest are in bfloat16."""
    return load_i64(int8_at) if HAS_TILES else tokens


@inlined
def place_of_row(rows_at, stride, row, tokens, quantized):
    """Where a row's first group is, and how far on the next.

    The first rows are quantized, each by itself. The rest are in tiles of 16 rows (the last may have fewer), which hold
    group after group, and in each group 64 bytes of every row.
    """
    if row < quantized:
        return rows_at + stride * row, GROUP_BYTES
    in_tile = (row - quantized) % TILE_TOKENS
    first = row - in_tile
    return rows_at + stride * first + 64 * in_tile, 64 * min(TILE_TOKENS, tokens - first)


@inlined
def store_group(low, high, at, is_quantized):
    """Write a group's 32 values (two vectors) in the way of its row."""
    if HAS_TILES and not is_quantized:
        store_bf16x32(at, low, high)
    else:
        quantize_group(low, high, at)
