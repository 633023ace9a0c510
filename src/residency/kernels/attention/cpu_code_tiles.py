"""Codes in tile registers (Intel AMX): in decode as bytes, of all heads that share them; in prompts as bfloat16.

See cpu_codes for what lies where in a page.
"""

from numba import njit

from residency.kernels.attention.cpu_rows import FACTORS, MAX_ROWS, QUERIES, SCORE_STRIDE, SCORES
from residency.kernels.attention.cpu_tiles import PAGE_TOKENS, PAIR_BYTES, TILE_VALUES
from residency.kernels.simd.language import (
    add_i32,
    and_i32,
    as_i32,
    bf16_pairs,
    fma,
    high_nibbles,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i32,
    load_i32x16,
    load_u8x64,
    low_nibbles,
    mul_f32,
    shift_left,
    shift_right,
    splat_f32,
    splat_i32,
    store_f32x16,
    store_i32x16,
    tile_dot_i8u8,
    tile_load,
    tile_store,
    tile_zero,
    to_f32,
)

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)

_CODES_TILE, _PRODUCT_STRIDE = 1024, 256

# What cpu_codes keeps after the rows' queries and weighted values: scales and starts of queries and of weights (a start
# is what a row's two sums begin with, so that what was added to the other codes falls out); values' scales; where four
# pages' values and the next four's keys are; each row's sum of exponentials, largest weight and sum of codes, in 16
# lanes; codes of weights, then of queries; then tiles.
QUERY_SCALES, QUERY_STARTS, WEIGHT_SCALES, WEIGHT_STARTS, VALUE_SCALES = 0, 64, 128, 192, 256
VALUES_AT, LATER_KEYS_AT = 512, 544
TOTALS, TOPS, CODE_SUMS, WEIGHT_CODES, QUERY_CODES = (576 + 1024 * i for i in range(5))


@_device
def _joined(products, row, column, starts):
    """16 sums of a row: of its upper terms times 256, of its lower ones, and what they start with."""
    at = products + 2 * _PRODUCT_STRIDE * row + 64 * column
    start = splat_i32(load_i32(starts + 8 * row + 4))
    sums = add_i32(shift_left(load_i32x16(at), 8), load_i32x16(at + _PRODUCT_STRIDE))
    return to_f32(add_i32(sums, start))


@_device
def _store_products(products):
    tile_store(0, products, _PRODUCT_STRIDE)
    tile_store(1, products + 64, _PRODUCT_STRIDE)
    tile_store(2, products + 128, _PRODUCT_STRIDE)
    tile_store(3, products + 192, _PRODUCT_STRIDE)


@_device
def _zero_registers():
    tile_zero(0)
    tile_zero(1)
    tile_zero(2)
    tile_zero(3)


@_device
def _key_tile_4(keys, out):
    """64 values of the keys of a page of 4 bits, a byte each."""
    for i in range(0, 8):
        both = load_u8x64(keys + 64 * i)
        store_i32x16(out + 128 * i, as_i32(low_nibbles(both)))
        store_i32x16(out + 128 * i + 64, as_i32(high_nibbles(both)))


@_function
def multiply_keys(
    rows, scratch, parts, table, pages, page_bytes, key_offset, scale_offset, head_dim, tile, last, value_bits
):
    """Scores of four pages' keys; where fewer are left, of the last again."""
    codes = parts + QUERY_CODES
    room = codes + 16 * head_dim + 64
    products, tiles = room, room + 16 * _PRODUCT_STRIDE
    _zero_registers()
    first = pages + page_bytes * load_i32(table + 4 * min(tile, last))
    second = pages + page_bytes * load_i32(table + 4 * min(tile + 1, last))
    third = pages + page_bytes * load_i32(table + 4 * min(tile + 2, last))
    fourth = pages + page_bytes * load_i32(table + 4 * min(tile + 3, last))
    for d in range(0, head_dim, TILE_VALUES):
        at = key_offset + 2 * value_bits * d
        k0, k1, k2, k3 = first + at, second + at, third + at, fourth + at
        if value_bits == 4:
            _key_tile_4(k0, tiles)
            _key_tile_4(k1, tiles + _CODES_TILE)
            _key_tile_4(k2, tiles + 2 * _CODES_TILE)
            _key_tile_4(k3, tiles + 3 * _CODES_TILE)
            k0, k1, k2, k3 = tiles, tiles + _CODES_TILE, tiles + 2 * _CODES_TILE, tiles + 3 * _CODES_TILE
        tile_load(4, codes + d, head_dim)
        tile_load(6, k0, 64)
        tile_dot_i8u8(0, 4, 6)
        tile_load(7, k1, 64)
        tile_dot_i8u8(1, 4, 7)
        tile_load(6, k2, 64)
        tile_dot_i8u8(2, 4, 6)
        tile_load(7, k3, 64)
        tile_dot_i8u8(3, 4, 7)
    _store_products(products)
    s0, s1 = load_f16x16(first + scale_offset), load_f16x16(second + scale_offset)
    s2, s3 = load_f16x16(third + scale_offset), load_f16x16(fourth + scale_offset)
    starts = parts + QUERY_STARTS
    for row in range(rows):
        at, scale = scratch + SCORES + SCORE_STRIDE * row, splat_f32(load_f32(parts + QUERY_SCALES + 4 * row))
        store_f32x16(at, mul_f32(_joined(products, row, 0, starts), mul_f32(s0, scale)))
        store_f32x16(at + 64, mul_f32(_joined(products, row, 1, starts), mul_f32(s1, scale)))
        store_f32x16(at + 128, mul_f32(_joined(products, row, 2, starts), mul_f32(s2, scale)))
        store_f32x16(at + 192, mul_f32(_joined(products, row, 3, starts), mul_f32(s3, scale)))


