"""Blocks of every format, multiplied by a register block of rows: the sum that cpu.py says, format by format.

`block(at, x, words, stride, total)` adds the product of the block at `at` and the rows' codes at `x`, `stride` bytes
apart; `words` has their scales and sums.
"""

from numba import njit

from residency.kernels.matmul import cpu_unpack as unpack
from residency.kernels.simd.blocks import GROUP, WORDS_BYTES
from residency.kernels.simd.codes import mul_add_each
from residency.kernels.simd.language import (
    dot4_each,
    dot4_full_each,
    fma_each,
    fma_splat_each,
    high_nibbles,
    iq4_values,
    load_f16x16,
    load_i8x16,
    load_u8x64,
    low_nibbles,
    low_pairs,
    mul_f32,
    mul_splat_each,
    mxfp4_values,
    or_u8,
    plane_bit,
    plane_bits,
    prefetch,
    prefetch_l2,
    splat_f32,
    third_bit,
    to_f32,
    to_f32_each,
    zeros_f32,
    zeros_i32,
)

PREFETCH_BYTES = 2048  # ahead of the block in hand: one row of x gains 30%, less with 1024 or 8192; eight gain 5%
FAR_PREFETCH_BYTES = 6144  # into the second-level cache: 5% more, 18% of Q6_K; of eight rows 20 to 30%
_device = njit(error_model="numpy", nogil=True, forceinline=True)


def accumulator(tokens):
    """How a group's integer dots enter the totals, for register blocks of `tokens` vectors."""

    @_device
    def add_group(total, dots, scale, minimum, x_scale, x_sum, stride):
        scaled = mul_splat_each(to_f32_each(dots), x_scale, stride)
        return fma_splat_each(fma_each(scaled, scale, total), minimum, x_sum, stride)

    @_device
    def dot_nibbles(at, x, stride):
        dots = zeros_i32(tokens)
        for quarter in range(4):
            packed = load_u8x64(at + 64 * quarter)
            dots = dot4_each(dots, low_nibbles(packed), x + 8 * quarter, stride)
            dots = dot4_each(dots, high_nibbles(packed), x + 8 * quarter + 4, stride)
        return dots

    @_device
    def dot_nibbles_and_plane(at, plane_at, x, stride):
        dots = zeros_i32(tokens)
        plane = load_u8x64(plane_at)
        for quarter in range(4):
            packed = load_u8x64(at + 64 * quarter)
            low = or_u8(low_nibbles(packed), plane_bit(plane, 2 * quarter))
            high = or_u8(high_nibbles(packed), plane_bit(plane, 2 * quarter + 1))
            dots = dot4_each(dots, low, x + 8 * quarter, stride)
            dots = dot4_each(dots, high, x + 8 * quarter + 4, stride)
        return dots

    return add_group, dot_nibbles, dot_nibbles_and_plane


def _q4_0(tokens):
    add_group, dot_nibbles, _ = accumulator(tokens)

    @_device
    def block(at, x, words, stride, total):
        scale = load_f16x16(at + 256)
        minimum = mul_f32(scale, splat_f32(-8.0))
        return add_group(total, dot_nibbles(at, x, stride), scale, minimum, words, words + 12, stride)

    return block


def _q4_1(tokens):
    add_group, dot_nibbles, _ = accumulator(tokens)

    @_device
    def block(at, x, words, stride, total):
        dots = dot_nibbles(at, x, stride)
        return add_group(total, dots, load_f16x16(at + 256), load_f16x16(at + 288), words, words + 12, stride)

    return block


def _q5_0(tokens):
    add_group, _, dot_nibbles_and_plane = accumulator(tokens)

    @_device
    def block(at, x, words, stride, total):
        scale = load_f16x16(at + 320)
        minimum = mul_f32(scale, splat_f32(-16.0))
        dots = dot_nibbles_and_plane(at, at + 256, x, stride)
        return add_group(total, dots, scale, minimum, words, words + 12, stride)

    return block


def _q5_1(tokens):
    add_group, _, dot_nibbles_and_plane = accumulator(tokens)

    @_device
    def block(at, x, words, stride, total):
        dots = dot_nibbles_and_plane(at, at + 256, x, stride)
        return add_group(total, dots, load_f16x16(at + 320), load_f16x16(at + 352), words, words + 12, stride)

    return block


