"""How threads share decode's attention: each has a run of units, in order, that sees as many pages as the others'.

A unit is a part of one sequence's context for one key-value head. A page has the keys, then the values, of all its
heads side by side, so a thread that goes from head to head finds in its cache what was fetched beyond the one before.
"""

from numba import njit

from residency.kernels.attention.cpu_rows import NEXT, TILE_PAGES
from residency.kernels.attention.cpu_tiles import PAGE_TOKENS
from residency.kernels.simd.language import load_i32, load_i64, store_i64

SCALE_BYTES = 64  # of a key-value head in a page of codes

_function = njit(error_model="numpy", nogil=True)


@_function
def pages_of_split(first_key, last_key, split, splits):
    """The first page of a part of the context, and the page after its last."""
    first_page = first_key // PAGE_TOKENS
    num_pages = last_key // PAGE_TOKENS + 1 - first_page
    return first_page + num_pages * split // splits, first_page + num_pages * (split + 1) // splits


@_function
def seen_pages(items_at, item, positions_at, window):
    """Pages that an item's first token sees."""
    position = load_i64(positions_at + 8 * load_i64(items_at + 16 * item))
    return position // PAGE_TOKENS + 1 - max(0, position - window + 1) // PAGE_TOKENS


@_function
def pages_of_sampled(items_at, num_items_at, positions_at, window, int8_at):
    """Pages that all items of sampled tokens see, which come first."""
    total_pages = 0
    for item in range(load_i64(num_items_at)):
        if load_i64(items_at + 16 * item) < load_i64(int8_at):
            total_pages += seen_pages(items_at, item, positions_at, window)
    return total_pages


@_function
def first_unit_of(thread, threads, units, pages, pages_before, total_pages):
    """The first unit of an item that is no earlier thread's, where `pages` of `total_pages` are the item's."""
    before = (thread * total_pages - threads * pages_before) * units
    return max(0, min(units, -(-before // (threads * pages))))


@_function
def note_next(
    scratch, item, unit, kv_heads, num_items_at, items_at, splits_at, positions_at, sequences_at, tables, table_stride,
    pages, page_bytes, head_bytes, window,
):  # fmt: skip
    """Note where the unit after this one begins: its first keys start on their way while the last of this one are met.

    After the last the beginning of its item stands there.
    """
    unit += 1
    token = load_i64(items_at + 16 * item)
    splits = load_i64(splits_at + 8 * token)
    if unit >= kv_heads * splits:
        unit = 0
        token = load_i64(items_at + 16 * min(item + 1, load_i64(num_items_at) - 1))
        splits = load_i64(splits_at + 8 * token)
    position = load_i64(positions_at + 8 * token)
    first_page, last_page = pages_of_split(max(0, position - window + 1), position, unit % splits, splits)
    table = tables + table_stride * load_i64(sequences_at + 8 * token)
    for i in range(TILE_PAGES):
        page = pages + page_bytes * load_i32(table + 4 * min(first_page + i, last_page - 1))
        store_i64(scratch + NEXT + 8 * i, page + head_bytes * (unit // splits))
        store_i64(scratch + NEXT + 32 + 8 * i, page + 2 * head_bytes * kv_heads + SCALE_BYTES * (unit // splits))
