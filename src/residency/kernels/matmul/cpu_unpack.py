"""Blocks of a matrix as tile registers want them: weights in bfloat16, pairs of columns together.

A weight is code * scale + minimum in float32, rounded to bfloat16's eight significant bits. A group of 32 columns
becomes 16 rows of 64 bytes; row p holds columns 2 p and 2 p + 1 of each of the tile's 16 rows of weights.
"""

from numba import njit

from residency.kernels.simd.language import (
    and_i32,
    as_i32,
    bf16_pairs,
    fma,
    high_nibbles,
    load_f16x16,
    load_i8x16,
    load_i32x16,
    load_u8x64,
    low_nibbles,
    mul_f32,
    or_i32,
    or_u8,
    plane_bit,
    plane_bits,
    prefetch,
    shift_left,
    shift_right,
    splat_f32,
    store_i32x16,
    to_f32,
)

GROUP_BYTES = 1024  # of 32 columns of 16 rows
PREFETCH_BYTES = 4096

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)


@_device
def _ahead(at, num_bytes):
    """Start on its way what is unpacked PREFETCH_BYTES later."""
    for line in range(0, num_bytes, 64):
        prefetch(at + PREFETCH_BYTES + line)


@_device
def _column(codes, column, scale, minimum):
    return fma(to_f32(and_i32(shift_right(codes, 8 * column), 255)), scale, minimum)


@_device
def _four_columns(codes, scale, minimum, out):
    """Each lane is a row of weights, and has four columns' codes."""
    lanes = as_i32(codes)
    store_i32x16(out, bf16_pairs(_column(lanes, 0, scale, minimum), _column(lanes, 1, scale, minimum)))
    store_i32x16(out + 64, bf16_pairs(_column(lanes, 2, scale, minimum), _column(lanes, 3, scale, minimum)))


@_device
def _nibbles(at, scale, minimum, out):
    for quarter in range(4):
        packed = load_u8x64(at + 64 * quarter)
        _four_columns(low_nibbles(packed), scale, minimum, out + 256 * quarter)
        _four_columns(high_nibbles(packed), scale, minimum, out + 256 * quarter + 128)


@_device
def _nibbles_and_plane(at, plane_at, scale, minimum, out):
    plane = load_u8x64(plane_at)
    for quarter in range(4):
        packed = load_u8x64(at + 64 * quarter)
        low = or_u8(low_nibbles(packed), plane_bit(plane, 2 * quarter))
        high = or_u8(high_nibbles(packed), plane_bit(plane, 2 * quarter + 1))
        _four_columns(low, scale, minimum, out + 256 * quarter)
        _four_columns(high, scale, minimum, out + 256 * quarter + 128)


@_function
def q4_0(at, out):
    """One group."""
    _ahead(at, 288)
    scale = load_f16x16(at + 256)
    _nibbles(at, scale, mul_f32(scale, splat_f32(-8.0)), out)


@_function
def q4_1(at, out):
    """One group."""
    _ahead(at, 320)
    _nibbles(at, load_f16x16(at + 256), load_f16x16(at + 288), out)


@_function
def q5_0(at, out):
    """One group."""
    _ahead(at, 352)
    scale = load_f16x16(at + 320)
    _nibbles_and_plane(at, at + 256, scale, mul_f32(scale, splat_f32(-16.0)), out)


@_function
def q5_1(at, out):
    """One group."""
    _ahead(at, 384)
    _nibbles_and_plane(at, at + 256, load_f16x16(at + 320), load_f16x16(at + 352), out)


@_function
def q8_0(at, out):
    """One group."""
    _ahead(at, 544)
    scale = load_f16x16(at + 512)
    minimum = mul_f32(scale, splat_f32(-128.0))
    for part in range(8):
        _four_columns(load_u8x64(at + 64 * part), scale, minimum, out + 128 * part)


@_device
def first_scale(words, group):
    """6-bit scale or minimum of groups 0 to 3: a byte's low six bits."""
    return to_f32(and_i32(shift_right(words, 8 * group), 63))


@_device
def last_scale(words, lows, group, low_shift):
    """6-bit scale or minimum of groups 4 to 7: four bits in `lows`, two in the top of the first groups' bytes."""
    low = and_i32(shift_right(lows, 8 * group + low_shift), 15)
    high = and_i32(shift_right(words, 8 * group + 6), 3)
    return to_f32(or_i32(low, shift_left(high, 4)))


def _k_quant(has_plane, scales_at):
    @_function
    def unpack_group(at, group, scale, minimum, out):
        if has_plane:
            _nibbles_and_plane(at + 256 * group, at + 2048 + 64 * group, scale, minimum, out + GROUP_BYTES * group)
        else:
            _nibbles(at + 256 * group, scale, minimum, out + GROUP_BYTES * group)

    @_function
    def unpack(at, out):
        """Eight groups."""
        _ahead(at, scales_at + 256)
        scales, minima = load_i32x16(at + scales_at), load_i32x16(at + scales_at + 64)
        lows = load_i32x16(at + scales_at + 128)
        scale = load_f16x16(at + scales_at + 192)
        minimum = mul_f32(load_f16x16(at + scales_at + 224), splat_f32(-1.0))
        for group in range(4):
            s, m = first_scale(scales, group), first_scale(minima, group)
            unpack_group(at, group, mul_f32(scale, s), mul_f32(minimum, m), out)
            s, m = last_scale(scales, lows, group, 0), last_scale(minima, lows, group, 4)
            unpack_group(at, group + 4, mul_f32(scale, s), mul_f32(minimum, m), out)

    return unpack


q4_k = _k_quant(False, 2048)
q5_k = _k_quant(True, 2560)


@_function
def q6_k(at, out):
    """Eight groups, each of two scales."""
    _ahead(at, 3360)
    scale = load_f16x16(at + 3328)
    for half in range(16):
        s = mul_f32(scale, to_f32(load_i8x16(at + 3072 + 16 * half)))
        m = mul_f32(s, splat_f32(-32.0))
        planes = load_u8x64(at + 192 * half + 128)
        for part in range(2):
            packed = load_u8x64(at + 192 * half + 64 * part)
            low = or_u8(low_nibbles(packed), plane_bits(planes, 2 * part))
            high = or_u8(high_nibbles(packed), plane_bits(planes, 2 * part + 1))
            _four_columns(low, s, m, out + 512 * half + 256 * part)
            _four_columns(high, s, m, out + 512 * half + 256 * part + 128)


# Of each format: how a tile's block is unpacked, its bytes, and its groups of 32 columns.
UNPACKED = {
    "Q4_0": (q4_0, 16 * 18, 1),
    "Q4_1": (q4_1, 16 * 20, 1),
    "Q5_0": (q5_0, 16 * 22, 1),
    "Q5_1": (q5_1, 16 * 24, 1),
    "Q8_0": (q8_0, 16 * 34, 1),
    "Q4_K": (q4_k, 16 * 144, 8),
    "Q5_K": (q5_k, 16 * 176, 8),
    "Q6_K": (q6_k, 16 * 210, 8),
}