def _q8_0(tokens):
    add_group, _, _ = accumulator(tokens)

    @_device
    def block(at, x, words, stride, total):
        dots = zeros_i32(tokens)
        for part in range(8):
            dots = dot4_full_each(dots, load_u8x64(at + 64 * part), x + 4 * part, stride)
        scale = load_f16x16(at + 512)
        return add_group(total, dots, scale, mul_f32(scale, splat_f32(-128.0)), words, words + 12, stride)

    return block


@_device
def ahead(at, num_bytes):
    """Start on its way what is read later: into the second-level cache, and from there into the first."""
    for line in range(0, num_bytes, 64):
        prefetch(at + PREFETCH_BYTES + line)
        prefetch_l2(at + FAR_PREFETCH_BYTES + line)


def block_total(tokens):
    """How a block's integer sums of scaled dots, and its sums of minima, enter the totals."""

    @_device
    def add_block(total, sums, minima, scale, minimum, words, stride):
        scaled = mul_splat_each(to_f32_each(sums), words, stride)
        return fma_each(minima, minimum, fma_each(scaled, scale, total))

    return add_block


def _k_quant(tokens, dot_group, planes_at, scales_at):
    """A block of Q4_K or Q5_K: eight groups of 32, scales and minima of 6 bits."""
    add_block = block_total(tokens)

    @_device
    def block(at, x, words, stride, total):
        ahead(at + 2048, scales_at + 256 - 2048)
        scales, minima, lows = unpack.k_scales(at + scales_at)
        sums = zeros_i32(tokens)
        for group in range(8):
            ahead(at + 256 * group, 256)
            dots = dot_group(at + 256 * group, at + planes_at + 64 * group, x + GROUP * group, stride)
            sums = mul_add_each(sums, dots, unpack.k_scale(scales, lows, group, 0))
        lost = zeros_f32(tokens)
        for group in range(8):
            minimum = to_f32(unpack.k_scale(minima, lows, group, 4))
            lost = fma_splat_each(lost, minimum, words + WORDS_BYTES * group + 12, stride)
        scale, minimum = unpack.k_factors(at + scales_at)
        return add_block(total, sums, lost, scale, minimum, words, stride)

    return block


def _q4_k(tokens):
    _, dot_nibbles, _ = accumulator(tokens)

    @_device
    def dot_group(at, plane_at, x, stride):
        return dot_nibbles(at, x, stride)

    return _k_quant(tokens, dot_group, 0, 2048)


def _q5_k(tokens):
    _, _, dot_nibbles_and_plane = accumulator(tokens)
    return _k_quant(tokens, dot_nibbles_and_plane, 2048, 2560)


