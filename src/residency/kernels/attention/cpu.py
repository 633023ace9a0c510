"""Flash attention over pages: keys and values are read once for a block of up to 8 rows (queries that share them).

A row is one query head of one token. Rows of an item (tokens of one sequence, all heads of one key-value head) meet
the pages several at a time: scores, running maximum, exponentials, and the weighted values, as in FlashAttention-2
(Dao, 2023). Where one item has a long context its pages are split, and `combine` merges the parts (Flash-Decoding,
Dao et al., 2023).
A page of floats holds keys as [head_dim][16 tokens], so that tokens are lanes, and values as [16 tokens][head_dim]; of
pages of integers see cpu_codes.
"""

from numba import njit

from residency.kernels.attention.cpu_code_tiles import code_pages
from residency.kernels.attention.cpu_codes import attend_codes_by
from residency.kernels.attention.cpu_rows import (
    FACTORS,
    MAX_ROWS,
    NEXT,
    QUERIES,
    SCORE_STRIDE,
    SCORES,
    TILE_PAGES,
    exponentials,
    load_rows,
    mask,
    store_row,
)
from residency.kernels.attention.cpu_shares import (
    SCALE_BYTES,
    first_unit_of,
    note_next,
    pages_of_sampled,
    pages_of_split,
    seen_pages,
)
from residency.kernels.attention.cpu_tiles import PAGE_TOKENS, TILE_VALUES, float_pages, prompt_attention
from residency.kernels.simd.blocks import GROUP, HAS_TILES, exp_f32, int8_rows, pack, run_start
from residency.kernels.simd.language import (
    add_f32,
    fma_splat_each,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    load_rows_f32,
    mul_f32,
    mul_splat_each,
    prefetch,
    splat_f32,
    store_each,
    store_f32x16,
    sum_f32,
    zeros_f32,
)

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)


def _attend_by(rows, load, value_bytes):
    """Attention of `rows` rows over the pages first_page .. last_page of one key-value head."""

    @_function
    def attend(
        scratch, table, pages, page_bytes, key_offset, value_offset, scale_offset, head_dim, first_page, last_page
    ):
        row_bytes = 4 * head_dim
        queries = scratch + QUERIES
        weighted = queries + MAX_ROWS * row_bytes
        for tile in range(first_page, last_page, TILE_PAGES):
            tile_pages = min(TILE_PAGES, last_page - tile)
            for i in range(0, tile_pages, 2):  # two pages at a time: chains enough to hide an addition's latency
                first = pages + page_bytes * load_i32(table + 4 * (tile + i))
                second = pages + page_bytes * load_i32(table + 4 * (tile + min(i + 1, tile_pages - 1)))
                first_scores = zeros_f32(rows)
                second_scores = zeros_f32(rows)
                for d in range(head_dim):
                    query = queries + 4 * d
                    first_key = load(first + key_offset + 16 * value_bytes * d)
                    second_key = load(second + key_offset + 16 * value_bytes * d)
                    prefetch(first + value_offset + 16 * value_bytes * d)
                    prefetch(second + value_offset + 16 * value_bytes * d)
                    first_scores = fma_splat_each(first_scores, first_key, query, row_bytes)
                    second_scores = fma_splat_each(second_scores, second_key, query, row_bytes)
                store_each(first_scores, scratch + SCORES + 64 * i, SCORE_STRIDE)
                store_each(second_scores, scratch + SCORES + 64 * i + 64, SCORE_STRIDE)
            for i in range(tile_pages):
                mask(scratch + SCORES, rows, scratch, tile + i, 64 * i)
            exponentials(rows, scratch, tile_pages)
            for d in range(0, head_dim, 32):
                other = min(d + 16, head_dim - 16)  # the same 16 values twice where no more are left
                low = mul_splat_each(load_rows_f32(rows, weighted + 4 * d, row_bytes), scratch + FACTORS, 4)
                high = mul_splat_each(load_rows_f32(rows, weighted + 4 * other, row_bytes), scratch + FACTORS, 4)
                for i in range(tile_pages):
                    values = pages + page_bytes * load_i32(table + 4 * (tile + i)) + value_offset
                    # The keys of the next tile start on their way, a line with each token.
                    ahead = load_i64(scratch + NEXT + 8 * i) + 32 * d
                    if tile + TILE_PAGES < last_page:
                        later = min(tile + TILE_PAGES + i, last_page - 1)
                        ahead = pages + page_bytes * load_i32(table + 4 * later) + key_offset + 32 * d
                    for token in range(PAGE_TOKENS):
                        prefetch(ahead + 64 * token)
                        weight = scratch + SCORES + 64 * i + 4 * token
                        at = values + value_bytes * head_dim * token
                        low = fma_splat_each(low, load(at + value_bytes * d), weight, SCORE_STRIDE)
                        high = fma_splat_each(high, load(at + value_bytes * other), weight, SCORE_STRIDE)
                store_each(low, weighted + 4 * d, row_bytes)
                store_each(high, weighted + 4 * other, row_bytes)

    return attend


