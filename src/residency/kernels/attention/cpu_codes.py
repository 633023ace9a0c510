"""Attention over pages of integers: bytes are multiplied and added four at a time, and scaled afterwards.

A page holds codes, stored with half their range added, and then, of each key-value head, the float16 scales of its 16
keys and of its 16 values. Keys lie as [head_dim / 4][16 tokens][4], values as [4][head_dim][4 tokens]. Codes of 4 bits:
a byte's lower half belongs to the first, its upper half to the second of two vectors that would follow each other.
Queries, and weights times their values' scales, are rounded to 16 bits, in two terms of 8 with signs.
"""

from numba import njit

from residency.kernels.attention.cpu_rows import (
    FACTORS,
    MAX_ROWS,
    QUERIES,
    SCORE_STRIDE,
    SCORES,
    TILE_PAGES,
    exponentials,
    mask,
)
from residency.kernels.attention.cpu_tiles import PAGE_TOKENS, PAIR_BYTES
from residency.kernels.simd.codes import join_terms, splats_i32
from residency.kernels.simd.language import (
    abs_f32,
    add_each,
    add_i32,
    and_i32,
    as_i32,
    bf16_pairs,
    dot4_each,
    dot4_full_each,
    fma_each,
    high_nibbles,
    largest_f32,
    load_f16x16,
    load_f32x16,
    load_i32,
    load_rows_f32,
    load_u8x64,
    low_nibbles,
    max_f32,
    mul_f32,
    mul_splat_each,
    prefetch,
    round_f32,
    shift_right,
    splat_f32,
    splat_i32,
    store_each,
    store_f32,
    store_f32x16,
    store_i8x16,
    store_i32,
    store_i32x16,
    sum_i32,
    to_f32,
    to_f32_each,
    to_i32,
    zeros_f32,
)

LARGEST = 32512  # of 16 bits in two terms: 127 * 256
LEAST = 1e-30  # rows of smaller values are 0: the inverse of their scale would be infinite
_TILE_TOKENS = PAGE_TOKENS * TILE_PAGES
_CODES_BYTES = 2 * MAX_ROWS * _TILE_TOKENS

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)

# After the rows' queries and weighted values: scales of queries and weights, where their sums start, their codes.


@_device
def _query_scales(scratch, head_dim):
    return scratch + QUERIES + 8 * head_dim * MAX_ROWS


@_device
def _query_starts(scratch, head_dim):
    return _query_scales(scratch, head_dim) + 64


@_device
def _weight_scales(scratch, head_dim):
    return _query_scales(scratch, head_dim) + 128


@_device
def _weight_starts(scratch, head_dim):
    return _query_scales(scratch, head_dim) + 192


@_device
def _value_scales(scratch, head_dim):
    return _query_scales(scratch, head_dim) + 256


@_device
def _weight_codes(scratch, head_dim):
    return _value_scales(scratch, head_dim) + 4 * _TILE_TOKENS


@_device
def _query_codes(scratch, head_dim):
    return _weight_codes(scratch, head_dim) + _CODES_BYTES


@_device
def _store_terms(codes, at, distance):
    """16 codes as their upper terms and, `distance` bytes on, their lower ones: the low bytes, as signed numbers."""
    upper = shift_right(add_i32(codes, splat_i32(32768 + 128)), 8)
    store_i8x16(at, add_i32(upper, splat_i32(-128)))
    store_i8x16(at + distance, codes)


@_function
def _encode(values, count, codes, scales_at, starts_at, row, offset):
    """Round a row to 16 bits; where its sums start, so that what was added to the other codes falls out."""
    largest = splat_f32(0.0)
    for i in range(0, count, 16):
        largest = max_f32(largest, abs_f32(load_f32x16(values + 4 * i)))
    top = largest_f32(largest)
    inverse = LARGEST / top if top > LEAST else 0.0
    total = splat_i32(0)
    for i in range(0, count, 16):
        rounded = to_i32(round_f32(mul_f32(load_f32x16(values + 4 * i), splat_f32(inverse))))
        _store_terms(rounded, codes + 2 * count * row + i, count)
        total = add_i32(total, rounded)
    store_f32(scales_at + 4 * row, top / LARGEST)
    store_i32(starts_at + 8 * row, 0)
    store_i32(starts_at + 8 * row + 4, -offset * sum_i32(total))


@_function
def _encode_weights(rows, scratch, head_dim, tile_tokens, offset):
    """Exponentials times their values' scales to codes; tokens that a short tile lacks weigh nothing."""
    scales = _value_scales(scratch, head_dim)
    for row in range(rows):
        weights = scratch + SCORES + SCORE_STRIDE * row
        for i in range(0, tile_tokens, 16):
            store_f32x16(weights + 4 * i, mul_f32(load_f32x16(weights + 4 * i), load_f32x16(scales + 4 * i)))
        for i in range(tile_tokens, _TILE_TOKENS, 16):
            store_f32x16(weights + 4 * i, splat_f32(0.0))
        codes, factors = _weight_codes(scratch, head_dim), _weight_scales(scratch, head_dim)
        _encode(weights, _TILE_TOKENS, codes, factors, _weight_starts(scratch, head_dim), row, offset)


