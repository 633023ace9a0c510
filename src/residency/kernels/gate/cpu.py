"""activation(gate) * up, written over gate, and packed in the same pass where that is asked for."""

from residency.kernels.simd.blocks import GROUP, MOST_TOGETHER, gelu_tanh, int8_rows, pack, run_start, silu
from residency.kernels.simd.language import load_f32x16, load_i64, mul_f32, store_f32x16


def _kernel(activation):
    def gate(gate, up, stride, columns, q8, q8_stride, together, int8_at, tokens_at, thread, threads):
        tokens = load_i64(tokens_at)
        quantized = int8_rows(tokens, int8_at)
        groups = columns // GROUP
        unit = run_start(tokens * groups, together, thread, threads)
        end = run_start(tokens * groups, together, thread + 1, threads)
        while unit < end:  # row after row
            row = unit // groups
            first = unit - row * groups
            last = min(groups, first + MOST_TOGETHER, first + end - unit)
            at = stride * row
            for half in range(2 * first, 2 * last):
                value = mul_f32(activation(load_f32x16(gate + at + 64 * half)), load_f32x16(up + at + 64 * half))
                store_f32x16(gate + at + 64 * half, value)
            if q8 != 0:
                pack(gate + at + 128 * first, first, last, groups, together, q8, q8_stride, row, tokens, quantized)
            unit += last - first

    return gate


KERNELS = {"silu": _kernel(silu), "gelu_tanh": _kernel(gelu_tanh)}
