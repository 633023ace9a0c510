"""Blocks of integers in groups, multiplied and unpacked: residency.formats.grouped says what they are."""

from functools import partial

from numba import njit

from residency.formats import BF16, F16
from residency.kernels.matmul import cpu_code_tiles, cpu_unpack
from residency.kernels.matmul.cpu_blocks import accumulator
from residency.kernels.simd.blocks import GROUP, WORDS_BYTES
from residency.kernels.simd.language import (
    and_i32,
    dot4_each,
    dot4_full_each,
    load_bf16x16,
    load_f16x16,
    load_f32x16,
    load_i8x16,
    load_u8x64,
    low_pairs,
    mul_f32,
    or_u8,
    splat_f32,
    third_bit,
    to_f32,
    zeros_i32,
)

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)


def _ends(fmt):
    """What loads a block's scales, and what they are to be multiplied by so that code 0 becomes its value."""
    codes_bytes = 16 * fmt.code_bytes
    scale_at = codes_bytes + 16 * fmt.has_zero
    middle = float(-fmt.middle)
    has_zero = fmt.has_zero
    load = {F16: load_f16x16, BF16: load_bf16x16}.get(fmt.scales, load_f32x16)

    @_device
    def scales(at):
        return load(at + scale_at)

    @_device
    def minima(at, scale):
        if has_zero:
            return mul_f32(mul_f32(scale, to_f32(and_i32(load_i8x16(at + codes_bytes), 255))), splat_f32(-1.0))
        return mul_f32(scale, splat_f32(middle))

    return scales, minima


def _dots(fmt, tokens):
    """The dots of 32 columns, of codes in bytes, or in pairs of bits and perhaps a plane."""
    has_plane = fmt.bits == 3

    @_device
    def dot_bytes(at, x, stride):
        dots = zeros_i32(tokens)
        for part in range(8):
            dots = dot4_full_each(dots, load_u8x64(at + 64 * part), x + 4 * part, stride)
        return dots

    @_device
    def dot_pairs(at, x, stride):
        dots = zeros_i32(tokens)
        for part in range(8):
            codes = low_pairs(load_u8x64(at + 64 * (part // 4)), part % 4)
            if has_plane:
                codes = or_u8(codes, third_bit(load_u8x64(at + 128), part))
            dots = dot4_each(dots, codes, x + 4 * part, stride)
        return dots

    return dot_bytes if fmt.bits == 8 else dot_pairs


def block_of(fmt):
    """What multiplies a block of the format by so many tokens."""
    groups, group_bytes = fmt.block_values // 32, 64 * fmt.bits
    scales, minima = _ends(fmt)

    def of(tokens):
        add_group, dot_nibbles, _ = accumulator(tokens)
        dot_group = dot_nibbles if fmt.bits == 4 else _dots(fmt, tokens)

        @_device
        def block(at, x, words, stride, total):
            scale = scales(at)
            minimum = minima(at, scale)
            for group in range(groups):
                dots = dot_group(at + group_bytes * group, x + GROUP * group, stride)
                its_words = words + WORDS_BYTES * group
                total = add_group(total, dots, scale, minimum, its_words, its_words + 12, stride)
            return total

        return block

    return of


def unpacked(fmt):
    """How a tile's block is unpacked to bfloat16, its bytes, and its groups of 32 columns."""
    groups, group_bytes, has_plane = fmt.block_values // 32, 64 * fmt.bits, fmt.bits == 3
    block_bytes = 16 * fmt.block_bytes
    scales, minima = _ends(fmt)

    @_device
    def full_bytes(at, scale, minimum, out):
        for part in range(8):
            cpu_unpack.four_columns(load_u8x64(at + 64 * part), scale, minimum, out + 128 * part)

    @_device
    def pairs(at, scale, minimum, out):
        for part in range(8):
            codes = low_pairs(load_u8x64(at + 64 * (part // 4)), part % 4)
            if has_plane:
                codes = or_u8(codes, third_bit(load_u8x64(at + 128), part))
            cpu_unpack.four_columns(codes, scale, minimum, out + 128 * part)

    unpack_group = {8: full_bytes, 4: cpu_unpack.nibbles}.get(fmt.bits, pairs)

    @_function
    def unpack(at, out):
        cpu_unpack.ahead(at, block_bytes)
        scale = scales(at)
        minimum = minima(at, scale)
        for group in range(groups):
            unpack_group(at + group_bytes * group, scale, minimum, out + cpu_unpack.GROUP_BYTES * group)

    return unpack, block_bytes, groups


def in_tiles(fmt):
    """What multiplies 16 tokens in tile registers, `multiplier(block_bytes, finish)`, where that is quicker."""
    if fmt.bits not in (4, 8):
        return None
    group_bytes, is_full = 64 * fmt.bits, fmt.bits == 8
    scales, minima = _ends(fmt)

    @_device
    def lay_out(at, group, slot):
        codes = at + group_bytes * group
        cpu_code_tiles.ahead(codes, group_bytes)
        scale = scales(at)
        cpu_code_tiles.store_scales(scale, minima(at, scale), slot)
        if is_full:
            return codes
        cpu_code_tiles.nibbles(codes, slot)
        return slot

    return partial(cpu_code_tiles.tile_multiplier, lay_out, fmt.block_values // 32)
