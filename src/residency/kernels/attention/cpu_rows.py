"""What decode keeps of each row, a query head of one token: its query, running maximum, sum and weighted values."""

from numba import njit

from residency.kernels.attention.cpu_tiles import LOWEST, MASKED, PAGE_TOKENS
from residency.kernels.simd.blocks import exp_f32
from residency.kernels.simd.language import (
    add_f32,
    add_i32,
    lane_numbers,
    largest_f32,
    less_than,
    load_f32,
    load_f32x16,
    load_i64,
    max_f32,
    mul_f32,
    select_f32,
    splat_f32,
    splat_i32,
    store_f32,
    store_f32x16,
    store_i64,
    sub_f32,
    sum_f32,
)

TILE_PAGES = 4  # pages between two updates of the running maximum
MAX_ROWS = 8
SCORE_STRIDE = 4 * PAGE_TOKENS * TILE_PAGES
SCORES = 0  # from here on: where a thread's scratch memory keeps what
MAXIMA, SUMS, FACTORS, FIRSTS, LASTS, NEXT, QUERIES = (MAX_ROWS * SCORE_STRIDE + 64 * i for i in range(7))
# NEXT: where the first four pages of what is attended to next have their keys, then where these have their scales
# QUERIES: MAX_ROWS heads of scaled queries, then as many of weighted values

_function = njit(error_model="numpy", nogil=True)


@_function
def mask(scores, rows, scratch, page, first_lane):
    """Overwrite the scores of keys that a row may not see: after its token, or before its window."""
    for row in range(rows):
        first = load_i64(scratch + FIRSTS + 8 * row)
        last = load_i64(scratch + LASTS + 8 * row)
        start = page * PAGE_TOKENS
        if first <= start and start + PAGE_TOKENS - 1 <= last:
            continue
        at = scores + SCORE_STRIDE * row + first_lane
        keys = add_i32(lane_numbers(), splat_i32(start))
        values = select_f32(less_than(keys, splat_i32(first)), splat_f32(MASKED), load_f32x16(at))
        store_f32x16(at, select_f32(less_than(splat_i32(last), keys), splat_f32(MASKED), values))


@_function
def exponentials(rows, scratch, pages):
    """Scores to exponentials under the running maximum; leaves each row's factor for what was summed before."""
    for row in range(rows):
        at = scratch + SCORES + SCORE_STRIDE * row
        largest = load_f32x16(at)
        for i in range(1, pages):
            largest = max_f32(largest, load_f32x16(at + 64 * i))
        before = load_f32(scratch + MAXIMA + 4 * row)
        maximum = max(before, largest_f32(largest))
        total = splat_f32(0.0)
        for i in range(pages):
            e = exp_f32(sub_f32(load_f32x16(at + 64 * i), splat_f32(maximum)))
            total = add_f32(total, e)
            store_f32x16(at + 64 * i, e)
        factor = largest_f32(exp_f32(splat_f32(before - maximum)))
        store_f32(scratch + MAXIMA + 4 * row, maximum)
        store_f32(scratch + FACTORS + 4 * row, factor)
        store_f32(scratch + SUMS + 4 * row, load_f32(scratch + SUMS + 4 * row) * factor + sum_f32(total))


@_function
def _load_row(scratch, row, query, scale, head_dim, first, last):
    """Start a row: its scaled query, an empty sum, and the keys that it may see."""
    target = scratch + QUERIES + 4 * head_dim * row
    weighted = target + 4 * head_dim * MAX_ROWS
    for d in range(0, 4 * head_dim, 64):
        store_f32x16(target + d, mul_f32(load_f32x16(query + d), splat_f32(scale)))
        store_f32x16(weighted + d, splat_f32(0.0))
    store_f32(scratch + MAXIMA + 4 * row, LOWEST)
    store_f32(scratch + SUMS + 4 * row, 0.0)
    store_i64(scratch + FIRSTS + 8 * row, first)
    store_i64(scratch + LASTS + 8 * row, last)


@_function
def store_row(scratch, row, out, partial, head_dim):
    """Finish a row: divided by its sum into `out`, or as a part (values, maximum, sum) where `partial` is not 0."""
    weighted = scratch + QUERIES + 4 * head_dim * (MAX_ROWS + row)
    total = load_f32(scratch + SUMS + 4 * row)
    target = out if partial == 0 else partial
    factor = splat_f32(1.0 / total if partial == 0 else 1.0)
    for d in range(0, 4 * head_dim, 64):
        store_f32x16(target + d, mul_f32(load_f32x16(weighted + d), factor))
    if partial != 0:
        store_f32(partial + 4 * head_dim, load_f32(scratch + MAXIMA + 4 * row))
        store_f32(partial + 4 * head_dim + 4, total)


@_function
def load_rows(
    scratch, block, rows, start, group, first_token, kv_head, q, q_stride, scale, head_dim, positions_at, window
):
    """Start a block's rows, the last again where there are too few; the first and the last key that any may see."""
    first_key = load_i64(positions_at + 8 * (first_token + start // group))
    last_key = first_key
    for i in range(block):
        row = start + min(i, rows - 1)
        token = first_token + row // group
        head = kv_head * group + row % group
        last = load_i64(positions_at + 8 * token)
        first = max(0, last - window + 1)
        first_key = min(first_key, first)
        last_key = max(last_key, last)
        _load_row(scratch, i, q + q_stride * token + 4 * head_dim * head, scale, head_dim, first, last)
    return first_key, last_key
