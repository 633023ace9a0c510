"""The largest logit of each part of a row."""

from math import inf

from residency.kernels.simd.blocks import share_start
from residency.kernels.simd.language import (
    largest_f32,
    load_f32,
    load_f32x16,
    load_i64,
    max_f32,
    splat_f32,
    store_f32,
    store_i32,
)

BLOCK = 256  # logits whose largest is found before it is looked for


def likeliest(logits, logits_stride, vocabulary, parts, values, tokens, out_stride, tokens_at, thread, threads):
    """See reference.likeliest. Threads share parts, so that most logits are read by the thread that made them."""
    rows = load_i64(tokens_at)
    blocks = vocabulary // BLOCK
    for piece in range(share_start(rows * parts, thread, threads), share_start(rows * parts, thread + 1, threads)):
        row, part = piece % rows, piece // rows
        source = logits + logits_stride * row
        start = BLOCK * share_start(blocks, part, parts)
        end = vocabulary if part == parts - 1 else BLOCK * share_start(blocks, part + 1, parts)
        best = -inf
        place = start  # where a block begins that has the largest so far
        column = start
        while column + BLOCK <= end:
            low = splat_f32(-inf)
            high = low
            for vector in range(0, BLOCK, 32):
                low = max_f32(low, load_f32x16(source + 4 * (column + vector)))
                high = max_f32(high, load_f32x16(source + 4 * (column + vector) + 64))
            largest = largest_f32(max_f32(low, high))
            if largest > best:
                best = largest
                place = column
            column += BLOCK
        for last in range(column, end):
            value = load_f32(source + 4 * last)
            if value > best:
                best = value
                place = last
        while place < end - 1 and load_f32(source + 4 * place) != best:
            place += 1
        store_f32(values + out_stride * row + 4 * part, best)
        store_i32(tokens + out_stride * row + 4 * part, place)


KERNELS = {"likeliest": likeliest}
