"""Attention over pages of integers: bytes are multiplied and added four at a time, and scaled afterwards.

A page holds codes, stored with half their range added, and then, of each key-value head, the float16 scales of its 16
keys and of its 16 values. Keys lie as [head_dim / 4][16 tokens][4], values as [4][head_dim][4 tokens]. Codes of 4 bits:
a byte's lower half belongs to the first, its upper half to the second of two vectors that would follow each other.
Queries, and weights times their values' scales, are rounded to 16 bits, in two terms of 8 with signs.
"""

from numba import njit

from residency.kernels.attention.cpu_code_tiles import (
    CODE_SUMS,
    LATER_KEYS_AT,
    QUERY_CODES,
    QUERY_SCALES,
    QUERY_STARTS,
    TOPS,
    TOTALS,
    VALUE_SCALES,
    VALUES_AT,
    WEIGHT_CODES,
    WEIGHT_SCALES,
    WEIGHT_STARTS,
    multiply_keys,
    multiply_values,
)
from residency.kernels.attention.cpu_rows import (
    FACTORS,
    MAX_ROWS,
    MAXIMA,
    NEXT,
    QUERIES,
    SCORE_STRIDE,
    SCORES,
    SUMS,
    TILE_PAGES,
    mask,
)
from residency.kernels.attention.cpu_tiles import MASKED, PAGE_TOKENS, TILE_VALUES, configure, exp_below, weighted
from residency.kernels.simd.blocks import HAS_TILES, exp_f32
from residency.kernels.simd.codes import bits_f32, join_terms, splats_i32
from residency.kernels.simd.language import (
    abs_f32,
    add_each,
    add_f32,
    add_i32,
    dot4_each,
    dot4_full_each,
    fma,
    fma_each,
    high_nibbles,
    largest_each,
    largest_f32,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    load_rows_f32,
    load_u8x64,
    low_nibbles,
    max_each,
    max_f32,
    mul_f32,
    mul_splat_each,
    prefetch,
    reciprocal,
    shift_right,
    splat_f32,
    splat_i32,
    store_each,
    store_f32,
    store_f32x16,
    store_i8x16,
    store_i32,
    store_i64,
    sub_f32,
    sum_each,
    sum_f32,
    tile_release,
    to_f32_each,
    zeros_f32,
)

LARGEST = 32512.0  # of 16 bits in two terms: 127 * 256
LEAST = 1e-30  # a row of smaller values is 0: the inverse of its scale would be infinite
WHOLE = 12582912.0  # 1.5 * 2**23: what is added to it is rounded, and its low bits are the number's
TILE_TOKENS = PAGE_TOKENS * TILE_PAGES

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)
_exp = exp_below if HAS_TILES else exp_f32


@_device
def _place(scratch, head_dim, part):
    return scratch + QUERIES + 8 * head_dim * MAX_ROWS + part


@_device
def _store_terms(x, at, distance):
    """16 numbers, rounded, as their upper terms and, `distance` bytes on, their lower ones; returns them, rounded."""
    whole = add_f32(x, splat_f32(WHOLE))
    store_i8x16(at, shift_right(add_i32(bits_f32(whole), splat_i32(128)), 8))
    store_i8x16(at + distance, bits_f32(whole))
    return sub_f32(whole, splat_f32(WHOLE))


@_function
def _encode_queries(rows, scratch, head_dim, offset):
    """Round scaled queries to 16 bits, each by its largest value."""
    for row in range(rows):
        query = scratch + QUERIES + 4 * head_dim * row
        largest = splat_f32(0.0)
        for i in range(0, 4 * head_dim, 64):
            largest = max_f32(largest, abs_f32(load_f32x16(query + i)))
        top = largest_f32(largest)
        inverse = splat_f32(LARGEST / top if top > LEAST else 0.0)
        codes = _place(scratch, head_dim, QUERY_CODES) + 2 * head_dim * row
        total = splat_f32(0.0)
        for i in range(0, head_dim, 16):
            rounded = _store_terms(mul_f32(load_f32x16(query + 4 * i), inverse), codes + i, head_dim)
            total = add_f32(total, rounded)
        store_f32(_place(scratch, head_dim, QUERY_SCALES) + 4 * row, top / LARGEST)
        starts = _place(scratch, head_dim, QUERY_STARTS) + 8 * row
        store_i32(starts, 0)
        store_i32(starts + 4, -offset * int(sum_f32(total)))


