"""RMS norm of rows, with the quantized twin of the result in the same pass."""

from math import sqrt

from residency.kernels.simd.blocks import GROUP, MADE_BYTES, MOST_TOGETHER, int8_rows, pack, run_start, share_start
from residency.kernels.simd.language import (
    add_f32,
    fma,
    load_f32x16,
    load_i64,
    mul_f32,
    splat_f32,
    stack_bytes,
    store_f32x16,
    sum_f32,
)


def rms(
    x,
    x_stride,
    rows_at,
    weight,
    epsilon: float,
    columns,
    out,
    out_stride,
    add,
    q8,
    q8_stride,
    together,
    int8_at,
    tokens_at,
    thread,
    threads,
):
    """See reference.rms_norm. `rows_at`, `out` and `q8` are 0 where they are not wanted.

    With at least as many rows as threads each thread takes rows; with fewer, each takes columns of every row.
    """
    tokens = load_i64(tokens_at)
    quantized = int8_rows(tokens, int8_at)
    groups = columns // GROUP
    by_rows = tokens >= threads
    first_row = share_start(tokens, thread, threads) if by_rows else 0
    last_row = share_start(tokens, thread + 1, threads) if by_rows else tokens
    first_group = 0 if by_rows else run_start(groups, together, thread, threads)
    last_group = groups if by_rows else run_start(groups, together, thread + 1, threads)
    made = stack_bytes(MADE_BYTES)
    for row in range(first_row, last_row):
        source = x + x_stride * (load_i64(rows_at + 8 * row) if rows_at != 0 else row)
        low_squares = splat_f32(0.0)
        high_squares = splat_f32(0.0)
        for group in range(groups):
            low = load_f32x16(source + 128 * group)
            high = load_f32x16(source + 128 * group + 64)
            low_squares = fma(low, low, low_squares)
            high_squares = fma(high, high, high_squares)
        mean = sum_f32(add_f32(low_squares, high_squares)) / columns
        inverse = splat_f32(1.0 / sqrt(mean + epsilon))
        for first in range(first_group, last_group, MOST_TOGETHER):
            last = min(first + MOST_TOGETHER, last_group)
            for half in range(2 * first, 2 * last):
                value = mul_f32(mul_f32(load_f32x16(source + 64 * half), inverse), load_f32x16(weight + 64 * half))
                if out != 0:
                    target = out + out_stride * row + 64 * half
                    if add != 0:
                        value = add_f32(value, load_f32x16(target))
                    store_f32x16(target, value)
                store_f32x16(made + 64 * half - 128 * first, value)
            if q8 != 0:
                pack(made, first, last, groups, together, q8, q8_stride, row, tokens, quantized)


KERNELS = {"rms": rms}
