"""What follows from positions. Threads share tokens."""

from math import cos, sin

import numpy as np

from residency.kernels.simd.blocks import share_start
from residency.kernels.simd.language import load_f64, load_i32, load_i64, store_f32, store_i64


def splits(positions, page_tokens, pages_per_split, max_splits, out, int8_at, tokens_at, thread, threads):
    """See reference.splits."""
    tokens, quantized = load_i64(tokens_at), load_i64(int8_at)
    for token in range(share_start(tokens, thread, threads), share_start(tokens, thread + 1, threads)):
        pages = load_i64(positions + 8 * token) // page_tokens + 1
        parts = min(max(pages // pages_per_split, 1), max_splits)
        store_i64(out + 8 * token, parts if token < quantized else 1)


def slots(positions, sequences, tables, table_stride, page_tokens, out, tokens_at, thread, threads):
    """See reference.slots."""
    tokens = load_i64(tokens_at)
    for token in range(share_start(tokens, thread, threads), share_start(tokens, thread + 1, threads)):
        position = load_i64(positions + 8 * token)
        page = load_i32(tables + table_stride * load_i64(sequences + 8 * token) + 4 * (position // page_tokens))
        store_i64(out + 8 * token, page * page_tokens + position % page_tokens)


def angles(positions, frequencies, half, factor: float, out, out_stride, tokens_at, thread, threads):
    """See reference.angles."""
    tokens = load_i64(tokens_at)
    for token in range(share_start(tokens, thread, threads), share_start(tokens, thread + 1, threads)):
        position = load_i64(positions + 8 * token)
        for i in range(half):
            phase = position * load_f64(frequencies + 8 * i)
            at = out + out_stride * token + 4 * i
            store_f32(at, np.float32(factor * cos(phase)))
            store_f32(at + 4 * half, np.float32(factor * sin(phase)))


KERNELS = {"splits": splits, "slots": slots, "angles": angles}
