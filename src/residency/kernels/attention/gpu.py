"""Attention over a paged KV cache on a device: decode in parts of the context, prompts in tiles of their tokens.

Decode takes the query heads of one key-value head together, so that each key and value is read once (J. Ainslie et
al.: GQA, 2023), and shares a long context among programs whose parts are merged afterwards (T. Dao et al.:
Flash-Decoding, 2023). Into how many parts follows from the length of the context alone, whoever else is in the batch.
Prompts are attended to in tiles of tokens against tiles of the cache (T. Dao: FlashAttention-2, 2023), new tokens' keys
among the others. See rotary/gpu.py for how a page lies. Grids are of the step's shape, so that a CUDA graph can hold
them.
"""

import triton
import triton.language as tl

from residency.kernels.device import DeviceStep, Tensor
from residency.kernels.device_language import dot, power_of_two
from residency.kernels.recorder import Rows
from residency.kernels.rotary import LayerPages
from residency.kernels.rotary.gpu import PAGE_TOKENS, scale_pages, typed_pages
from residency.planner.device_buffers import PROMPT_TOKENS, most_parts
from residency.spec.model import AttentionSpec

PART_TOKENS = 256  # fewer are not worth a program of their own
_BLOCK_TOKENS = 64  # of the cache, at a time
_LEAST_ROWS = 16  # of a product of tiles
_NO_WINDOW = 1 << 30
_LOG2_E = 1.4426950408889634


def attention(step: DeviceStep, spec: AttentionSpec, q: Tensor, cache: LayerPages) -> Rows:
    """See kernels.attention.attention."""
    out = step.buffers["attended"]
    if step.shape.sampled:
        _decode(step, spec, q, cache, out)
    if step.shape.items:
        _prompts(step, spec, q, cache, out)
    return Rows(out[: step.rows()])


