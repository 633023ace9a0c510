"""Flash attention of a prompt in tile registers (Intel AMX): 16 tokens of one head by 64 keys at a time.

Float32 queries and exponentials, and float16 keys and values, each become a sum of two bfloat16: the latter exactly,
the former to 17 bits. Of the product of two such sums the least term is left out. Codes of 8 or 4 bits are one bfloat16
each; their scales are for scores and weights. Keys and values are split once for all heads that share them, in a
thread's scratch memory.
"""

from numba import njit

from residency.kernels.simd.blocks import TILE_TOKENS, exp_f32
from residency.kernels.simd.language import (
    add_f32,
    add_i32,
    bf16_pairs,
    fma,
    lane_numbers,
    largest_each,
    less_than,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    load_rows_f32,
    max_each,
    max_f32,
    mul_f32,
    nearest_bf16,
    round_f32,
    select_f32,
    splat_f32,
    splat_i32,
    store_bf16x32,
    store_f32x16,
    store_i32x16,
    store_i64,
    sub_f32,
    sum_each,
    tile_configure,
    tile_dot_bf16,
    tile_load,
    tile_release,
    tile_store,
    tile_zero,
    times_power,
)

PAGE_TOKENS = 16
TILE_VALUES = 64  # of a head, at a time; of other heads nothing is computed here
PAGES = 4  # between two updates of the running maximum
MASKED = -1e30
LOWEST = -1e20  # where the running maximum starts: far above MASKED, so that a masked score's exponential is 0
PAIR_BYTES = 2048  # of a tile in bfloat16 and, from 1024 on, of what is left over

# A thread's scratch memory: registers' configuration; first and last key that each token may see; factors; scales of
# 64 keys and of their values; scores; weights; keys and values of 64 tokens; then of each head queries, sums of values,
# and 16 maxima and sums of weights.
FIRSTS, LASTS, FACTORS, KEY_SCALES, VALUE_SCALES, SCORES = 64, 192, 320, 384, 640, 896
WEIGHTS, KEYS = SCORES + 4096, SCORES + 8192
SCORE_STRIDE = 4 * PAGE_TOKENS * PAGES

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)


@_device
def _values_at(scratch, head_dim):
    return scratch + KEYS + 256 * head_dim


@_device
def _head_at(scratch, head_dim, head):
    """A head's queries; 64 * head_dim bytes on, its sums of values; as many more on, its maxima, then sums."""
    return scratch + KEYS + 512 * head_dim + (128 * head_dim + 128) * head


@_function
def configure(at, tokens):
    """Registers 0 to 3: sums of the tokens; 4, 5: their rows; 6, 7: columns."""
    for offset in range(0, 64, 8):
        store_i64(at + offset, 0)
    store_i64(at, 1)
    store_i64(at + 16, 64 * 0x0001000100010001)
    store_i64(at + 24, 64 * 0x0001000100010001)
    store_i64(at + 48, tokens * 0x010101010101 + (TILE_TOKENS << 48) + (TILE_TOKENS << 56))
    tile_configure(at)


@_device
def exp_below(x):
    """e**x of what is not above 0, as blocks.exp_f32 with a term less: to 2e-7."""
    x = max_f32(x, splat_f32(-86.0))
    n = round_f32(mul_f32(x, splat_f32(1.4426950408889634)))
    r = fma(n, splat_f32(-0.693359375), x)
    r = fma(n, splat_f32(2.12194440e-4), r)
    p = fma(splat_f32(1.0 / 720.0), r, splat_f32(1.0 / 120.0))
    p = fma(p, r, splat_f32(1.0 / 24.0))
    p = fma(p, r, splat_f32(1.0 / 6.0))
    p = fma(p, r, splat_f32(0.5))
    p = fma(p, r, splat_f32(1.0))
    return times_power(fma(p, r, splat_f32(1.0)), n)


@_device
def weighted(e, scales):
    """Exponentials times 16 scales, and as good as nothing more: no denormals, which processors are slow with."""
    return fma(e, load_f32x16(scales), splat_f32(1e-35))


