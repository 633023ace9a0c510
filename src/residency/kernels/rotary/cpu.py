"""Rotate queries and keys, normalise them first where the model does, and write keys and values into their pages."""

from math import sqrt

from numba import njit

from residency.kernels.rotary.cpu_codes import spread, write_4, write_8
from residency.kernels.simd.blocks import share_start
from residency.kernels.simd.language import (
    fma,
    load_f32,
    load_f32x16,
    load_i64,
    mul_f32,
    splat_f32,
    store_f16,
    store_f16x16,
    store_f32,
    store_f32x16,
    sub_f32,
)

PAGE_TOKENS = 16  # a page's tokens are the lanes of a vector

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)


@_device
def _inverse_norm(source, weight, epsilon, head_dim):
    """1 / rms of a head where it has a norm, else 1."""
    if weight == 0:
        return 1.0
    squares = 0.0
    for i in range(head_dim):
        value = load_f32(source + 4 * i)
        squares += value * value
    return 1.0 / sqrt(squares / head_dim + epsilon)


@_device
def _rotate(head, weight, epsilon, rope, head_dim):
    """Normalise and rotate a head in place; its halves are the rotation's two axes."""
    half = 2 * head_dim  # bytes
    scale = _inverse_norm(head, weight, epsilon, head_dim)
    inverse = splat_f32(scale)
    whole = half // 64 * 64
    for at in range(whole, half, 4):
        low_value = load_f32(head + at) * scale
        high_value = load_f32(head + half + at) * scale
        if weight != 0:
            low_value *= load_f32(weight + at)
            high_value *= load_f32(weight + half + at)
        store_f32(head + at, low_value * load_f32(rope + at) - high_value * load_f32(rope + half + at))
        store_f32(head + half + at, high_value * load_f32(rope + at) + low_value * load_f32(rope + half + at))
    for at in range(0, whole, 64):
        low = mul_f32(load_f32x16(head + at), inverse)
        high = mul_f32(load_f32x16(head + half + at), inverse)
        if weight != 0:
            low = mul_f32(low, load_f32x16(weight + at))
            high = mul_f32(high, load_f32x16(weight + half + at))
        cosine = load_f32x16(rope + at)
        sine = load_f32x16(rope + half + at)
        store_f32x16(head + at, sub_f32(mul_f32(low, cosine), mul_f32(high, sine)))
        store_f32x16(head + half + at, fma(high, cosine, mul_f32(low, sine)))


def _float_writer(store, store_16, value_bytes):
    """Write a head's key and value into their place in a page."""

    @_function
    def write(key, value, offset, page, head, kv_heads, head_dim, place):
        head_bytes = value_bytes * PAGE_TOKENS * head_dim
        key_at = page + head_bytes * head
        value_at = key_at + head_bytes * kv_heads
        for i in range(head_dim):
            store(key_at + value_bytes * (PAGE_TOKENS * i + place), load_f32(key + 4 * i))
        for at in range(0, 4 * head_dim, 64):
            store_16(value_at + value_bytes * (head_dim * place + at // 4), load_f32x16(value + at))

    return write


def _kernel(write, is_quantized):
    """The kernel for keys and values of one format."""

    def rotate_and_store(
        q, q_stride, k, v, kv_stride, heads, kv_heads, head_dim, q_norm, k_norm, epsilon: float,
        rope, rope_stride, key_offset, slots_at, pages, page_bytes, tokens_at, thread, threads,
    ):  # fmt: skip
        """See reference.rotate_and_store. The work is dealt out by token and head; q and k are rotated in place."""
        per_token = heads + kv_heads
        units = load_i64(tokens_at) * per_token
        for unit in range(share_start(units, thread, threads), share_start(units, thread + 1, threads)):
            token = unit // per_token
            head = unit % per_token
            angles = rope + rope_stride * token
            if head < heads:
                query = q + q_stride * token + 4 * head_dim * head
                _rotate(query, q_norm, epsilon, angles, head_dim)
                if is_quantized:
                    spread(query, head_dim)
                continue
            head -= heads
            slot = load_i64(slots_at + 8 * token)
            page = pages + page_bytes * (slot // PAGE_TOKENS)
            key = k + kv_stride * token + 4 * head_dim * head
            value = v + kv_stride * token + 4 * head_dim * head
            _rotate(key, k_norm, epsilon, angles, head_dim)
            offset = 0 if key_offset == 0 else key_offset + 4 * head_dim * head
            write(key, value, offset, page, head, kv_heads, head_dim, slot % PAGE_TOKENS)

    return rotate_and_store


KERNELS = {
    "rotate_and_store_F16": _kernel(_float_writer(store_f16, store_f16x16, 2), False),
    "rotate_and_store_F32": _kernel(_float_writer(store_f32, store_f32x16, 4), False),
    "rotate_and_store_INT8": _kernel(write_8, True),
    "rotate_and_store_INT4": _kernel(write_4, True),
}