@_device
def _prefetch_part(places, head_bytes, part, parts):
    """A part of what four places hold starts on its way: in parts, as only so many lines can be on theirs."""
    for i in range(TILE_PAGES):
        at = load_i64(places + 8 * i)
        for line in range(head_bytes * part // parts, head_bytes * (part + 1) // parts, 64):
            prefetch(at + line)


@_function
def _exponentials(rows, scratch, head_dim, head_bytes):
    """Scores of four pages to exponentials under the running maximum, times their values' scales.

    Statistics are vectors: a lane is a row. Lanes of rows that there are not hold anything.
    """
    scores, scales = scratch + SCORES, _place(scratch, head_dim, VALUE_SCALES)
    totals, tops = _place(scratch, head_dim, TOTALS), _place(scratch, head_dim, TOPS)
    low = max_each(load_rows_f32(16, scores, SCORE_STRIDE), load_rows_f32(16, scores + 64, SCORE_STRIDE))
    high = max_each(load_rows_f32(16, scores + 128, SCORE_STRIDE), load_rows_f32(16, scores + 192, SCORE_STRIDE))
    before = load_f32x16(scratch + MAXIMA)
    maximum = max_f32(before, largest_each(max_each(low, high)))
    factor = _exp(sub_f32(before, maximum))
    store_f32x16(scratch + MAXIMA, maximum)
    store_f32x16(scratch + FACTORS, factor)
    for row in range(rows):
        _prefetch_part(_place(scratch, head_dim, VALUES_AT), head_bytes, row, rows)
        at = scores + SCORE_STRIDE * row
        top = splat_f32(load_f32(scratch + MAXIMA + 4 * row))
        total, largest = splat_f32(0.0), splat_f32(0.0)
        for i in range(0, 64 * TILE_PAGES, 64):
            e = _exp(sub_f32(load_f32x16(at + i), top))
            weight = weighted(e, scales + i)
            total, largest = add_f32(total, e), max_f32(largest, weight)
            store_f32x16(at + i, weight)
        store_f32x16(totals + 64 * row, total)
        store_f32x16(tops + 64 * row, largest)
    total = sum_each(load_rows_f32(16, totals, 64))
    store_f32x16(scratch + SUMS, fma(load_f32x16(scratch + SUMS), factor, total))


@_function
def _encode_weights(rows, scratch, head_dim, head_bytes, offset):
    """What _exponentials leaves, rounded to 16 bits, each row by its largest."""
    scores, tops = scratch + SCORES, _place(scratch, head_dim, TOPS)
    largest = max_f32(largest_each(load_rows_f32(16, tops, 64)), splat_f32(LEAST))
    inverses, factors = tops, _place(scratch, head_dim, WEIGHT_SCALES)
    store_f32x16(factors, mul_f32(largest, splat_f32(1.0 / LARGEST)))
    store_f32x16(inverses, mul_f32(reciprocal(largest), splat_f32(LARGEST)))
    sums, codes = _place(scratch, head_dim, CODE_SUMS), _place(scratch, head_dim, WEIGHT_CODES)
    for row in range(rows):
        _prefetch_part(_place(scratch, head_dim, LATER_KEYS_AT), head_bytes, row, rows)
        at, inverse = scores + SCORE_STRIDE * row, splat_f32(load_f32(inverses + 4 * row))
        place, total = codes + 2 * TILE_TOKENS * row, splat_f32(0.0)
        for i in range(0, TILE_TOKENS, 16):
            rounded = _store_terms(mul_f32(load_f32x16(at + 4 * i), inverse), place + i, TILE_TOKENS)
            total = add_f32(total, rounded)
        store_f32x16(sums + 64 * row, total)
    store_f32x16(sums, sum_each(load_rows_f32(16, sums, 64)))
    starts = _place(scratch, head_dim, WEIGHT_STARTS)
    for row in range(rows):
        store_i32(starts + 8 * row, 0)
        store_i32(starts + 8 * row + 4, -offset * int(load_f32(sums + 4 * row)))


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
        sums = dot4_full_each(sums, load_u8x64(values + head_dim * token + 4 * d), weights + token, TILE_TOKENS)
    return sums


@_device
def _value_dots_4(sums, values, weights, head_dim, d):
    first = values + 2 * (d // 32 * 32)
    if d % 32 == 0:
        for token in range(0, PAGE_TOKENS, 4):
            codes = low_nibbles(load_u8x64(first + head_dim // 2 * token))
            sums = dot4_each(sums, codes, weights + token, TILE_TOKENS)
    else:
        for token in range(0, PAGE_TOKENS, 4):
            codes = high_nibbles(load_u8x64(first + head_dim // 2 * token))
            sums = dot4_each(sums, codes, weights + token, TILE_TOKENS)
    return sums


def attend_codes_by(rows, value_bits):
    """As cpu._attend_by, over codes of 8 or 4 bits; in tile registers where heads are whole ones wide."""
    key_dots, value_dots = (_key_dots_8, _value_dots_8) if value_bits == 8 else (_key_dots_4, _value_dots_4)
    offset = 1 << (value_bits - 1)
    terms = 2 * rows

    @_function
    def score(scratch, page, scale_offset, key_offset, head_dim, i):
        """Scores of one page's keys, the tile's i-th."""
        sums = splats_i32(terms, _place(scratch, head_dim, QUERY_STARTS), 4)
        dots = join_terms(key_dots(sums, page + key_offset, _place(scratch, head_dim, QUERY_CODES), head_dim))
        scores = fma_each(to_f32_each(dots), load_f16x16(page + scale_offset), zeros_f32(rows))
        scaled = mul_splat_each(scores, _place(scratch, head_dim, QUERY_SCALES), 4)
        store_each(scaled, scratch + SCORES + 64 * i, SCORE_STRIDE)

    @_function
    def add_values(scratch, table, pages, page_bytes, value_offset, head_dim, tile, tile_pages):
        """Add a tile's weighted values."""
        row_bytes = 4 * head_dim
        weighted = scratch + QUERIES + MAX_ROWS * row_bytes
        for d in range(0, head_dim, 16):
            sums = splats_i32(terms, _place(scratch, head_dim, WEIGHT_STARTS), 4)
            for i in range(tile_pages):
                page = pages + page_bytes * load_i32(table + 4 * (tile + i))
                sums = value_dots(
                    sums, page + value_offset, _place(scratch, head_dim, WEIGHT_CODES) + 16 * i, head_dim, d
                )
            added = mul_splat_each(to_f32_each(join_terms(sums)), _place(scratch, head_dim, WEIGHT_SCALES), 4)
            before = mul_splat_each(load_rows_f32(rows, weighted + 4 * d, row_bytes), scratch + FACTORS, 4)
            store_each(add_each(before, added), weighted + 4 * d, row_bytes)

    @_function
    def attend(
        scratch, table, pages, page_bytes, key_offset, value_offset, scale_offset, head_dim, first_page, last_page
    ):
        head_bytes = 2 * value_bits * head_dim
        value_scales = _place(scratch, head_dim, VALUE_SCALES)
        in_tiles = HAS_TILES and head_dim % TILE_VALUES == 0
        _encode_queries(rows, scratch, head_dim, offset)
        if in_tiles:
            configure(_place(scratch, head_dim, QUERY_CODES) + 16 * head_dim, 16)
        for tile in range(first_page, last_page, TILE_PAGES):
            tile_pages = min(TILE_PAGES, last_page - tile)
            for i in range(TILE_PAGES):
                page = pages + page_bytes * load_i32(table + 4 * min(tile + i, last_page - 1))
                later_keys, later_scales = load_i64(scratch + NEXT + 8 * i), load_i64(scratch + NEXT + 32 + 8 * i)
                if tile + TILE_PAGES < last_page:
                    later = pages + page_bytes * load_i32(table + 4 * min(tile + TILE_PAGES + i, last_page - 1))
                    later_keys, later_scales = later + key_offset, later + scale_offset
                prefetch(later_scales)
                store_i64(_place(scratch, head_dim, VALUES_AT) + 8 * i, page + value_offset)
                store_i64(_place(scratch, head_dim, LATER_KEYS_AT) + 8 * i, later_keys)
                if i < tile_pages:
                    store_f32x16(value_scales + 64 * i, load_f16x16(page + scale_offset + 32))
                    if not in_tiles:
                        score(scratch, page, scale_offset, key_offset, head_dim, i)
                else:
                    store_f32x16(value_scales + 64 * i, splat_f32(0.0))
            if in_tiles:
                multiply_keys(
                    rows, scratch, _place(scratch, head_dim, 0), table, pages, page_bytes, key_offset, scale_offset,
                    head_dim, tile, last_page - 1, value_bits,
                )  # fmt: skip
            for i in range(tile_pages):
                mask(scratch + SCORES, rows, scratch, tile + i, 64 * i)
            for row in range(rows):
                for i in range(tile_pages, TILE_PAGES):
                    store_f32x16(scratch + SCORES + SCORE_STRIDE * row + 64 * i, splat_f32(MASKED))
            _exponentials(rows, scratch, head_dim, head_bytes)
            _encode_weights(rows, scratch, head_dim, head_bytes, offset)
            if in_tiles:
                multiply_values(
                    rows, scratch, _place(scratch, head_dim, 0), table, pages, page_bytes, value_offset, head_dim,
                    tile, last_page - 1, value_bits,
                )  # fmt: skip
            else:
                add_values(scratch, table, pages, page_bytes, value_offset, head_dim, tile, tile_pages)
        if in_tiles:
            tile_release()

    return attend
