"""Columns in another order, packed in the same pass: each group's 32 values are gathered and then packed as ever."""

from residency.kernels.simd.blocks import GROUP, int8_rows, place_of_row, share_start, store_group
from residency.kernels.simd.language import load_f32, load_f32x16, load_i32, load_i64, stack_bytes, store_f32


def columns(x, x_stride, order, columns, q8, q8_stride, int8_at, tokens_at, thread, threads):
    """See reference.in_order. A thread has groups of 32 columns of all rows."""
    gathered = stack_bytes(128)
    tokens = load_i64(tokens_at)
    quantized = int8_rows(tokens, int8_at)
    groups = columns // GROUP
    for group in range(share_start(groups, thread, threads), share_start(groups, thread + 1, threads)):
        for row in range(tokens):
            for column in range(GROUP):
                index = load_i32(order + 4 * (GROUP * group + column))
                store_f32(gathered + 4 * column, load_f32(x + x_stride * row + 4 * index))
            place, group_bytes = place_of_row(q8, q8_stride, row, tokens, quantized)
            low, high = load_f32x16(gathered), load_f32x16(gathered + 64)
            store_group(low, high, place + group_bytes * group, row < quantized)


KERNELS = {"columns": columns}
