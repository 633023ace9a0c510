"""RMS norm of rows, with the quantized twin of the result in the same pass."""

from math import sqrt

from residency.kernels.simd.blocks import GROUP, int8_rows, place_of_row, share_start, store_group
from residency.kernels.simd.language import (
    add_f32,
    fma,
    load_f32x16,
    load_i64,
    mul_f32,
    splat_f32,
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
    first_group = 0 if by_rows else share_start(groups, thread, threads)
    last_group = groups if by_rows else share_start(groups, thread + 1, threads)
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
        place, group_bytes = place_of_row(q8, q8_stride, row, tokens, quantized)
        for group in range(first_group, last_group):
            at = 128 * group
            low = mul_f32(mul_f32(load_f32x16(source + at), inverse), load_f32x16(weight + at))
            high = mul_f32(mul_f32(load_f32x16(source + at + 64), inverse), load_f32x16(weight + at + 64))
            if out != 0:
                target = out + out_stride * row + at
                if add != 0:
                    low = add_f32(low, load_f32x16(target))
                    high = add_f32(high, load_f32x16(target + 64))
                store_f32x16(target, low)
                store_f32x16(target + 64, high)
            if q8 != 0:
                store_group(low, high, place + group_bytes * group, row < quantized)


KERNELS = {"rms": rms}