def _attention(attend_by, value_bits, by_tiles):
    """The kernel for keys and values of one format; `by_tiles` is for prompts. Float32 is no sum of two bfloat16."""
    by_1, by_2, by_4, by_8 = (attend_by(rows) for rows in (1, 2, 4, 8))
    has_tiles = HAS_TILES and value_bits < 32

    @_function
    def by_block(rows, scratch, table, pages, page_bytes, keys, values, scales, head_dim, first_page, last_page):
        if rows == 1:
            by_1(scratch, table, pages, page_bytes, keys, values, scales, head_dim, first_page, last_page)
        elif rows == 2:
            by_2(scratch, table, pages, page_bytes, keys, values, scales, head_dim, first_page, last_page)
        elif rows == 4:
            by_4(scratch, table, pages, page_bytes, keys, values, scales, head_dim, first_page, last_page)
        else:
            by_8(scratch, table, pages, page_bytes, keys, values, scales, head_dim, first_page, last_page)

    @_function
    def by_rows(
        scratch, first_token, tokens, kv_head, split, splits, most_splits, group, heads, head_dim, q, q_stride, scale,
        table, pages, page_bytes, keys, values, scales, positions_at, window, out, out_stride, partials,
    ):  # fmt: skip
        """One unit of work, by blocks of its item's rows."""
        partial_bytes = 4 * head_dim + 64
        for start in range(0, tokens * group, MAX_ROWS):
            rows = min(MAX_ROWS, tokens * group - start)
            block = 1 if rows == 1 else 2 if rows == 2 else 4 if rows <= 4 else 8
            first_key, last_key = load_rows(
                scratch, block, rows, start, group, first_token, kv_head, q, q_stride, scale, head_dim, positions_at,
                window,
            )  # fmt: skip
            first_page, last_page = pages_of_split(first_key, last_key, split, splits)
            by_block(block, scratch, table, pages, page_bytes, keys, values, scales, head_dim, first_page, last_page)
            for i in range(rows):
                token = first_token + (start + i) // group
                head = kv_head * group + (start + i) % group
                index = (token * heads + head) * most_splits + split
                part = partials + partial_bytes * index if splits > 1 else 0
                store_row(scratch, i, out + out_stride * token + 4 * head_dim * head, part, head_dim)

    def attend(
        q, q_stride, scale: float, heads, kv_heads, head_dim, pages, page_bytes, tables, table_stride, items_at,
        num_items_at, positions_at, sequences_at, window, splits_at, most_splits_at, int8_at, out, out_stride, partials,
        scratch, scratch_bytes, thread, threads,
    ):  # fmt: skip
        """See reference.attention. Units of work: item, key-value head and split; see cpu_shares. Those of prompts are
        dealt out in turn.
        """
        mine = scratch + scratch_bytes * thread
        most_splits = load_i64(most_splits_at)
        group = heads // kv_heads
        head_bytes = value_bits * PAGE_TOKENS // 8 * head_dim
        total_pages = pages_of_sampled(items_at, num_items_at, positions_at, window, int8_at)
        pages_before = 0
        prompts_first_unit = thread  # of a prompt's item: the first that is this thread's
        for item in range(load_i64(num_items_at)):
            first_token, tokens = load_i64(items_at + 16 * item), load_i64(items_at + 16 * item + 8)
            splits = load_i64(splits_at + 8 * first_token)
            table = tables + table_stride * load_i64(sequences_at + 8 * first_token)
            of_prompt = first_token >= load_i64(int8_at)
            in_tiles = has_tiles and head_dim % TILE_VALUES == 0 and of_prompt
            units = kv_heads * splits
            if of_prompt:
                first, last, stride = prompts_first_unit, units, threads
                prompts_first_unit = (prompts_first_unit - units) % threads
            else:
                seen = seen_pages(items_at, item, positions_at, window)
                first = first_unit_of(thread, threads, units, seen, pages_before, total_pages)
                last, stride = first_unit_of(thread + 1, threads, units, seen, pages_before, total_pages), 1
                pages_before += seen
            for unit in range(first, last, stride):
                kv_head, split = unit // splits, unit % splits
                keys = head_bytes * kv_head
                values = keys + head_bytes * kv_heads
                scales = 2 * head_bytes * kv_heads + SCALE_BYTES * kv_head
                if in_tiles:
                    by_tiles(
                        mine, first_token, tokens, kv_head, group, head_dim, q, q_stride, scale, table, pages,
                        page_bytes, keys, values, scales, positions_at, window, out, out_stride,
                    )  # fmt: skip
                    continue
                note_next(
                    mine, item, unit, kv_heads, num_items_at, items_at, splits_at, positions_at, sequences_at,
                    tables, table_stride, pages, page_bytes, head_bytes, window,
                )  # fmt: skip
                by_rows(
                    mine, first_token, tokens, kv_head, split, splits, most_splits, group, heads, head_dim, q, q_stride,
                    scale, table, pages, page_bytes, keys, values, scales, positions_at, window, out, out_stride,
                    partials,
                )  # fmt: skip

    return attend