def _decode(step: DeviceStep, spec: AttentionSpec, q: Tensor, cache: LayerPages, out: Tensor) -> None:
    parts = most_parts(step.multiprocessors, spec.num_kv_heads)
    partials = step.buffers["attention_partials"]
    block = power_of_two(spec.head_dim)
    _attend_parts[(step.shape.sampled, spec.num_kv_heads, parts)](
        q,
        *_cache_words(cache),
        step.buffers["positions"],
        partials,
        q.stride(0),
        spec.scale * _LOG2_E,
        spec.window_tokens or _NO_WINDOW,
        **_extents(spec, cache),
        ROWS=max(_LEAST_ROWS, power_of_two(spec.num_heads // spec.num_kv_heads)),
        PARTS=parts,
        PART_TOKENS=PART_TOKENS,
        num_warps=4,
        num_stages=3,
    )
    _merge_parts[(step.shape.sampled, spec.num_heads)](
        partials,
        step.buffers["positions"],
        out,
        out.stride(0),
        spec.window_tokens or _NO_WINDOW,
        HEADS=spec.num_heads,
        HEAD_DIM=spec.head_dim,
        BLOCK=block,
        PARTS=parts,
        PART_TOKENS=PART_TOKENS,
        TOKENS=_BLOCK_TOKENS,
        ROWS=_LEAST_ROWS,
        num_warps=4,
    )


def _prompts(step: DeviceStep, spec: AttentionSpec, q: Tensor, cache: LayerPages, out: Tensor) -> None:
    _attend_prompts[(step.shape.items, spec.num_heads)](
        q,
        *_cache_words(cache),
        step.buffers["positions"],
        step.buffers["items"],
        out,
        q.stride(0),
        out.stride(0),
        spec.scale * _LOG2_E,
        spec.window_tokens or _NO_WINDOW,
        **_extents(spec, cache),
        ROWS=PROMPT_TOKENS,
        num_warps=4 if spec.head_dim <= 128 else 8,
        num_stages=2,
    )


def _cache_words(cache: LayerPages) -> tuple[Tensor, ...]:
    pages, tables = typed_pages(cache), cache.tables
    return pages, scale_pages(cache), tables, pages.stride(0), tables.stride(0)


def _extents(spec: AttentionSpec, cache: LayerPages) -> dict[str, int | bool]:
    return {
        "HEADS": spec.num_heads,
        "KV_HEADS": spec.num_kv_heads,
        "HEAD_DIM": spec.head_dim,
        "BLOCK": power_of_two(spec.head_dim),
        "INT8": cache.number_format == "INT8",
        "PAGE_TOKENS": PAGE_TOKENS,
        "TOKENS": _BLOCK_TOKENS,
    }


@triton.jit
def _keys(pages, scales, page, page_values, token, head, part, D, seen, INT8, KV_HEADS, HEAD_DIM, PAGE_TOKENS, type):
    """Keys (part 0) or values (part 1) of a head, (tokens, head_dim), in `type`, and each token's scale."""
    row = (part * KV_HEADS + head) * PAGE_TOKENS + token % PAGE_TOKENS
    inside = seen[:, None] & (D < HEAD_DIM)[None, :]
    at = pages + (page * page_values + row * HEAD_DIM)[:, None] + D[None, :]
    values = tl.load(at, mask=inside, other=0.0).to(tl.float32).to(type)
    if INT8:
        first = (page * page_values + 2 * KV_HEADS * PAGE_TOKENS * HEAD_DIM) // 2
        scale = tl.load(scales + first + row, mask=seen, other=0.0).to(tl.float32)
    else:
        scale = tl.full(token.shape, 1.0, tl.float32)
    return values, scale


@triton.jit
def _attend_block(
    q,
    sums,
    largest,
    total,
    position,
    first,
    last,
    table,
    pages,
    scales,
    page_values,
    kv_head,
    factor,
    window,
    INT8: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Take the tokens `first` … of the cache, those before `last`, into softmax's running sums of each row of q.

    A row sees the tokens up to its `position` (rows,), and of them the window's. Scores are in units of log 2, as
    exp2 is what there is an instruction for.
    """
    token = first + tl.arange(0, TOKENS)
    D = tl.arange(0, BLOCK)
    held = token < last
    page = tl.load(table + token // PAGE_TOKENS, mask=held, other=0).to(tl.int64)
    k, k_scale = _keys(
        pages, scales, page, page_values, token, kv_head, 0, D, held, INT8, KV_HEADS, HEAD_DIM, PAGE_TOKENS, q.dtype
    )
    scores = dot(q, tl.trans(k), tl.zeros((q.shape[0], TOKENS), tl.float32)) * (factor * k_scale)[None, :]
    distance = position[:, None] - token[None, :]
    scores = tl.where(held[None, :] & (distance >= 0) & (distance < window), scores, float("-inf"))
    larger = tl.maximum(largest, tl.max(scores, 1))
    base = tl.where(larger == float("-inf"), 0.0, larger)  # rows that see nothing here yet
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(largest - base)
    total = total * shrink + tl.sum(weights, 1)
    v, v_scale = _keys(
        pages, scales, page, page_values, token, kv_head, 1, D, held, INT8, KV_HEADS, HEAD_DIM, PAGE_TOKENS, q.dtype
    )
    sums = dot((weights * v_scale[None, :]).to(q.dtype), v, sums * shrink[:, None])
    return sums, larger, total


@triton.jit
def _part_of(position, window, part, PARTS: tl.constexpr, PART_TOKENS: tl.constexpr, TOKENS: tl.constexpr):
    """The first token that a part of a context sees, and the one after its last; nothing for a part too many."""
    least = tl.maximum(0, position + 1 - window)
    parts = tl.minimum(tl.cdiv(position + 1 - least, PART_TOKENS), PARTS)
    length = tl.cdiv(tl.cdiv(position + 1 - least, tl.maximum(parts, 1)), TOKENS) * TOKENS
    first = least + part * length
    return first, tl.minimum(first + length, position + 1)


@triton.jit
def _attend_parts(
    q,
    pages,
    scales,
    tables,
    page_values,
    table_stride,
    positions,
    partials,
    q_stride,
    factor,
    window,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    INT8: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    PART_TOKENS: tl.constexpr,
):
    """Each partial: head_dim weighted sums, the largest score, and the sum of weights."""
    sequence, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    position = tl.load(positions + sequence).to(tl.int32)
    start, end = _part_of(position, window, part, PARTS, PART_TOKENS, TOKENS)
    if start >= end:
        return
    D = tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    head = kv_head * GROUP + row
    inside = (row < GROUP)[:, None] & (D < HEAD_DIM)[None, :]
    rows = tl.load(q + sequence.to(tl.int64) * q_stride + head[:, None] * HEAD_DIM + D[None, :], mask=inside, other=0.0)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    at = tl.full((ROWS,), 0, tl.int32) + position
    for first in range(start, end, TOKENS):
        sums, largest, total = _attend_block(
            rows,
            sums,
            largest,
            total,
            at,
            first,
            end,
            tables + sequence.to(tl.int64) * table_stride,
            pages,
            scales,
            page_values,
            kv_head,
            factor,
            window,
            INT8,
            KV_HEADS,
            HEAD_DIM,
            BLOCK,
            PAGE_TOKENS,
            TOKENS,
        )
    place = partials + ((sequence * HEADS + head).to(tl.int64) * PARTS + part) * (HEAD_DIM + 2)
    tl.store(place[:, None] + D[None, :], sums, mask=inside)
    tl.store(place + HEAD_DIM, largest, mask=row < GROUP)
    tl.store(place + HEAD_DIM + 1, total, mask=row < GROUP)


@triton.jit
def _merge_parts(
    partials,
    positions,
    out,
    out_stride,
    window,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    PART_TOKENS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Attention over all parts of one head's context. A row of padding is left as it is."""
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    position = tl.load(positions + sequence).to(tl.int32)
    if position < 0:
        return
    D, part = tl.arange(0, BLOCK), tl.arange(0, PARTS)
    place = partials + (sequence * HEADS + head) * PARTS * (HEAD_DIM + 2)
    first, last = _part_of(position, window, part, PARTS, PART_TOKENS, TOKENS)
    largest = tl.max(tl.load(place + part * (HEAD_DIM + 2) + HEAD_DIM, mask=first < last, other=float("-inf")))
    merged = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for some in range(0, tl.sum((first < last).to(tl.int32)), ROWS):
        row = some + tl.arange(0, ROWS)
        start, end = _part_of(position, window, row, PARTS, PART_TOKENS, TOKENS)
        there = start < end
        at = place + row * (HEAD_DIM + 2)
        factor = tl.exp2(tl.load(at + HEAD_DIM, mask=there, other=float("-inf")) - largest)
        total += factor * tl.load(at + HEAD_DIM + 1, mask=there, other=0.0)
        sums = tl.load(at[:, None] + D[None, :], mask=there[:, None] & (D < HEAD_DIM)[None, :], other=0.0)
        merged += tl.sum(sums * factor[:, None], 0)
    merged /= tl.sum(total)
    tl.store(out + sequence * out_stride + head * HEAD_DIM + D, merged, mask=D < HEAD_DIM)


@triton.jit
def _attend_prompts(
    q,
    pages,
    scales,
    tables,
    page_values,
    table_stride,
    positions,
    items,
    out,
    q_stride,
    out_stride,
    factor,
    window,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    INT8: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
):
    item, head = items + tl.program_id(0) * 4, tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)
    first_token, num_tokens, sequence = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    if num_tokens == 0:
        return
    D = tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    there = row < num_tokens
    token = (first_token + row).to(tl.int64)
    start = tl.load(positions + first_token).to(tl.int32)
    inside = there[:, None] & (D < HEAD_DIM)[None, :]
    rows = tl.load(q + token[:, None] * q_stride + head * HEAD_DIM + D[None, :], mask=inside, other=0.0)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    end = (start + num_tokens).to(tl.int32)
    least = tl.maximum(0, start + 1 - window) // TOKENS * TOKENS
    for first in range(least, end, TOKENS):
        sums, largest, total = _attend_block(
            rows,
            sums,
            largest,
            total,
            start + row,
            first,
            end,
            tables + sequence.to(tl.int64) * table_stride,
            pages,
            scales,
            page_values,
            kv_head,
            factor,
            window,
            INT8,
            KV_HEADS,
            HEAD_DIM,
            BLOCK,
            PAGE_TOKENS,
            TOKENS,
        )
    attended = sums / tl.where(there, total, 1.0)[:, None]
    tl.store(out + token[:, None] * out_stride + head * HEAD_DIM + D[None, :], attended, mask=inside)
