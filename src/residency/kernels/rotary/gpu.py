"""Rotary embedding and the write into the paged cache on a device: one program for each token and head.

A page lies otherwise than on the CPU, so that a token's key is read whole: keys [kv_heads][16 tokens][head_dim], values
the same, and for int8 the scales of the keys [kv_heads][16], then the values', as float16.
"""

import triton
import triton.language as tl

from residency.kernels.device import DeviceStep, Tensor
from residency.kernels.device_language import power_of_two
from residency.kernels.rotary import LayerPages
from residency.spec.model import AttentionSpec

PAGE_TOKENS = 16


def typed_pages(cache: LayerPages) -> Tensor:
    """The pages (num_pages, values of a page) as values of their format; of int8 the scales are the last bytes."""
    import torch

    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "FP8": torch.float8_e4m3fn}
    pages: Tensor = cache.pages
    return pages.view(names.get(cache.number_format, torch.int8))


def scale_pages(cache: LayerPages) -> Tensor:
    """The same pages as float16."""
    import torch

    pages: Tensor = cache.pages
    return pages.view(torch.float16)


def rotate_and_store(
    step: DeviceStep,
    spec: AttentionSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    angles: Tensor,
    cache: LayerPages,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    epsilon: float = 0.0,
    key_offset: Tensor | None = None,
) -> None:
    """See kernels.rotary.rotate_and_store. angles (positions, head_dim): cosines | sines of each position."""
    if step.only_logits:
        return
    pages = typed_pages(cache)
    _rotate_and_store[(step.rows(), spec.num_heads + spec.num_kv_heads)](
        q,
        k,
        v,
        q_norm,
        k_norm,
        key_offset,
        angles,
        step.buffers["positions"],
        cache.slots,
        pages,
        scale_pages(cache),
        q.stride(0),
        k.stride(0),
        angles.stride(0),
        pages.stride(0),
        epsilon,
        HEADS=spec.num_heads,
        KV_HEADS=spec.num_kv_heads,
        HEAD_DIM=spec.head_dim,
        BLOCK=power_of_two(spec.head_dim),
        NORMS=q_norm is not None,
        OFFSET=key_offset is not None,
        INT8=cache.number_format == "INT8",
        FP8=cache.number_format == "FP8",
        ORDER=spec.head_dim & -spec.head_dim,
        PAGE_TOKENS=PAGE_TOKENS,
        num_warps=1,
    )


@triton.jit
def _store(pages, scales, values, slot, head, part, page_values, D, inside, INT8, FP8, KV_HEADS, HEAD_DIM, PAGE_TOKENS):
    """Write a head's key (part 0) or value (part 1) of one token."""
    page, place = slot // PAGE_TOKENS, slot % PAGE_TOKENS
    row = (part * KV_HEADS + head) * PAGE_TOKENS + place
    at = pages + page * page_values + row * HEAD_DIM + D
    if INT8:
        # float16 holds no smaller normal scale; codes are rounded by the scale that is kept
        scale = tl.maximum(tl.max(tl.abs(values)) / 127.0, 6.103515625e-05).to(tl.float16)
        scaled = values / scale.to(tl.float32)
        rounded = tl.floor(tl.abs(scaled) + 0.5)
        codes = tl.minimum(rounded, 127.0) * tl.where(scaled < 0, -1.0, 1.0)
        tl.store(at, codes.to(tl.int8), mask=inside)
        first = (page * page_values + 2 * KV_HEADS * PAGE_TOKENS * HEAD_DIM) // 2
        tl.store(scales + first + row, scale)
    elif FP8:
        clamped = tl.minimum(tl.maximum(values, -448.0), 448.0)  # the largest of e4m3
        tl.store(at, clamped.to(tl.float8e4nv), mask=inside)
    else:
        tl.store(at, values, mask=inside)


@triton.jit
def _spread(x, BLOCK: tl.constexpr, ORDER: tl.constexpr):
    """x times the Hadamard matrix of this order, block by block: see reference_codes.spread.

    Sums of neighbours before their differences, as many times as the order has bits (M. C. Pease, 1968).
    """
    spread = tl.reshape(x, (BLOCK // ORDER, ORDER))
    for place in tl.static_range(16):
        if (1 << place) < ORDER:
            even, odd = tl.split(tl.reshape(spread, (BLOCK // ORDER, ORDER // 2, 2)))
            both = tl.permute(tl.join(even + odd, even - odd), (0, 2, 1))
            spread = tl.reshape(both, (BLOCK // ORDER, ORDER))
    return tl.reshape(spread, (BLOCK,)) * tl.rsqrt(ORDER * 1.0)


@triton.jit
def _rotate_and_store(
    q,
    k,
    v,
    q_norm,
    k_norm,
    key_offset,
    angles,
    positions,
    slots,
    pages,
    scales,
    q_stride,
    k_stride,
    angles_stride,
    page_values,
    epsilon,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    NORMS: tl.constexpr,
    OFFSET: tl.constexpr,
    INT8: tl.constexpr,
    FP8: tl.constexpr,
    ORDER: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots + token)
    if slot < 0:  # padding
        return
    D = tl.arange(0, BLOCK)
    inside = D < HEAD_DIM
    other = (D + HEAD_DIM // 2) % HEAD_DIM  # the other axis of each pair
    is_query = head < HEADS
    x = q + token * q_stride + head * HEAD_DIM if is_query else k + token * k_stride + (head - HEADS) * HEAD_DIM
    mine = tl.load(x + D, mask=inside, other=0.0).to(tl.float32)
    pair = tl.load(x + other, mask=inside, other=0.0).to(tl.float32)
    if NORMS:
        weight = q_norm if is_query else k_norm
        inverse = tl.rsqrt(tl.sum(mine * mine) / HEAD_DIM + epsilon)
        mine *= inverse * tl.load(weight + D, mask=inside, other=0.0)
        pair *= inverse * tl.load(weight + other, mask=inside, other=0.0)
    angle = angles + tl.load(positions + token) * angles_stride + D % (HEAD_DIM // 2)
    cosine = tl.load(angle, mask=inside, other=0.0)
    sine = tl.load(angle + HEAD_DIM // 2, mask=inside, other=0.0)
    rotated = mine * cosine + tl.where(D < HEAD_DIM // 2, -pair, pair) * sine
    tl.debug_barrier()  # all of the head is read before any of it is written
    if is_query:
        if INT8:
            rotated = _spread(rotated, BLOCK, ORDER)
        tl.store(x + D, rotated, mask=inside)
    else:
        group = head - HEADS
        if OFFSET:
            rotated -= tl.load(key_offset + group * HEAD_DIM + D, mask=inside, other=0.0)
        if INT8:
            rotated = _spread(rotated, BLOCK, ORDER)
        value = tl.load(v + token * k_stride + group * HEAD_DIM + D, mask=inside, other=0.0).to(tl.float32)
        _store(
            pages, scales, rotated, slot, group, 0, page_values, D, inside, INT8, FP8, KV_HEADS, HEAD_DIM, PAGE_TOKENS
        )
        _store(pages, scales, value, slot, group, 1, page_values, D, inside, INT8, FP8, KV_HEADS, HEAD_DIM, PAGE_TOKENS)
