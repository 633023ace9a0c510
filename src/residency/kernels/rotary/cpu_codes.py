"""Keys and values as integers: what is taken off first, how values are spread, and where their codes lie in a page.

Pages are those of attention/cpu_codes. A head's key, less its offset, is multiplied by a Hadamard matrix before it is
rounded, and so is each query: scores stay what they are and single large values no longer set everybody's scale
(S. Ashkboos et al.: QuaRot, 2024).
"""

from math import sqrt

from numba import njit

from residency.kernels.simd.codes import hadamard_16, store_i8
from residency.kernels.simd.language import (
    abs_f32,
    add_f32,
    add_i32,
    largest_f32,
    load_f16,
    load_f32x16,
    load_i32,
    load_u8,
    max_f32,
    min_f32,
    mul_f32,
    round_f32,
    splat_f32,
    splat_i32,
    store_f16,
    store_f32x16,
    store_i8x16,
    store_i32,
    sub_f32,
    to_i32,
)

PAGE_TOKENS = 16
SCALE_BYTES = 64  # of a key-value head: 16 of keys, 16 of values, in float16

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)


@_function
def spread(head, head_dim):
    """Multiply a head in place by the Hadamard matrix of the largest order that divides its width, block by block."""
    order = head_dim & -head_dim
    factor = splat_f32(1.0 / sqrt(order))
    for at in range(head, head + 4 * head_dim, 64):
        store_f32x16(at, mul_f32(hadamard_16(load_f32x16(at)), factor))
    distance = 64
    while distance < 4 * order:
        for block in range(head, head + 4 * head_dim, 2 * distance):
            for at in range(block, block + distance, 64):
                low, high = load_f32x16(at), load_f32x16(at + distance)
                store_f32x16(at, add_f32(low, high))
                store_f32x16(at + distance, sub_f32(low, high))
        distance *= 2


@_device
def _encode(head, head_dim, scale_at, largest_code):
    """Round a head to codes with largest_code + 1 added, a byte each, over its own first bytes; keep its scale."""
    largest = splat_f32(0.0)
    for at in range(head, head + 4 * head_dim, 64):
        largest = max_f32(largest, abs_f32(load_f32x16(at)))
    store_f16(scale_at, largest_f32(largest) / largest_code)
    scale = load_f16(scale_at)
    inverse = splat_f32(1.0 / scale if scale > 0.0 else 0.0)
    most = splat_f32(largest_code)
    for i in range(0, head_dim, 16):
        rounded = round_f32(mul_f32(load_f32x16(head + 4 * i), inverse))
        code = to_i32(max_f32(min_f32(rounded, most), sub_f32(splat_f32(0.0), most)))
        store_i8x16(head + i, add_i32(code, splat_i32(largest_code + 1)))


@_device
def _prepare_key(key, offset, head_dim):
    if offset != 0:
        for at in range(0, 4 * head_dim, 64):
            store_f32x16(key + at, sub_f32(load_f32x16(key + at), load_f32x16(offset + at)))
    spread(key, head_dim)


@_function
def write_8(key, value, offset, page, head, kv_heads, head_dim, place):
    """Write a head's key and value, which are overwritten, into their place in a page of 8 bits."""
    head_bytes = PAGE_TOKENS * head_dim
    key_at = page + head_bytes * head
    value_at = key_at + head_bytes * kv_heads
    scales = page + 2 * head_bytes * kv_heads + SCALE_BYTES * head + 2 * place
    _prepare_key(key, offset, head_dim)
    _encode(key, head_dim, scales, 127)
    for d in range(0, head_dim, 4):
        store_i32(key_at + PAGE_TOKENS * d + 4 * place, load_i32(key + d))
    _encode(value, head_dim, scales + 32, 127)
    first = value_at + head_dim * (place - place % 4) + place % 4
    for d in range(head_dim):
        store_i8(first + 4 * d, load_u8(value + d))


@_function
def write_4(key, value, offset, page, head, kv_heads, head_dim, place):
    """As write_8, of 4 bits; two codes of the same token share a byte."""
    head_bytes = PAGE_TOKENS // 2 * head_dim
    key_at = page + head_bytes * head
    value_at = key_at + head_bytes * kv_heads
    scales = page + 2 * head_bytes * kv_heads + SCALE_BYTES * head + 2 * place
    _prepare_key(key, offset, head_dim)
    _encode(key, head_dim, scales, 7)
    for d in range(0, head_dim, 8):
        store_i32(key_at + PAGE_TOKENS // 2 * d + 4 * place, load_i32(key + d) + 16 * load_i32(key + d + 4))
    _encode(value, head_dim, scales + 32, 7)
    first = value_at + head_dim // 2 * (place - place % 4) + place % 4
    for d in range(0, head_dim, 32):
        for lane in range(16):
            both = load_u8(value + d + lane) + 16 * load_u8(value + d + 16 + lane)
            store_i8(first + 2 * d + 4 * lane, both)
