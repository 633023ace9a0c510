"""Blocks of a matrix as tile registers want them: weights in bfloat16, pairs of columns together.

A weight is code * scale + minimum in float32, rounded to bfloat16's eight significant bits. A group of 32 columns
becomes 16 rows of 64 bytes; row p holds columns 2 p and 2 p + 1 of each of the tile's 16 rows of weights.
"""

from numba import njit

from residency.kernels.simd.language import (
    and_i32,
    as_i32,
    bf16_pairs,
    f32_from_bits,
    fma,
    high_nibbles,
    iq4_values,
    load_f16x16,
    load_i8x16,
    load_i32x16,
    load_u8x64,
    low_nibbles,
    low_pairs,
    mul_f32,
    mxfp4_values,
    or_i32,
    or_u8,
    plane_bit,
    plane_bits,
    prefetch,
    shift_left,
    shift_right,
    splat_f32,
    store_i32x16,
    sub_f32,
    third_bit,
    to_f32,
)

GROUP_BYTES = 1024  # of 32 columns of 16 rows
PREFETCH_BYTES = 4096

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)


@_device
def ahead(at, num_bytes):
    """Start on its way what is unpacked PREFETCH_BYTES later."""
    for line in range(0, num_bytes, 64):
        prefetch(at + PREFETCH_BYTES + line)


@_device
def _column(codes, column, scale, minimum):
    return fma(to_f32(and_i32(shift_right(codes, 8 * column), 255)), scale, minimum)


@_device
def four_columns(codes, scale, minimum, out):
    """Each lane is a row of weights, and has four columns' codes."""
    lanes = as_i32(codes)
    store_i32x16(out, bf16_pairs(_column(lanes, 0, scale, minimum), _column(lanes, 1, scale, minimum)))
    store_i32x16(out + 64, bf16_pairs(_column(lanes, 2, scale, minimum), _column(lanes, 3, scale, minimum)))


@_device
def nibbles(at, scale, minimum, out):
    """A group of codes of four bits."""
    for quarter in range(4):
        packed = load_u8x64(at + 64 * quarter)
        four_columns(low_nibbles(packed), scale, minimum, out + 256 * quarter)
        four_columns(high_nibbles(packed), scale, minimum, out + 256 * quarter + 128)


@_device
def _nibbles_and_plane(at, plane_at, scale, minimum, out):
    plane = load_u8x64(plane_at)
    for quarter in range(4):
        packed = load_u8x64(at + 64 * quarter)
        low = or_u8(low_nibbles(packed), plane_bit(plane, 2 * quarter))
        high = or_u8(high_nibbles(packed), plane_bit(plane, 2 * quarter + 1))
        four_columns(low, scale, minimum, out + 256 * quarter)
        four_columns(high, scale, minimum, out + 256 * quarter + 128)


@_function
def q4_0(at, out):
    """One group."""
    ahead(at, 288)
    scale = load_f16x16(at + 256)
    nibbles(at, scale, mul_f32(scale, splat_f32(-8.0)), out)


@_function
def q4_1(at, out):
    """One group."""
    ahead(at, 320)
    nibbles(at, load_f16x16(at + 256), load_f16x16(at + 288), out)


@_function
def q5_0(at, out):
    """One group."""
    ahead(at, 352)
    scale = load_f16x16(at + 320)
    _nibbles_and_plane(at, at + 256, scale, mul_f32(scale, splat_f32(-16.0)), out)


@_function
def q5_1(at, out):
    """One group."""
    ahead(at, 384)
    _nibbles_and_plane(at, at + 256, load_f16x16(at + 320), load_f16x16(at + 352), out)


@_function
def q8_0(at, out):
    """One group."""
    ahead(at, 544)
    scale = load_f16x16(at + 512)
    minimum = mul_f32(scale, splat_f32(-128.0))
    for part in range(8):
        four_columns(load_u8x64(at + 64 * part), scale, minimum, out + 128 * part)