@_device
def _merged(first, splits, head_dim, d):
    """16 values of one head, from its parts: each weighted by exp(its maximum - the largest) over the sums."""
    partial_bytes = 4 * head_dim + 64
    maximum = load_f32(first + 4 * head_dim)
    for i in range(1, splits):
        maximum = max(maximum, load_f32(first + partial_bytes * i + 4 * head_dim))
    total = splat_f32(0.0)
    values = splat_f32(0.0)
    for i in range(splits):
        part = first + partial_bytes * i
        weight = exp_f32(splat_f32(load_f32(part + 4 * head_dim) - maximum))
        total = add_f32(total, mul_f32(weight, splat_f32(load_f32(part + 4 * head_dim + 4))))
        values = add_f32(values, mul_f32(weight, load_f32x16(part + 4 * d)))
    return mul_f32(values, splat_f32(1.0 / (sum_f32(total) / 16.0)))


def combine(
    partials, splits_at, most_splits_at, heads, head_dim, out, out_stride, q8, q8_stride, together, int8_at, tokens_at,
    thread, threads,
):  # fmt: skip
    """Merge the parts of split heads into `out`, and write the packed twin where `q8` is not 0."""
    most_splits = load_i64(most_splits_at)
    if most_splits == 1 and q8 == 0:
        return
    part_bytes = (4 * head_dim + 64) * most_splits
    tokens = load_i64(tokens_at)
    quantized = int8_rows(tokens, int8_at)
    groups = heads * head_dim // GROUP
    unit = run_start(tokens * groups, together, thread, threads)
    end = run_start(tokens * groups, together, thread + 1, threads)
    while unit < end:  # token after token
        token = unit // groups
        first = unit - token * groups
        last = min(groups, first + end - unit)
        splits = load_i64(splits_at + 8 * token)
        row = out + out_stride * token
        if splits > 1:
            for column in range(GROUP * first, GROUP * last, 16):
                part = partials + part_bytes * (token * heads + column // head_dim)
                store_f32x16(row + 4 * column, _merged(part, splits, head_dim, column % head_dim))
        if q8 != 0:
            pack(row + 128 * first, first, last, groups, together, q8, q8_stride, token, tokens, quantized)
        unit += last - first


def _of_floats(load, value_bytes):
    by_tiles = prompt_attention(*float_pages(load, value_bytes), False)
    return _attention(lambda rows: _attend_by(rows, load, value_bytes), 8 * value_bytes, by_tiles)


def _of_codes(value_bits):
    by_tiles = prompt_attention(*code_pages(value_bits), True)
    return _attention(lambda rows: attend_codes_by(rows, value_bits), value_bits, by_tiles)


KERNELS = {
    "attend_F16": _of_floats(load_f16x16, 2),
    "attend_F32": _of_floats(load_f32x16, 4),
    "attend_INT8": _of_codes(8),
    "attend_INT4": _of_codes(4),
    "combine": combine,
}