@_device
def _store_split(low, high, at):
    """32 values of a row as bfloat16, and 1024 bytes on what that leaves over."""
    low_near, high_near = nearest_bf16(low), nearest_bf16(high)
    store_bf16x32(at, low_near, high_near)
    store_bf16x32(at + 1024, sub_f32(low, low_near), sub_f32(high, high_near))


@_device
def _store_pairs(even, odd, at):
    """A row of pairs as bfloat16, and 1024 bytes on what that leaves over."""
    even_near, odd_near = nearest_bf16(even), nearest_bf16(odd)
    store_i32x16(at, bf16_pairs(even_near, odd_near))
    store_i32x16(at + 1024, bf16_pairs(sub_f32(even, even_near), sub_f32(odd, odd_near)))


@_function
def _start_head(head_at, query, q_stride, tokens, scale, head_dim):
    for token in range(tokens):
        for d in range(0, head_dim, 32):
            source, sums = query + q_stride * token + 4 * d, head_at + 64 * head_dim + 4 * (head_dim * token + d)
            low = mul_f32(load_f32x16(source), splat_f32(scale))
            high = mul_f32(load_f32x16(source + 64), splat_f32(scale))
            _store_split(low, high, head_at + PAIR_BYTES * (d // 32) + 64 * token)
            store_f32x16(sums, splat_f32(0.0))
            store_f32x16(sums + 64, splat_f32(0.0))
    maxima = head_at + 128 * head_dim
    store_f32x16(maxima, splat_f32(LOWEST))
    store_f32x16(maxima + 64, splat_f32(0.0))


@_function
def _finish_head(head_at, out, out_stride, tokens, head_dim):
    sums = head_at + 128 * head_dim + 64
    for token in range(tokens):
        factor = splat_f32(1.0 / load_f32(sums + 4 * token))
        for d in range(0, head_dim, 16):
            values = load_f32x16(head_at + 64 * head_dim + 4 * (head_dim * token + d))
            store_f32x16(out + out_stride * token + 4 * d, mul_f32(values, factor))


@_function
def _add_two_terms(rows, columns, stride):
    """Add the products of split rows and of four tiles of columns, `stride` bytes apart, to registers 0 to 3.

    Products that follow each other go to different registers, as one takes longer than its turn.
    """
    tile_load(4, rows, 64)
    tile_load(5, rows + 1024, 64)
    tile_load(6, columns, 64)
    tile_dot_bf16(0, 4, 6)
    tile_load(7, columns + stride, 64)
    tile_dot_bf16(1, 4, 7)
    tile_load(6, columns + 2 * stride, 64)
    tile_dot_bf16(2, 4, 6)
    tile_load(7, columns + 3 * stride, 64)
    tile_dot_bf16(3, 4, 7)
    tile_dot_bf16(2, 5, 6)
    tile_dot_bf16(3, 5, 7)
    tile_load(6, columns, 64)
    tile_dot_bf16(0, 5, 6)
    tile_load(7, columns + stride, 64)
    tile_dot_bf16(1, 5, 7)


@_function
def _add_three_terms(rows, columns, stride):
    """As _add_two_terms, of columns that are split, too."""
    _add_two_terms(rows, columns, stride)
    tile_load(6, columns + 2 * stride + 1024, 64)
    tile_dot_bf16(2, 4, 6)
    tile_load(7, columns + 3 * stride + 1024, 64)
    tile_dot_bf16(3, 4, 7)
    tile_load(6, columns + 1024, 64)
    tile_dot_bf16(0, 4, 6)
    tile_load(7, columns + stride + 1024, 64)
    tile_dot_bf16(1, 4, 7)


@_function
def _store_registers(at, stride):
    tile_store(0, at, stride)
    tile_store(1, at + 64, stride)
    tile_store(2, at + 128, stride)
    tile_store(3, at + 192, stride)


def _products(add):
    """Scores and weighted values, by `add`."""

    @_function
    def multiply_keys(queries, keys, steps, scores):
        """Scores of 16 tokens and four pages: `steps` times 32 values of a head."""
        tile_zero(0)
        tile_zero(1)
        tile_zero(2)
        tile_zero(3)
        for step in range(steps):
            add(queries + PAIR_BYTES * step, keys + PAIR_BYTES * step, PAIR_BYTES * steps)
        _store_registers(scores, SCORE_STRIDE)

    @_function
    def weigh(weights, values, values_stride, sums, sums_stride):
        """Add 64 of a head's values of 64 tokens, weighted, to the sums of 16 tokens."""
        tile_load(0, sums, sums_stride)
        tile_load(1, sums + 64, sums_stride)
        tile_load(2, sums + 128, sums_stride)
        tile_load(3, sums + 192, sums_stride)
        for step in range(2):
            add(weights + PAIR_BYTES * step, values + values_stride * step, PAIR_BYTES)
        _store_registers(sums, sums_stride)

    return multiply_keys, weigh


@_function
def _scale_scores(scratch, tokens):
    for page in range(PAGES):
        scales = load_f32x16(scratch + KEY_SCALES + 64 * page)
        for token in range(tokens):
            at = scratch + SCORES + SCORE_STRIDE * token + 64 * page
            store_f32x16(at, mul_f32(load_f32x16(at), scales))


@_function
def _mask(scratch, tokens, first_key):
    """Overwrite the scores of keys that a token may not see: after it, or before its window."""
    for token in range(tokens):
        first = load_i64(scratch + FIRSTS + 8 * token)
        last = load_i64(scratch + LASTS + 8 * token)
        if first <= first_key and first_key + PAGES * PAGE_TOKENS - 1 <= last:
            continue
        for page in range(PAGES):
            at = scratch + SCORES + SCORE_STRIDE * token + 64 * page
            keys = add_i32(lane_numbers(), splat_i32(first_key + PAGE_TOKENS * page))
            values = select_f32(less_than(keys, splat_i32(first)), splat_f32(MASKED), load_f32x16(at))
            store_f32x16(at, select_f32(less_than(splat_i32(last), keys), splat_f32(MASKED), values))


@_function
def _exponentials(scratch, head_at, tokens, head_dim, is_scaled):
    """Scores to weights under the running maximum; what was summed before is scaled where that has risen.

    Statistics are vectors: a lane is a token. Lanes of tokens that there are not hold anything.
    """
    scores, sums = scratch + SCORES, head_at + 64 * head_dim
    maxima, factors = head_at + 128 * head_dim, scratch + FACTORS
    low = max_each(load_rows_f32(16, scores, SCORE_STRIDE), load_rows_f32(16, scores + 64, SCORE_STRIDE))
    high = max_each(load_rows_f32(16, scores + 128, SCORE_STRIDE), load_rows_f32(16, scores + 192, SCORE_STRIDE))
    before = load_f32x16(maxima)
    maximum = max_f32(before, largest_each(max_each(low, high)))
    factor = exp_f32(sub_f32(before, maximum))
    store_f32x16(maxima, maximum)
    store_f32x16(factors, factor)
    for token in range(tokens):
        at, weights = scores + SCORE_STRIDE * token, scratch + WEIGHTS + 64 * token
        top = splat_f32(load_f32(maxima + 4 * token))
        e0, e1 = exp_below(sub_f32(load_f32x16(at), top)), exp_below(sub_f32(load_f32x16(at + 64), top))
        e2, e3 = exp_below(sub_f32(load_f32x16(at + 128), top)), exp_below(sub_f32(load_f32x16(at + 192), top))
        store_f32x16(at, add_f32(add_f32(e0, e1), add_f32(e2, e3)))
        if is_scaled:
            scales = scratch + VALUE_SCALES
            e0, e1 = weighted(e0, scales), weighted(e1, scales + 64)
            e2, e3 = weighted(e2, scales + 128), weighted(e3, scales + 192)
        _store_split(e0, e1, weights)
        _store_split(e2, e3, weights + PAIR_BYTES)
        rescale = load_f32(factors + 4 * token)
        if rescale != 1.0:
            for d in range(0, head_dim, 16):
                place = sums + 4 * (head_dim * token + d)
                store_f32x16(place, mul_f32(load_f32x16(place), splat_f32(rescale)))
    total = sum_each(load_rows_f32(16, scores, SCORE_STRIDE))
    store_f32x16(maxima + 64, fma(load_f32x16(maxima + 64), factor, total))


def float_pages(load, value_bytes):
    """How keys, and how values, of a page become pairs of two terms, where `load` reads 16 of `value_bytes` each."""

    @_function
    def split_keys(page_at, head_dim, out):
        for d in range(0, head_dim, 2):
            at = page_at + PAGE_TOKENS * value_bytes * d
            _store_pairs(load(at), load(at + PAGE_TOKENS * value_bytes), out + PAIR_BYTES * (d // 32) + 32 * (d % 32))

    @_function
    def split_values(page_at, head_dim, out):
        """Half of the pairs of 32 tokens."""
        for token in range(0, PAGE_TOKENS, 2):
            for d in range(0, head_dim, 16):
                at = page_at + value_bytes * (head_dim * token + d)
                _store_pairs(load(at), load(at + value_bytes * head_dim), out + PAIR_BYTES * (d // 16) + 32 * token)

    return split_keys, split_values


def prompt_attention(split_keys, split_values, is_scaled):
    """Attention of one item's tokens and the heads of one key-value head, whose keys and values become pairs so.

    `is_scaled`: they are codes of one term, with scales.
    """
    multiply_keys, weigh = _products(_add_two_terms if is_scaled else _add_three_terms)

    @_function
    def attend(
        scratch, first_token, tokens, kv_head, group, head_dim, q, q_stride, scale, table, pages, page_bytes,
        key_offset, value_offset, scale_offset, positions_at, window, out, out_stride,
    ):  # fmt: skip
        for token in range(tokens):
            last = load_i64(positions_at + 8 * (first_token + token))
            store_i64(scratch + FIRSTS + 8 * token, max(0, last - window + 1))
            store_i64(scratch + LASTS + 8 * token, last)
        head_bytes = 4 * head_dim
        first_column = head_bytes * group * kv_head
        for head in range(group):
            query = q + q_stride * first_token + first_column + head_bytes * head
            _start_head(_head_at(scratch, head_dim, head), query, q_stride, tokens, scale, head_dim)
        first_page = load_i64(scratch + FIRSTS) // PAGE_TOKENS // PAGES * PAGES  # the same steps whatever the item is
        last_page = load_i64(scratch + LASTS + 8 * (tokens - 1)) // PAGE_TOKENS
        values = _values_at(scratch, head_dim)
        configure(scratch, tokens)
        for page in range(first_page, last_page + 1, PAGES):
            for i in range(PAGES):
                held = max(min(page + i, last_page), load_i64(scratch + FIRSTS) // PAGE_TOKENS)
                at = pages + page_bytes * load_i32(table + 4 * held)
                split_keys(at + key_offset, head_dim, scratch + KEYS + 64 * head_dim * i)
                place = values + 128 * head_dim * (i // 2) + 512 * (i % 2)
                split_values(at + value_offset, head_dim, place)
                if is_scaled:
                    store_f32x16(scratch + KEY_SCALES + 64 * i, load_f16x16(at + scale_offset))
                    store_f32x16(scratch + VALUE_SCALES + 64 * i, load_f16x16(at + scale_offset + 32))
            for head in range(group):
                head_at = _head_at(scratch, head_dim, head)
                multiply_keys(head_at, scratch + KEYS, head_dim // 32, scratch + SCORES)
                if is_scaled:
                    _scale_scores(scratch, tokens)
                _mask(scratch, tokens, PAGE_TOKENS * page)
                _exponentials(scratch, head_at, tokens, head_dim, is_scaled)
                for d in range(0, head_dim, TILE_VALUES):
                    sums = head_at + 64 * head_dim + 4 * d
                    at = values + PAIR_BYTES * (d // 16)
                    weigh(scratch + WEIGHTS, at, 128 * head_dim, sums, head_bytes)
        tile_release()
        for head in range(group):
            target = out + out_stride * first_token + first_column + head_bytes * head
            _finish_head(_head_at(scratch, head_dim, head), target, out_stride, tokens, head_dim)

    return attend