def _q6_k(tokens):
    add_block = block_total(tokens)

    @_device
    def half_group(at, x, stride):
        dots = zeros_i32(tokens)
        planes = load_u8x64(at + 128)
        for part in range(2):
            packed = load_u8x64(at + 64 * part)
            low = or_u8(low_nibbles(packed), plane_bits(planes, 2 * part))
            high = or_u8(high_nibbles(packed), plane_bits(planes, 2 * part + 1))
            dots = dot4_each(dots, low, x + 8 * part, stride)
            dots = dot4_each(dots, high, x + 8 * part + 4, stride)
        return dots

    @_device
    def block(at, x, words, stride, total):
        ahead(at + 3072, 288)
        sums = zeros_i32(tokens)
        for half in range(16):
            ahead(at + 192 * half, 192)
            dots = half_group(at + 192 * half, x + 16 * half, stride)
            sums = mul_add_each(sums, dots, load_i8x16(at + 3072 + 16 * half))
        lost = zeros_f32(tokens)
        for half in range(16):
            its_sum = words + WORDS_BYTES * (half // 2) + 4 + 4 * (half % 2)
            lost = fma_splat_each(lost, to_f32(load_i8x16(at + 3072 + 16 * half)), its_sum, stride)
        scale = load_f16x16(at + 3328)
        return add_block(total, sums, lost, scale, mul_f32(scale, splat_f32(-32.0)), words, stride)

    return block


def _q2_k(tokens):
    add_group, _, _ = accumulator(tokens)

    @_device
    def block(at, x, words, stride, total):
        scale = load_f16x16(at + 1280)
        minimum = mul_f32(load_f16x16(at + 1312), splat_f32(-1.0))
        ahead(at + 1024, 320)
        for half in range(16):
            ahead(at + 64 * half, 64)
            group, which = half // 2, half % 2
            x_half, its_words = x + 16 * half, words + WORDS_BYTES * group
            pairs = load_u8x64(at + 64 * half)
            dots = zeros_i32(tokens)
            for part in range(4):
                dots = dot4_each(dots, low_pairs(pairs, part), x_half + 4 * part, stride)
            s, m = unpack.q2_k_scales(load_i8x16(at + 1024 + 16 * half), scale, minimum)
            total = add_group(total, dots, s, m, its_words, its_words + 4 + 4 * which, stride)
        return total

    return block


def _q3_k(tokens):
    add_group, _, _ = accumulator(tokens)

    @_device
    def block(at, x, words, stride, total):
        scale = load_f16x16(at + 1728)
        ahead(at + 1536, 224)
        for half in range(16):
            ahead(at + 96 * half, 96)
            group, which = half // 2, half % 2
            x_half, its_words = x + 16 * half, words + WORDS_BYTES * group
            pairs = load_u8x64(at + 192 * group + 64 * which)
            plane = load_u8x64(at + 192 * group + 128)
            dots = zeros_i32(tokens)
            for part in range(4):
                codes = or_u8(low_pairs(pairs, part), third_bit(plane, 4 * which + part))
                dots = dot4_each(dots, codes, x_half + 4 * part, stride)
            s = unpack.q3_k_scale(at + 1536, half, scale)
            m = mul_f32(s, splat_f32(-4.0))
            total = add_group(total, dots, s, m, its_words, its_words + 4 + 4 * which, stride)
        return total

    return block


def _dot_values(tokens, values, dot_each):
    """Dots of nibbles that are places in a table."""

    @_device
    def dot_values(at, x, stride):
        dots = zeros_i32(tokens)
        for quarter in range(4):
            packed = load_u8x64(at + 64 * quarter)
            dots = dot_each(dots, values(low_nibbles(packed)), x + 8 * quarter, stride)
            dots = dot_each(dots, values(high_nibbles(packed)), x + 8 * quarter + 4, stride)
        return dots

    return dot_values


def _iq4_nl(tokens):
    add_group, _, _ = accumulator(tokens)
    dot_values = _dot_values(tokens, iq4_values, dot4_full_each)

    @_device
    def block(at, x, words, stride, total):
        scale = load_f16x16(at + 256)
        minimum = mul_f32(scale, splat_f32(-127.0))
        return add_group(total, dot_values(at, x, stride), scale, minimum, words, words + 12, stride)

    return block


def _iq4_xs(tokens):
    add_group, _, _ = accumulator(tokens)
    dot_values = _dot_values(tokens, iq4_values, dot4_full_each)

    @_device
    def block(at, x, words, stride, total):
        scale = load_f16x16(at + 2144)
        ahead(at + 2048, 128)
        for group in range(8):
            ahead(at + 256 * group, 256)
            dots = dot_values(at + 256 * group, x + GROUP * group, stride)
            its_words = words + WORDS_BYTES * group
            s = unpack.iq4_xs_scale(at + 2048, group, scale)
            m = mul_f32(s, splat_f32(-127.0))
            total = add_group(total, dots, s, m, its_words, its_words + 12, stride)
        return total

    return block


def _mxfp4(tokens):
    add_group, _, _ = accumulator(tokens)
    dot_values = _dot_values(tokens, mxfp4_values, dot4_each)

    @_device
    def block(at, x, words, stride, total):
        scale = unpack.half_power(load_i8x16(at + 256))
        minimum = mul_f32(scale, splat_f32(-12.0))
        return add_group(total, dot_values(at, x, stride), scale, minimum, words, words + 12, stride)

    return block


BLOCKS = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
