"""Where tokens are sent, their sorted rows and blocks, and how products are added up: see gpu.py."""

import triton
import triton.language as tl


@triton.jit
def route_pairs(
    logits,
    positions,
    choices,
    weights,
    experts,
    stride,
    PER_TOKEN: tl.constexpr,
    RENORMALIZED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A token's experts of the largest probability; of equal ones the first."""
    token = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    values = tl.load(logits + token * stride + index, mask=index < experts, other=float("-inf")).to(tl.float32)
    powers = tl.exp(values - tl.max(values))
    nowhere = tl.load(positions + token) < 0
    left = values
    kept = tl.full((), 0.0, tl.float32)
    for _ in tl.static_range(PER_TOKEN):
        expert = tl.minimum(tl.min(tl.where(left == tl.max(left), index, BLOCK)), experts - 1)  # also where all are NaN
        kept += tl.sum(tl.where(index == expert, powers, 0.0))
        left = tl.where(index == expert, float("-inf"), left)
    total = kept if RENORMALIZED else tl.sum(powers)
    left = values
    for choice in tl.static_range(PER_TOKEN):
        expert = tl.minimum(tl.min(tl.where(left == tl.max(left), index, BLOCK)), experts - 1)
        tl.store(choices + token * PER_TOKEN + choice, tl.where(nowhere, -1, expert))
        tl.store(weights + token * PER_TOKEN + choice, tl.sum(tl.where(index == expert, powers, 0.0)) / total)
        left = tl.where(index == expert, float("-inf"), left)


@triton.jit
def count_pairs(choices, used, pairs, BLOCK: tl.constexpr):
    """How many pairs an expert has."""
    expert = tl.program_id(0)
    found = tl.full((), 0, tl.int32)
    for start in range(0, pairs, BLOCK):
        pair = start + tl.arange(0, BLOCK)
        found += tl.sum((tl.load(choices + pair, mask=pair < pairs, other=-1) == expert).to(tl.int32))
    tl.store(used + expert, found)


@triton.jit
def sort_pairs(
    choices,
    used,
    sorted_pairs,
    blocks,
    pairs,
    experts,
    most_blocks,
    ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """An expert's pairs one after another, behind those of the experts before it, and its blocks. The program after the
    last expert's empties the blocks that nobody has.
    """
    expert = tl.program_id(0)
    index = tl.arange(0, EXPERTS)
    counts = tl.load(used + index, mask=index < experts, other=0)
    before = tl.sum(tl.where(index < expert, counts, 0))
    first_block = tl.sum(tl.where(index < expert, tl.cdiv(counts, ROWS), 0))
    if expert == experts:
        for start in range(first_block, most_blocks, BLOCK):
            empty = start + tl.arange(0, BLOCK)
            tl.store(blocks + empty * 3 + 2, tl.zeros((BLOCK,), tl.int32), mask=empty < most_blocks)
    else:
        count = tl.sum(tl.where(index == expert, counts, 0))
        seen = before
        for start in range(0, pairs, BLOCK):
            pair = start + tl.arange(0, BLOCK)
            mine = tl.load(choices + pair, mask=pair < pairs, other=-1) == expert
            tl.store(sorted_pairs + seen + tl.cumsum(mine.to(tl.int32), 0) - 1, pair, mask=mine)
            seen += tl.sum(mine.to(tl.int32))
        for row in range(0, count, ROWS):
            block = blocks + (first_block + row // ROWS) * 3
            tl.store(block, expert)
            tl.store(block + 1, before + row)
            tl.store(block + 2, tl.minimum(count - row, ROWS))


@triton.jit
def combine_pairs(
    hidden,
    products,
    weights,
    positions,
    shared,
    shared_gate,
    columns,
    stride,
    products_stride,
    shared_stride,
    gate_stride,
    PER_TOKEN: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """hidden += each choice's product by its weight, in the order of the choices, and the shared network's."""
    token = tl.program_id(0).to(tl.int64)
    if tl.load(positions + token) < 0:  # padding
        return
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    place = hidden + token * stride + column
    total = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    for choice in tl.static_range(PER_TOKEN):
        pair = token * PER_TOKEN + choice
        product = tl.load(products + pair * products_stride + column, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(weights + pair) * product
    if SHARED:
        share = tl.sigmoid(tl.load(shared_gate + token * gate_stride).to(tl.float32))
        total += share * tl.load(shared + token * shared_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, total, mask=inside)