@_device
def k_scales(at):
    """Q4_K's and Q5_K's: words of scales, of minima, and of both's lower bits in the last four groups."""
    return load_i32x16(at), load_i32x16(at + 64), load_i32x16(at + 128)


@_device
def k_factors(at):
    """What all scales, and all minima, of a block are to be multiplied by."""
    return load_f16x16(at + 192), mul_f32(load_f16x16(at + 224), splat_f32(-1.0))


@_device
def k_scale(words, lows, group, low_shift):
    """A group's scale or minimum of six bits: of groups 0 to 3 a byte's low six, of the rest four bits in `lows`, and
    two in the top of the first groups' bytes.
    """
    if group < 4:
        return and_i32(shift_right(words, 8 * group), 63)
    low = and_i32(shift_right(lows, 8 * (group - 4) + low_shift), 15)
    return or_i32(low, shift_left(and_i32(shift_right(words, 8 * (group - 4) + 6), 3), 4))


def _k_quant(has_plane, scales_at):
    @_function
    def unpack_group(at, group, scale, minimum, out):
        if has_plane:
            _nibbles_and_plane(at + 256 * group, at + 2048 + 64 * group, scale, minimum, out + GROUP_BYTES * group)
        else:
            nibbles(at + 256 * group, scale, minimum, out + GROUP_BYTES * group)

    @_function
    def unpack(at, out):
        """Eight groups."""
        ahead(at, scales_at + 256)
        scales, minima, lows = k_scales(at + scales_at)
        scale, minimum = k_factors(at + scales_at)
        for group in range(8):
            s, m = to_f32(k_scale(scales, lows, group, 0)), to_f32(k_scale(minima, lows, group, 4))
            unpack_group(at, group, mul_f32(scale, s), mul_f32(minimum, m), out)

    return unpack


q4_k = _k_quant(False, 2048)
q5_k = _k_quant(True, 2560)


@_function
def q6_k(at, out):
    """Eight groups, each of two scales."""
    ahead(at, 3360)
    scale = load_f16x16(at + 3328)
    for half in range(16):
        s = mul_f32(scale, to_f32(load_i8x16(at + 3072 + 16 * half)))
        m = mul_f32(s, splat_f32(-32.0))
        planes = load_u8x64(at + 192 * half + 128)
        for part in range(2):
            packed = load_u8x64(at + 192 * half + 64 * part)
            low = or_u8(low_nibbles(packed), plane_bits(planes, 2 * part))
            high = or_u8(high_nibbles(packed), plane_bits(planes, 2 * part + 1))
            four_columns(low, s, m, out + 512 * half + 256 * part)
            four_columns(high, s, m, out + 512 * half + 256 * part + 128)


@_device
def q2_k_scales(bits, scale, minimum):
    """A group's scale and minimum, of four bits each."""
    return mul_f32(scale, to_f32(and_i32(bits, 15))), mul_f32(minimum, to_f32(and_i32(shift_right(bits, 4), 15)))


@_function
def q2_k(at, out):
    """Eight groups, each of two scales and minima."""
    ahead(at, 1344)
    scale, minimum = load_f16x16(at + 1280), mul_f32(load_f16x16(at + 1312), splat_f32(-1.0))
    for half in range(16):
        s, m = q2_k_scales(load_i8x16(at + 1024 + 16 * half), scale, minimum)
        pairs = load_u8x64(at + 64 * half)
        for part in range(4):
            four_columns(low_pairs(pairs, part), s, m, out + 512 * half + 128 * part)


