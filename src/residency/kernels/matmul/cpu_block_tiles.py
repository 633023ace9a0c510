"""Products of 8 tokens with blocks of 256 columns in tile registers (Intel AMX), to the bits of one token's.

A code times its group's scale is a small integer, which two bytes hold: Q4_K's and Q5_K's in parts by the lower and the
upper three bits of the scale, each at most 31 * 7; Q6_K's in its lower and its upper byte. Tile instructions add up
each part's products with the tokens' codes over the whole block, and the sum, put together, is the very integer that
cpu_blocks.py adds up group by group. A block takes three turns of the loop: in one its bytes are laid out, in the next
they are multiplied, in the third the sums enter the totals: group by group, token by token side by side. Sixteen tokens
are twice eight, whose columns stay in the first-level cache.
"""

from functools import partial

from numba import njit

from residency.kernels.matmul import cpu_unpack as unpack
from residency.kernels.matmul.cpu_blocks import block_total
from residency.kernels.simd.blocks import WORDS_BYTES
from residency.kernels.simd.codes import add_shifted_each, lower_bytes, mul_words, spread_byte, upper_bytes
from residency.kernels.simd.language import (
    and_i32,
    fma_splat_each,
    high_nibbles,
    load_f16x16,
    load_f32x16,
    load_i8x16,
    load_i32x16,
    load_rows_f32,
    load_rows_i32,
    load_u8x64,
    low_nibbles,
    mul_f32,
    or_i32,
    or_u8,
    plane_bit,
    plane_bits,
    prefetch,
    prefetch_l2,
    shift_left,
    shift_right,
    splat_f32,
    stack_bytes,
    store_each,
    store_f32x16,
    store_i32x16,
    store_i64,
    store_u8x64,
    tile_configure,
    tile_dot_i8i8,
    tile_dot_i8u8,
    tile_load,
    tile_release,
    tile_store,
    tile_zero,
    to_f32,
    zeros_f32,
)

TOKENS = 8
PREFETCH_BYTES, FAR_PREFETCH_BYTES = 2048, 12288  # line by line between instructions: bursts cost twice that
PART_BYTES = 4096  # 256 columns of a tile's 16 rows
CODES_BYTES = 2 * PART_BYTES  # of a block that is laid out: the first part, then the second
LAID_BYTES = 2 * CODES_BYTES  # the block that is laid out, and the one that is multiplied
SCALES_AT, FACTORS_AT = 1024, 1280  # beside up to 16 minima: what K-quants' codes are multiplied by; two factors
ENDS_BYTES = FACTORS_AT + 128
ENDS = 4  # blocks whose minima and factors are kept: more than are under way
ALL_ENDS_BYTES = ENDS * ENDS_BYTES
SUMS_BYTES = 64 * TOKENS  # of one part
ALL_SUMS_BYTES = 4 * SUMS_BYTES  # of two blocks

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)


@_device
def _ahead(at):
    """Start a line on its way that is laid out later: into the second-level cache, and from there into the first."""
    prefetch(at + PREFETCH_BYTES)
    prefetch_l2(at + FAR_PREFETCH_BYTES)


@_device
def _store_factors(scale, minimum, end):
    store_f32x16(end + FACTORS_AT, scale)
    store_f32x16(end + FACTORS_AT + 64, minimum)