@_device
def _key_dots_8(sums, keys, queries, head_dim):
    for d in range(0, head_dim, 4):
        sums = dot4_full_each(sums, load_u8x64(keys + 16 * d), queries + d, head_dim)
    return sums


@_device
def _key_dots_4(sums, keys, queries, head_dim):
    for d in range(0, head_dim, 8):
        both = load_u8x64(keys + 8 * d)
        sums = dot4_each(sums, low_nibbles(both), queries + d, head_dim)
        sums = dot4_each(sums, high_nibbles(both), queries + d + 4, head_dim)
    return sums


@_device
def _value_dots_8(sums, values, weights, head_dim, d):
    for token in range(0, PAGE_TOKENS, 4):
        sums = dot4_full_each(sums, load_u8x64(values + head_dim * token + 4 * d), weights + token, _TILE_TOKENS)
    return sums


@_device
def _value_dots_4(sums, values, weights, head_dim, d):
    first = values + 2 * (d // 32 * 32)
    if d % 32 == 0:
        for token in range(0, PAGE_TOKENS, 4):
            codes = low_nibbles(load_u8x64(first + head_dim // 2 * token))
            sums = dot4_each(sums, codes, weights + token, _TILE_TOKENS)
    else:
        for token in range(0, PAGE_TOKENS, 4):
            codes = high_nibbles(load_u8x64(first + head_dim // 2 * token))
            sums = dot4_each(sums, codes, weights + token, _TILE_TOKENS)
    return sums


def attend_codes_by(rows, value_bits):
    """As cpu._attend_by, over codes of 8 or 4 bits."""
    key_dots, value_dots = (_key_dots_8, _value_dots_8) if value_bits == 8 else (_key_dots_4, _value_dots_4)
    offset = 1 << (value_bits - 1)
    terms = 2 * rows

    @_function
    def attend(
        scratch, table, pages, page_bytes, key_offset, value_offset, scale_offset, head_dim, first_page, last_page
    ):
        head_bytes = 2 * value_bits * head_dim
        row_bytes = 4 * head_dim
        weighted = scratch + QUERIES + MAX_ROWS * row_bytes
        queries, query_scales = _query_codes(scratch, head_dim), _query_scales(scratch, head_dim)
        value_scales, weights = _value_scales(scratch, head_dim), _weight_codes(scratch, head_dim)
        for row in range(rows):
            values = scratch + QUERIES + row_bytes * row
            _encode(values, head_dim, queries, query_scales, _query_starts(scratch, head_dim), row, offset)
        for tile in range(first_page, last_page, TILE_PAGES):
            tile_pages = min(TILE_PAGES, last_page - tile)
            for i in range(tile_pages):
                page = pages + page_bytes * load_i32(table + 4 * (tile + i))
                for line in range(0, head_bytes, 64):
                    prefetch(page + value_offset + line)
                sums = splats_i32(terms, _query_starts(scratch, head_dim), 4)
                dots = join_terms(key_dots(sums, page + key_offset, queries, head_dim))
                key_scales = load_f16x16(page + scale_offset)
                scores = fma_each(to_f32_each(dots), key_scales, zeros_f32(rows))
                store_each(mul_splat_each(scores, query_scales, 4), scratch + SCORES + 64 * i, SCORE_STRIDE)
                store_f32x16(value_scales + 64 * i, load_f16x16(page + scale_offset + 32))
            for i in range(tile_pages):
                mask(scratch + SCORES, rows, scratch, tile + i, 64 * i)
            exponentials(rows, scratch, tile_pages)
            _encode_weights(rows, scratch, head_dim, PAGE_TOKENS * tile_pages, offset)
            for d in range(0, head_dim, 16):
                sums = splats_i32(terms, _weight_starts(scratch, head_dim), 4)
                for i in range(tile_pages):
                    page = pages + page_bytes * load_i32(table + 4 * (tile + i))
                    later = min(tile + TILE_PAGES + i, last_page - 1)
                    # The keys of the next tile start on their way.
                    ahead = pages + page_bytes * load_i32(table + 4 * later) + key_offset + 2 * value_bits * d
                    for line in range(0, 32 * value_bits, 64):
                        prefetch(ahead + line)
                    sums = value_dots(sums, page + value_offset, weights + 16 * i, head_dim, d)
                added = mul_splat_each(to_f32_each(join_terms(sums)), _weight_scales(scratch, head_dim), 4)
                before = mul_splat_each(load_rows_f32(rows, weighted + 4 * d, row_bytes), scratch + FACTORS, 4)
                store_each(add_each(before, added), weighted + 4 * d, row_bytes)

    return attend


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
