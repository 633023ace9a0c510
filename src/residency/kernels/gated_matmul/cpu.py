"""Both products of a gated feed-forward network of a prompt in tile registers, 32 columns of the result at a time.

A tile of the one matrix and a tile of the other are multiplied side by side (see matmul/cpu_panels.py), for up to 512
tokens; the sums never leave the second-level cache, and what is written is the packed result alone.
"""

from numba import njit

from residency.kernels.matmul.cpu_grouped import unpacked
from residency.kernels.matmul.cpu_panels import (
    MOST_TOKENS,
    PANELS_BYTES,
    PART_GROUPS,
    SUM_BYTES,
    SUMS,
    SUMS_BYTES,
    ZEROS,
    even_parts,
    multiply_part,
    part_unpacker,
)
from residency.kernels.matmul.cpu_unpack import UNPACKED
from residency.kernels.simd.blocks import gelu_tanh, inlined, place_in_tiles, share_start, silu
from residency.kernels.simd.language import (
    load_f32x16,
    load_i64,
    mul_f32,
    stack_bytes,
    store_bf16x32,
    tile_release,
)
from residency.kernels.simd.table import KernelTable

X_BYTES = 3 << 19  # of x, that stay in the second-level cache while all tiles pass

_function = njit(error_model="numpy", nogil=True)


def gated_panels(unpack_block, block_bytes, block_groups, activation):
    """32 columns of the gated product, group after group, of a prompt's rows begin .. begin + tokens."""
    unpack_part = part_unpacker(unpack_block, block_bytes, block_groups)

    @_function
    def multiply_two(gate, up, x, x_stride, tokens, sums, panels, configuration, blocks):
        """A tile of each matrix; sums have the gate's 16 columns beside the other's."""
        part_blocks = even_parts(blocks, PART_GROUPS // block_groups)
        for block in range(0, blocks, part_blocks):
            count = min(part_blocks, blocks - block)
            unpack_part(gate + block_bytes * block, up + block_bytes * block, count, panels)
            load = SUMS if block > 0 else ZEROS
            multiply_part(
                panels, count * block_groups, block * block_groups, x, x_stride, tokens,
                0, 0, 0, sums, load, SUMS, configuration,
            )  # fmt: skip

    @_function
    def gated(sums):
        return mul_f32(activation(load_f32x16(sums)), load_f32x16(sums + 64))

    @_function
    def some_tokens(first, last, gate, up, x, x_stride, begin, tokens, quantized, q8, q8_stride, blocks, all_tokens):
        configuration, panels = stack_bytes(64), stack_bytes(PANELS_BYTES)
        low_sums, high_sums = stack_bytes(SUMS_BYTES), stack_bytes(SUMS_BYTES)
        tile_bytes = block_bytes * blocks
        for group in range(first, last):
            low, high = tile_bytes * 2 * group, tile_bytes * (2 * group + 1)
            multiply_two(gate + low, up + low, x, x_stride, tokens, low_sums, panels, configuration, blocks)
            multiply_two(gate + high, up + high, x, x_stride, tokens, high_sums, panels, configuration, blocks)
            for token in range(tokens):
                place, group_bytes = place_in_tiles(q8, q8_stride, begin + token, all_tokens, quantized)
                at = SUM_BYTES * token
                store_bf16x32(place + group_bytes * group, gated(low_sums + at), gated(high_sums + at))
        tile_release()

    return some_tokens


@inlined
def tokens_together(groups):
    """Rows of so many groups of 32 columns that stay in the second-level cache while all tiles pass."""
    return max(64, min(MOST_TOKENS, X_BYTES // (64 * groups) // 64 * 64))


def _kernel(unpack_block, block_bytes, block_groups, activation):
    some_tokens = gated_panels(unpack_block, block_bytes, block_groups, activation)

    def gated_matmul(gate, up, x, x_stride, q8, q8_stride, groups, blocks, int8_at, tokens_at, thread, threads):
        """See reference.gated_linear. A thread has columns of the result, 32 by 32."""
        first, last = share_start(groups, thread, threads), share_start(groups, thread + 1, threads)
        tokens, quantized = load_i64(tokens_at), load_i64(int8_at)
        together = tokens_together(blocks * block_groups)
        for begin in range(quantized, tokens, together):
            count = min(together, tokens - begin)
            row = x + x_stride * begin
            some_tokens(first, last, gate, up, row, x_stride, begin, count, quantized, q8, q8_stride, blocks, tokens)

    return gated_matmul


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh}


def _of_groups(activation, fmt):
    unpack_block, block_bytes, block_groups = unpacked(fmt)
    return _kernel(unpack_block, block_bytes, block_groups, ACTIVATIONS[activation])


KERNELS = KernelTable(
    {
        f"{name}_{number_format}": _kernel(*blocks, activation)
        for name, activation in ACTIVATIONS.items()
        for number_format, blocks in UNPACKED.items()
    },
    _of_groups,
)
