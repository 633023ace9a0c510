"""activation(gate) * up, written over gate, with the quantized twin of the result in the same pass."""

from residency.kernels.simd.blocks import GROUP, gelu_tanh, int8_rows, place_of_row, share_start, silu, store_group
from residency.kernels.simd.language import load_f32x16, load_i64, mul_f32, store_f32x16


def _kernel(activation):
    def gate(gate, up, stride, columns, q8, q8_stride, int8_at, tokens_at, thread, threads):
        tokens = load_i64(tokens_at)
        quantized = int8_rows(tokens, int8_at)
        groups = columns // GROUP
        unit, end = share_start(tokens * groups, thread, threads), share_start(tokens * groups, thread + 1, threads)
        while unit < end:  # row after row
            row = unit // groups
            first = unit - row * groups
            last = min(groups, first + end - unit)
            place, group_bytes = place_of_row(q8, q8_stride, row, tokens, quantized)
            for group in range(first, last):
                at = stride * row + 128 * group
                low = mul_f32(activation(load_f32x16(gate + at)), load_f32x16(up + at))
                high = mul_f32(activation(load_f32x16(gate + at + 64)), load_f32x16(up + at + 64))
                if q8 != 0:
                    store_group(low, high, place + group_bytes * group, row < quantized)
                else:
                    store_f32x16(gate + at, low)
                    store_f32x16(gate + at + 64, high)
            unit += last - first

    return gate


KERNELS = {"silu": _kernel(silu), "gelu_tanh": _kernel(gelu_tanh)}
