"""Rows of a tiled matrix as float32: the embeddings of the step's tokens, from the matrix that is also the output head.

One value at a time: a step embeds few tokens, and its time is lost beside the head's. Layouts: residency.formats.tiles.
"""

from numba import njit

from residency.formats import BF16, F16
from residency.formats.tabled import IQ4_TABLE, MXFP4_TABLE
from residency.kernels.simd.blocks import GROUP, share_start
from residency.kernels.simd.language import (
    load_bf16,
    load_f16,
    load_f32,
    load_i8,
    load_i32,
    load_i64,
    load_u8,
    store_f32,
)
from residency.kernels.simd.table import KernelTable

_device = njit(error_model="numpy", nogil=True, forceinline=True)


@_device
def _nibble(at, lane, column):
    """The four low bits of a code; `at` is where the codes of its group of 32 columns begin."""
    byte = load_u8(at + 64 * (column % 32 // 8) + 4 * lane + column % 4)
    return (byte >> (4 * (column // 4 % 2))) & 15


@_device
def _plane_bit(at, lane, column):
    """The fifth bit of a code, in place; `at` is where the plane of its group begins."""
    byte = load_u8(at + 4 * lane + column % 4)
    return ((byte >> (2 * (column % 32 // 8) + column // 4 % 2)) & 1) << 4


def _small(scale_at, offset, has_minimum, has_plane):
    """Q4_0, Q4_1, Q5_0, Q5_1."""

    @_device
    def value(at, lane, column):
        code = _nibble(at, lane, column)
        if has_plane:
            code |= _plane_bit(at + 256, lane, column)
        scale = load_f16(at + scale_at + 2 * lane)
        minimum = load_f16(at + scale_at + 32 + 2 * lane) if has_minimum else -offset * scale
        return code * scale + minimum

    return value


@_device
def _q8_0(at, lane, column):
    code = load_u8(at + 64 * (column // 4) + 4 * lane + column % 4)
    return (code - 128) * load_f16(at + 512 + 2 * lane)


def _k(scales_at, has_plane):
    """Q4_K, Q5_K."""

    @_device
    def value(at, lane, column):
        group = column // 32
        code = _nibble(at + 256 * group, lane, column)
        if has_plane:
            code |= _plane_bit(at + 2048 + 64 * group, lane, column)
        words = at + scales_at + 4 * lane
        scales, minima, lows = load_i32(words), load_i32(words + 64), load_i32(words + 128)
        if group < 4:
            scale = (scales >> (8 * group)) & 63
            minimum = (minima >> (8 * group)) & 63
        else:
            shift = 8 * (group - 4)
            scale = ((lows >> shift) & 15) | (((scales >> (shift + 6)) & 3) << 4)
            minimum = ((lows >> (shift + 4)) & 15) | (((minima >> (shift + 6)) & 3) << 4)
        ends = at + scales_at + 192 + 2 * lane
        return load_f16(ends) * scale * code - load_f16(ends + 32) * minimum

    return value


@_device
def _q6_k(at, lane, column):
    half = column // 16
    low = load_u8(at + 192 * half + 64 * (column % 16 // 8) + 4 * lane + column % 4)
    pairs = load_u8(at + 192 * half + 128 + 4 * lane + column % 4)
    code = ((low >> (4 * (column // 4 % 2))) & 15) | (((pairs >> (2 * (column % 16 // 4))) & 3) << 4)
    return load_f16(at + 3328 + 2 * lane) * load_i8(at + 3072 + 16 * half + lane) * (code - 32)


@_device
def _pair(at, lane, column):
    """The two low bits of a code of its group of 16 columns."""
    return (load_u8(at + 4 * lane + column % 4) >> (2 * (column % 16 // 4))) & 3


@_device
def _q2_k(at, lane, column):
    half = column // 16
    bits, ends = load_u8(at + 1024 + 16 * half + lane), at + 1280 + 2 * lane
    return load_f16(ends) * (bits & 15) * _pair(at + 64 * half, lane, column) - load_f16(ends + 32) * (bits >> 4)


@_device
def _q3_k(at, lane, column):
    half, group = column // 16, at + 192 * (column // 32)
    third = (load_u8(group + 128 + 4 * lane + column % 4) >> (column % 32 // 4)) & 1
    code = _pair(group + 64 * (half % 2), lane, column) | (third << 2)
    words = at + 1536 + 4 * lane
    low = (load_i32(words + 64 * (half // 4 % 2)) >> (8 * (half % 4) + 4 * (half // 8))) & 15
    high = (load_i32(words + 128) >> (8 * (half % 4) + 2 * (half // 4))) & 3
    return load_f16(at + 1728 + 2 * lane) * ((low | (high << 4)) - 32) * (code - 4)


@_device
def _iq4_nl(at, lane, column):
    return load_f16(at + 256 + 2 * lane) * IQ4_TABLE[_nibble(at, lane, column)]


@_device
def _iq4_xs(at, lane, column):
    group = column // 32
    low = (load_i32(at + 2048 + 4 * lane) >> (4 * group)) & 15
    high = (load_u8(at + 2112 + 16 * (group // 4) + lane) >> (2 * (group % 4))) & 3
    scale = load_f16(at + 2144 + 2 * lane) * ((low | (high << 4)) - 32)
    return scale * IQ4_TABLE[_nibble(at + 256 * group, lane, column)]


@_device
def _mxfp4(at, lane, column):
    scale = 2.0 ** (load_u8(at + 256 + lane) - 128)
    return scale * MXFP4_TABLE[_nibble(at, lane, column)]


def _grouped(fmt):
    """Integers in groups."""
    bits, group_bytes, has_zero, middle = fmt.bits, 64 * fmt.bits, fmt.has_zero, fmt.middle
    zero_at = 16 * fmt.code_bytes
    scale_at, scale_bytes = zero_at + 16 * fmt.has_zero, fmt.scales.block_bytes
    load = {F16: load_f16, BF16: load_bf16}.get(fmt.scales, load_f32)

    @_device
    def code(at, lane, column):
        if bits == 8:
            return load_u8(at + 64 * (column // 4) + 4 * lane + column % 4)
        if bits == 4:
            return _nibble(at, lane, column)
        low = _pair(at + 64 * (column // 16), lane, column)
        if bits == 3:
            low |= ((load_u8(at + 128 + 4 * lane + column % 4) >> (column // 4)) & 1) << 2
        return low

    @_device
    def value(at, lane, column):
        zero = load_u8(at + zero_at + lane) if has_zero else middle
        scale = load(at + scale_at + scale_bytes * lane)
        return scale * (code(at + group_bytes * (column // 32), lane, column % 32) - zero)

    return value


def _float(load, value_bytes):
    @_device
    def value(at, lane, column):
        return load(at + value_bytes * (16 * column + lane))

    return value


def _kernel(value, block_values, block_bytes):
    def embed(tokens, weights, columns, factor: float, out, out_stride, tokens_at, thread, threads):
        row_bytes = block_bytes * (columns // block_values)
        groups = columns // GROUP
        units = load_i64(tokens_at) * groups
        for unit in range(share_start(units, thread, threads), share_start(units, thread + 1, threads)):
            row = unit // groups
            token = load_i64(tokens + 8 * row)
            tile = weights + row_bytes * (token // 16)
            for column in range(GROUP * (unit % groups), GROUP * (unit % groups + 1)):
                block = tile + block_bytes * (column // block_values)
                values = value(block, token % 16, column % block_values)
                store_f32(out + out_stride * row + 4 * column, values * factor)

    return embed


KERNELS = KernelTable(
    {
        "Q4_0": _kernel(_small(256, 8.0, False, False), 32, 16 * 18),
        "Q4_1": _kernel(_small(256, 0.0, True, False), 32, 16 * 20),
        "Q5_0": _kernel(_small(320, 16.0, False, True), 32, 16 * 22),
        "Q5_1": _kernel(_small(320, 0.0, True, True), 32, 16 * 24),
        "Q8_0": _kernel(_q8_0, 32, 16 * 34),
        "Q2_K": _kernel(_q2_k, 256, 16 * 84),
        "Q3_K": _kernel(_q3_k, 256, 16 * 110),
        "Q4_K": _kernel(_k(2048, False), 256, 16 * 144),
        "Q5_K": _kernel(_k(2560, True), 256, 16 * 176),
        "Q6_K": _kernel(_q6_k, 256, 16 * 210),
        "IQ4_NL": _kernel(_iq4_nl, 32, 16 * 18),
        "IQ4_XS": _kernel(_iq4_xs, 256, 16 * 136),
        "MXFP4": _kernel(_mxfp4, 32, 16 * 17),
        "F32": _kernel(_float(load_f32, 4), 1, 16 * 4),
        "F16": _kernel(_float(load_f16, 2), 1, 16 * 2),
        "BF16": _kernel(_float(load_bf16, 2), 1, 16 * 2),
    },
    lambda _, fmt: _kernel(_grouped(fmt), fmt.block_values, 16 * fmt.block_bytes),
)
