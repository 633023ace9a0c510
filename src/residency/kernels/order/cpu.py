"""Columns in another order, packed in the same pass: each group's 32 values are gathered and then packed as ever."""

from residency.kernels.simd.blocks import GROUP, MADE_BYTES, int8_rows, pack, run_start
from residency.kernels.simd.language import load_f32, load_i32, load_i64, stack_bytes, store_f32


def columns(x, x_stride, order, columns, q8, q8_stride, together, int8_at, tokens_at, thread, threads):
    """See reference.in_order. A thread has columns of all rows."""
    gathered = stack_bytes(MADE_BYTES)
    tokens = load_i64(tokens_at)
    quantized = int8_rows(tokens, int8_at)
    groups = columns // GROUP
    begin, end = run_start(groups, together, thread, threads), run_start(groups, together, thread + 1, threads)
    for first in range(begin, end, together):
        for row in range(tokens):
            for column in range(GROUP * together):
                index = load_i32(order + 4 * (GROUP * first + column))
                store_f32(gathered + 4 * column, load_f32(x + x_stride * row + 4 * index))
            pack(gathered, first, first + together, groups, together, q8, q8_stride, row, tokens, quantized)


KERNELS = {"columns": columns}