def _k_quant(has_plane, scales_at):
    """Q4_K and Q5_K: how a block begins, and how a group of it is laid out."""

    @_device
    def begin(at, end):
        for line in range(2048, scales_at + 256, 64):
            _ahead(at + line)
        scales, minima, lows = unpack.k_scales(at + scales_at)
        for group in range(8):
            store_f32x16(end + 64 * group, to_f32(unpack.k_scale(minima, lows, group, 4)))
        last = or_i32(and_i32(lows, 0x0F0F0F0F), and_i32(shift_right(scales, 2), 0x30303030))
        store_i32x16(end + SCALES_AT, and_i32(scales, 0x07070707))
        store_i32x16(end + SCALES_AT + 64, and_i32(shift_right(scales, 3), 0x07070707))
        store_i32x16(end + SCALES_AT + 128, and_i32(last, 0x07070707))
        store_i32x16(end + SCALES_AT + 192, and_i32(shift_right(last, 3), 0x07070707))
        scale, minimum = unpack.k_factors(at + scales_at)
        _store_factors(scale, minimum, end)

    @_device
    def store_products(codes, low, high, out):
        store_u8x64(out, mul_words(codes, low))
        store_u8x64(out + PART_BYTES, mul_words(codes, high))

    @_device
    def lay_out(at, group, end, out):
        scales = end + SCALES_AT + 128 * (group // 4)
        low, high = (spread_byte(load_i32x16(scales), group % 4), spread_byte(load_i32x16(scales + 64), group % 4))
        plane = load_u8x64(at + 2048 + 64 * group)
        for quarter in range(4):
            _ahead(at + 256 * group + 64 * quarter)
            packed = load_u8x64(at + 256 * group + 64 * quarter)
            ones, others = low_nibbles(packed), high_nibbles(packed)
            if has_plane:
                ones = or_u8(ones, plane_bit(plane, 2 * quarter))
                others = or_u8(others, plane_bit(plane, 2 * quarter + 1))
            target = out + 512 * group + 128 * quarter
            store_products(ones, low, high, target)
            store_products(others, low, high, target + 64)

    return begin, lay_out


@_device
def _begin_q6_k(at, end):
    for line in range(3072, 3360, 64):
        _ahead(at + line)
    for half in range(16):
        store_f32x16(end + 64 * half, to_f32(load_i8x16(at + 3072 + 16 * half)))
    scale = load_f16x16(at + 3328)
    _store_factors(scale, mul_f32(scale, splat_f32(-32.0)), end)


@_device
def _store_both_bytes(codes, scale, out):
    store_u8x64(out, lower_bytes(codes, scale))
    store_u8x64(out + PART_BYTES, upper_bytes(codes, scale))


@_device
def _lay_out_q6_k(at, group, end, out):
    for half in range(2 * group, 2 * group + 2):
        scale = load_i8x16(at + 3072 + 16 * half)
        words = or_i32(and_i32(scale, 0xFFFF), shift_left(scale, 16))
        _ahead(at + 192 * half + 128)
        planes = load_u8x64(at + 192 * half + 128)
        for part in range(2):
            _ahead(at + 192 * half + 64 * part)
            packed = load_u8x64(at + 192 * half + 64 * part)
            target = out + 256 * half + 128 * part
            _store_both_bytes(or_u8(low_nibbles(packed), plane_bits(planes, 2 * part)), words, target)
            _store_both_bytes(or_u8(high_nibbles(packed), plane_bits(planes, 2 * part + 1)), words, target + 64)


@_function
def _configure(at):
    """Registers 0 and 1: sums, 2: the tokens' columns, 3: what they are multiplied by."""
    for offset in range(0, 64, 8):
        store_i64(at + offset, 0)
    store_i64(at, 1)
    store_i64(at + 16, 64 + (64 << 16) + (64 << 32) + (64 << 48))
    store_i64(at + 48, TOKENS + (TOKENS << 8) + (TOKENS << 16) + (16 << 24))
    tile_configure(at)


def _multiplier(layout, upper_dot, upper_shift, group_minima, block_bytes, finish):
    """Multiply a run of tiles by 8 rows of x, as cpu.py's multipliers do; `finish` stores a tile's totals.

    A group has one minimum for all its columns, or one for each half.
    """
    begin, lay_out = layout
    add_block = block_total(1)
    put_together = add_shifted_each[upper_shift]
    first_sum = 12 if group_minima == 1 else 4  # in a group's words

    @_device
    def multiply_part(part, codes, x, x_stride):
        """64 columns of the first part of the bytes."""
        tile_load(2, x + 64 * part, x_stride)
        tile_load(3, codes + 1024 * part, 64)
        tile_dot_i8u8(0, 2, 3)

    @_device
    def multiply_upper_part(part, codes):
        tile_load(3, codes + PART_BYTES + 1024 * part, 64)
        upper_dot(1, 2, 3)

    @_device
    def add_token(token, sums, end, words, totals):
        """A block's sums of a token, whose words are at `words`."""
        lost = zeros_f32(1)
        for i in range(8 * group_minima):
            its_sum = words + WORDS_BYTES * (i // group_minima) + first_sum + 4 * (i % group_minima)
            lost = fma_splat_each(lost, load_f32x16(end + 64 * i), its_sum, 0)
        lower, upper = load_rows_i32(1, sums + 64 * token, 0), load_rows_i32(1, sums + SUMS_BYTES + 64 * token, 0)
        scale, minimum = load_f32x16(end + FACTORS_AT), load_f32x16(end + FACTORS_AT + 64)
        total = load_rows_f32(1, totals + 64 * token, 0)
        total = add_block(total, put_together(lower, upper), lost, scale, minimum, words, 0)
        store_each(total, totals + 64 * token, 0)

    @_function
    def multiply(first, last, weights, x, x_stride, out, out_stride, bias, accumulate, blocks):
        codes, ends = stack_bytes(LAID_BYTES), stack_bytes(ALL_ENDS_BYTES)
        sums, totals = stack_bytes(ALL_SUMS_BYTES), stack_bytes(SUMS_BYTES)
        _configure(sums)
        words = x + 256 * blocks
        held = blocks * (last - first)
        start = weights + block_bytes * blocks * first
        multiplied = added = 0  # the row's block that is to be multiplied, and added up
        for turn in range(held + 2):
            at = start + block_bytes * min(turn, held - 1)
            laid, ready = codes + CODES_BYTES * (turn % 2), codes + CODES_BYTES * ((turn + 1) % 2)
            end, last_end = ends + ENDS_BYTES * (turn % ENDS), ends + ENDS_BYTES * ((turn - 2) % ENDS)
            made, its_sums = sums + 2 * SUMS_BYTES * (turn % 2), sums + 2 * SUMS_BYTES * ((turn + 1) % 2)
            its_x, its_words = x + 256 * multiplied, words + 8 * WORDS_BYTES * added
            begin(at, end)
            tile_zero(0)
            tile_zero(1)
            for part in range(4):
                multiply_part(part, ready, its_x, x_stride)
                lay_out(at, 2 * part, end, laid)
                add_token(2 * part, its_sums, last_end, its_words + x_stride * (2 * part), totals)
                multiply_upper_part(part, ready)
                lay_out(at, 2 * part + 1, end, laid)
                add_token(2 * part + 1, its_sums, last_end, its_words + x_stride * (2 * part + 1), totals)
            tile_store(0, made, 64)
            tile_store(1, made + SUMS_BYTES, 64)
            if turn >= 1:
                multiplied = multiplied + 1 if multiplied + 1 < blocks else 0
            if turn >= 2:
                added += 1
            if turn == 1 or added == blocks:
                if turn > 1:
                    finish(load_rows_f32(TOKENS, totals, 64), first, out, out_stride, bias, accumulate)
                    first, added = first + 1, 0
                store_each(zeros_f32(TOKENS), totals, 64)
        tile_release()

    return multiply


# Of each format `multiplier(block_bytes, finish)`.
IN_EIGHTS = {
    "Q4_K": partial(_multiplier, _k_quant(False, 2048), tile_dot_i8u8, 3, 1),
    "Q5_K": partial(_multiplier, _k_quant(True, 2560), tile_dot_i8u8, 3, 1),
    "Q6_K": partial(_multiplier, (_begin_q6_k, _lay_out_q6_k), tile_dot_i8i8, 8, 2),
}