@_device
def q3_k_scale(words, half, scale):
    """A group's scale of six bits: four in the first two words, two in the third."""
    low = and_i32(shift_right(load_i32x16(words + 64 * (half // 4 % 2)), 8 * (half % 4) + 4 * (half // 8)), 15)
    high = and_i32(shift_right(load_i32x16(words + 128), 8 * (half % 4) + 2 * (half // 4)), 3)
    return mul_f32(scale, sub_f32(to_f32(or_i32(low, shift_left(high, 4))), splat_f32(32.0)))


@_function
def q3_k(at, out):
    """Eight groups, each of two scales."""
    ahead(at, 1760)
    scale = load_f16x16(at + 1728)
    for half in range(16):
        group, which = half // 2, half % 2
        s = q3_k_scale(at + 1536, half, scale)
        m = mul_f32(s, splat_f32(-4.0))
        pairs, plane = load_u8x64(at + 192 * group + 64 * which), load_u8x64(at + 192 * group + 128)
        for part in range(4):
            codes = or_u8(low_pairs(pairs, part), third_bit(plane, 4 * which + part))
            four_columns(codes, s, m, out + 512 * half + 128 * part)


def _places(values):
    """A group whose nibbles are places in a table."""

    @_device
    def places(at, scale, minimum, out):
        for quarter in range(4):
            packed = load_u8x64(at + 64 * quarter)
            four_columns(values(low_nibbles(packed)), scale, minimum, out + 256 * quarter)
            four_columns(values(high_nibbles(packed)), scale, minimum, out + 256 * quarter + 128)

    return places


_iq4_places = _places(iq4_values)
_mxfp4_places = _places(mxfp4_values)


@_function
def iq4_nl(at, out):
    """One group."""
    ahead(at, 288)
    scale = load_f16x16(at + 256)
    _iq4_places(at, scale, mul_f32(scale, splat_f32(-127.0)), out)


@_device
def iq4_xs_scale(at, group, scale):
    """A group's scale of six bits: four in a word, two in one of two bytes after it."""
    low = and_i32(shift_right(load_i32x16(at), 4 * group), 15)
    high = and_i32(shift_right(load_i8x16(at + 64 + 16 * (group // 4)), 2 * (group % 4)), 3)
    return mul_f32(scale, sub_f32(to_f32(or_i32(low, shift_left(high, 4))), splat_f32(32.0)))


@_function
def iq4_xs(at, out):
    """Eight groups."""
    ahead(at, 2176)
    scale = load_f16x16(at + 2144)
    for group in range(8):
        s = iq4_xs_scale(at + 2048, group, scale)
        _iq4_places(at + 256 * group, s, mul_f32(s, splat_f32(-127.0)), out + GROUP_BYTES * group)


@_device
def half_power(exponents):
    """2**(exponent - 128); the two smallest, which are denormal, become 0 or the other."""
    return mul_f32(f32_from_bits(shift_left(and_i32(exponents, 255), 23)), splat_f32(0.5))


@_function
def mxfp4(at, out):
    """One group."""
    ahead(at, 272)
    scale = half_power(load_i8x16(at + 256))
    _mxfp4_places(at, scale, mul_f32(scale, splat_f32(-12.0)), out)


# Of each format: how a tile's block is unpacked, its bytes, and its groups of 32 columns.
UNPACKED = {
    "Q4_0": (q4_0, 16 * 18, 1),
    "Q4_1": (q4_1, 16 * 20, 1),
    "Q5_0": (q5_0, 16 * 22, 1),
    "Q5_1": (q5_1, 16 * 24, 1),
    "Q8_0": (q8_0, 16 * 34, 1),
    "Q2_K": (q2_k, 16 * 84, 8),
    "Q3_K": (q3_k, 16 * 110, 8),
    "Q4_K": (q4_k, 16 * 144, 8),
    "Q5_K": (q5_k, 16 * 176, 8),
    "Q6_K": (q6_k, 16 * 210, 8),
    "IQ4_NL": (iq4_nl, 16 * 18, 1),
    "IQ4_XS": (iq4_xs, 16 * 136, 8),
    "MXFP4": (mxfp4, 16 * 17, 1),
}