@_device
def _gather_values_8(values, head_dim, out):
    """64 values of the 16 tokens of a page: four rows of each of four tiles."""
    for token in range(0, PAGE_TOKENS, 4):
        for i in range(0, 4):
            codes = as_i32(load_u8x64(values + head_dim * token + 64 * i))
            store_i32x16(out + _CODES_TILE * i + 16 * token, codes)


@_device
def _gather_values_4(values, head_dim, out):
    for token in range(0, PAGE_TOKENS, 4):
        for i in range(0, 2):
            both = load_u8x64(values + head_dim // 2 * token + 64 * i)
            store_i32x16(out + 2 * _CODES_TILE * i + 16 * token, as_i32(low_nibbles(both)))
            store_i32x16(out + 2 * _CODES_TILE * i + _CODES_TILE + 16 * token, as_i32(high_nibbles(both)))


@_function
def multiply_values(rows, scratch, parts, table, pages, page_bytes, value_offset, head_dim, tile, last, value_bits):
    """Add four pages' weighted values; where fewer are left, the last again, which weighs nothing then."""
    room = parts + QUERY_CODES + 16 * head_dim + 64
    products, tiles = room, room + 16 * _PRODUCT_STRIDE
    starts, scales = parts + WEIGHT_STARTS, parts + WEIGHT_SCALES
    for d in range(0, head_dim, TILE_VALUES):
        for i in range(4):
            page = pages + page_bytes * load_i32(table + 4 * min(tile + i, last))
            values = page + value_offset + value_bits // 2 * d
            if value_bits == 8:
                _gather_values_8(values, head_dim, tiles + 256 * i)
            else:
                _gather_values_4(values, head_dim, tiles + 256 * i)
        _zero_registers()
        tile_load(4, parts + WEIGHT_CODES, 64)
        tile_load(6, tiles, 64)
        tile_dot_i8u8(0, 4, 6)
        tile_load(7, tiles + _CODES_TILE, 64)
        tile_dot_i8u8(1, 4, 7)
        tile_load(6, tiles + 2 * _CODES_TILE, 64)
        tile_dot_i8u8(2, 4, 6)
        tile_load(7, tiles + 3 * _CODES_TILE, 64)
        tile_dot_i8u8(3, 4, 7)
        _store_products(products)
        for row in range(rows):
            scale, factor = splat_f32(load_f32(scales + 4 * row)), splat_f32(load_f32(scratch + FACTORS + 4 * row))
            weighted = scratch + QUERIES + 4 * head_dim * (MAX_ROWS + row) + 4 * d
            for i in range(4):
                before = mul_f32(load_f32x16(weighted + 64 * i), factor)
                store_f32x16(weighted + 64 * i, fma(_joined(products, row, i, starts), scale, before))


@_device
def _store_pairs(codes, offset, at):
    """Codes of 16 columns and 4 rows each as two rows of pairs in bfloat16, which holds them exactly."""
    four = as_i32(codes)
    first = to_f32(add_i32(and_i32(four, 255), splat_i32(-offset)))
    second = to_f32(add_i32(and_i32(shift_right(four, 8), 255), splat_i32(-offset)))
    third = to_f32(add_i32(and_i32(shift_right(four, 16), 255), splat_i32(-offset)))
    fourth = to_f32(add_i32(shift_right(four, 24), splat_i32(-offset)))
    store_i32x16(at, bf16_pairs(first, second))
    store_i32x16(at + 64, bf16_pairs(third, fourth))


@_function
def _split_keys_8(page_at, head_dim, out):
    for d in range(0, head_dim, 4):
        _store_pairs(load_u8x64(page_at + 16 * d), 128, out + PAIR_BYTES * (d // 32) + 32 * (d % 32))


@_function
def _split_values_8(page_at, head_dim, out):
    for token in range(0, PAGE_TOKENS, 4):
        for d in range(0, head_dim, 16):
            codes = load_u8x64(page_at + head_dim * token + 4 * d)
            _store_pairs(codes, 128, out + PAIR_BYTES * (d // 16) + 32 * token)


@_function
def _split_keys_4(page_at, head_dim, out):
    for d in range(0, head_dim, 8):
        both, place = load_u8x64(page_at + 8 * d), out + PAIR_BYTES * (d // 32) + 32 * (d % 32)
        _store_pairs(low_nibbles(both), 8, place)
        _store_pairs(high_nibbles(both), 8, place + 128)


@_function
def _split_values_4(page_at, head_dim, out):
    for token in range(0, PAGE_TOKENS, 4):
        for d in range(0, head_dim, 32):
            both, place = load_u8x64(page_at + head_dim // 2 * token + 2 * d), out + PAIR_BYTES * (d // 16) + 32 * token
            _store_pairs(low_nibbles(both), 8, place)
            _store_pairs(high_nibbles(both), 8, place + PAIR_BYTES)


def code_pages(value_bits):
    """As cpu_tiles.float_pages, of codes: in one term."""
    return (_split_keys_8, _split_values_8) if value_bits == 8 else (_split_keys_4, _split_values_4)
