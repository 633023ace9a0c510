"""Rotate queries and keys, normalise them first where the model does, and write keys and values into their pages."""

from math import sqrt

from numba import njit

from residency.kernels.simd.blocks import share_start
from residency.kernels.simd.language import load_f32, load_i64, store_f16, store_f32

PAGE_TOKENS = 16  # a page's tokens are the lanes of a vector

_device = njit(error_model="numpy", nogil=True, forceinline=True)


@_device
def _rotated(source, weight, inverse, rope, i, half):
    """Value i of a head after norm and rotation; the halves of a head are the rotation's two axes."""
    j = i if i < half else i - half
    low = load_f32(source + 4 * j) * inverse
    high = load_f32(source + 4 * (j + half)) * inverse
    if weight != 0:
        low *= load_f32(weight + 4 * j)
        high *= load_f32(weight + 4 * (j + half))
    cosine = load_f32(rope + 4 * j)
    sine = load_f32(rope + 4 * (j + half))
    return low * cosine - high * sine if i < half else high * cosine + low * sine


@_device
def _inverse_norm(source, weight, epsilon, head_dim):
    if weight == 0:
        return 1.0
    squares = 0.0
    for i in range(head_dim):
        value = load_f32(source + 4 * i)
        squares += value * value
    return 1.0 / sqrt(squares / head_dim + epsilon)


def rotate_and_store(
    q, q_stride, k, v, kv_stride, heads, kv_heads, head_dim, q_norm, k_norm, epsilon: float,
    rope, rope_stride, slots_at, pages, page_bytes, tokens_at, thread, threads,
):  # fmt: skip
    """See reference.rotate_and_store. The work is dealt out by token and head; q is rotated in place."""
    half = head_dim // 2
    per_token = heads + kv_heads
    units = load_i64(tokens_at) * per_token
    for unit in range(share_start(units, thread, threads), share_start(units, thread + 1, threads)):
        token = unit // per_token
        head = unit % per_token
        angles = rope + rope_stride * token
        if head < heads:
            source = q + q_stride * token + 4 * head_dim * head
            inverse = _inverse_norm(source, q_norm, epsilon, head_dim)
            for i in range(half):
                low = _rotated(source, q_norm, inverse, angles, i, half)
                high = _rotated(source, q_norm, inverse, angles, i + half, half)
                store_f32(source + 4 * i, low)
                store_f32(source + 4 * (i + half), high)
            continue
        head -= heads
        slot = load_i64(slots_at + 8 * token)
        offset = slot % PAGE_TOKENS
        head_bytes = 2 * PAGE_TOKENS * head_dim
        key_at = pages + page_bytes * (slot // PAGE_TOKENS) + head_bytes * head
        value_at = key_at + head_bytes * kv_heads
        source = k + kv_stride * token + 4 * head_dim * head
        inverse = _inverse_norm(source, k_norm, epsilon, head_dim)
        for i in range(head_dim):
            store_f16(key_at + 2 * (PAGE_TOKENS * i + offset), _rotated(source, k_norm, inverse, angles, i, half))
        source = v + kv_stride * token + 4 * head_dim * head
        for i in range(head_dim):
            store_f16(value_at + 2 * (head_dim * offset + i), load_f32(source + 4 * i))


KERNELS = {"rotate_and_store": rotate_and_store}
