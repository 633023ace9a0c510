"""Products of prompts in tile registers (Intel AMX): two tiles of weights, unpacked part by part, times all tokens.

Some 256 columns of 32 rows of weights are unpacked to bfloat16 in the first-level cache (cpu_unpack.py), and meet all
tokens before the next are. A product of 32 tokens and 32 rows is four registers; between the parts, the sums of up
to 512 tokens stay in the second-level cache.
"""

from numba import njit

from residency.kernels.matmul.cpu_unpack import GROUP_BYTES
from residency.kernels.simd.blocks import TILE_TOKENS
from residency.kernels.simd.language import (
    add_f32,
    load_f32x16,
    splat_f32,
    stack_bytes,
    store_f32x16,
    store_i64,
    tile_configure,
    tile_dot_bf16,
    tile_load,
    tile_release,
    tile_store,
    tile_zero,
)

PAIR_TOKENS = 2 * TILE_TOKENS
PART_GROUPS = 9  # of 32 columns, unpacked together at most
PANEL_BYTES = PART_GROUPS * GROUP_BYTES  # of one tile
PANELS_BYTES = 2 * PANEL_BYTES
MOST_GROUPS = 24  # that all tiles meet before the next: 0.75 MiB of 512 tokens stay in the second-level cache
MOST_TOKENS = 512  # whose sums are kept together
SUM_BYTES = 128  # of a token with 32 rows
SUMS_BYTES = MOST_TOKENS * SUM_BYTES

ZEROS, RESULT, SUMS = range(3)  # places of the sums of a part

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)


@_function
def _configure(at, tokens):
    """Registers 0, 1 and 4: sums and rows of x of the first 16 tokens; 2, 3 and 5: of the next; 6, 7: weights."""
    first = min(tokens, TILE_TOKENS)
    second = max(tokens - TILE_TOKENS, 1)
    for offset in range(0, 64, 8):
        store_i64(at + offset, 0)
    store_i64(at, 1)
    store_i64(at + 16, 64 * 0x0001000100010001)
    store_i64(at + 24, 64 * 0x0001000100010001)
    sums = first * 0x0101 + second * 0x01010000
    store_i64(at + 48, sums + (first << 32) + (second << 40) + (TILE_TOKENS << 48) + (TILE_TOKENS << 56))
    tile_configure(at)


@_function
def _load_sums(from_zero, at, other, stride, has_two):
    if from_zero != 0:
        tile_zero(0)
        tile_zero(1)
        tile_zero(2)
        tile_zero(3)
    else:
        tile_load(0, at, stride)
        tile_load(1, other, stride)
        if has_two != 0:
            tile_load(2, at + TILE_TOKENS * stride, stride)
            tile_load(3, other + TILE_TOKENS * stride, stride)


@_function
def _store_sums(at, other, stride, has_two):
    tile_store(0, at, stride)
    tile_store(1, other, stride)
    if has_two != 0:
        tile_store(2, at + TILE_TOKENS * stride, stride)
        tile_store(3, other + TILE_TOKENS * stride, stride)


@_function
def _multiply_two(panels, groups, x, x_group_bytes, next_x, next_x_group_bytes):
    """17 to 32 tokens times two tiles."""
    for group in range(groups):
        tile_load(4, x + x_group_bytes * group, 64)
        tile_load(6, panels + GROUP_BYTES * group, 64)
        tile_dot_bf16(0, 4, 6)
        tile_load(7, panels + PANEL_BYTES + GROUP_BYTES * group, 64)
        tile_dot_bf16(1, 4, 7)
        tile_load(5, next_x + next_x_group_bytes * group, 64)
        tile_dot_bf16(2, 5, 6)
        tile_dot_bf16(3, 5, 7)


@_function
def _multiply_one(panels, groups, x, x_group_bytes):
    """At most 16 tokens times two tiles."""
    for group in range(groups):
        tile_load(4, x + x_group_bytes * group, 64)
        tile_load(6, panels + GROUP_BYTES * group, 64)
        tile_dot_bf16(0, 4, 6)
        tile_load(7, panels + PANEL_BYTES + GROUP_BYTES * group, 64)
        tile_dot_bf16(1, 4, 7)


@_function
def _start_with_bias(out, out_stride, tokens, bias, accumulate):
    for token in range(tokens):
        before = load_f32x16(out + out_stride * token) if accumulate != 0 else splat_f32(0.0)
        store_f32x16(out + out_stride * token, add_f32(before, load_f32x16(bias)))


@_function
def multiply_part(panels, groups, first_group, x, x_stride, tokens, result, other, out_stride, sums, load, store, at):
    """All tokens times one part: `load` and `store` say where the sums come from and go to (ZEROS, RESULT, SUMS)."""
    configured = 0
    for token in range(0, tokens, PAIR_TOKENS):
        count = min(tokens - token, PAIR_TOKENS)
        if count != configured:
            _configure(at, count)
            configured = count
        has_two = 1 if count > TILE_TOKENS else 0
        kept, row = sums + SUM_BYTES * token, out_stride * token
        if load == RESULT:
            _load_sums(0, result + row, other + row, out_stride, has_two)
        else:
            _load_sums(1 if load == ZEROS else 0, kept, kept + 64, SUM_BYTES, has_two)
        group_bytes = 64 * min(count, TILE_TOKENS)
        source = x + x_stride * token + group_bytes * first_group
        if has_two != 0:
            next_bytes = 64 * (count - TILE_TOKENS)
            next_source = x + x_stride * (token + TILE_TOKENS) + next_bytes * first_group
            _multiply_two(panels, groups, source, group_bytes, next_source, next_bytes)
        else:
            _multiply_one(panels, groups, source, group_bytes)
        if store == RESULT:
            _store_sums(result + row, other + row, out_stride, has_two)
        else:
            _store_sums(kept, kept + 64, SUM_BYTES, has_two)


@_device
def even_parts(total, most):
    """The largest of as few parts of at most `most` as there can be, all about as large as each other."""
    parts = (total + most - 1) // most
    return (total + parts - 1) // parts


def part_unpacker(unpack, block_bytes, block_groups):
    """Unpack `count` blocks of two tiles, side by side; `unpack(at, panel)` unpacks one block."""
    unpacked_bytes = GROUP_BYTES * block_groups

    @_function
    def unpack_part(low, high, count, panels):
        for i in range(count):
            unpack(low + block_bytes * i, panels + unpacked_bytes * i)
            unpack(high + block_bytes * i, panels + PANEL_BYTES + unpacked_bytes * i)

    return unpack_part


def panel_kernel(unpack, block_bytes, block_groups):
    """Multiply tiles first .. last by at most MOST_TOKENS rows of x; `unpack(at, panel)` unpacks one block.

    x is in tiles, as blocks.place_in_tiles says, `x_stride` bytes for each row.
    """
    unpack_part = part_unpacker(unpack, block_bytes, block_groups)

    @_function
    def by_panels(first, last, weights, x, x_stride, tokens, out, out_stride, bias, accumulate, blocks):
        configuration = stack_bytes(64)
        panels = stack_bytes(PANELS_BYTES)
        sums = stack_bytes(SUMS_BYTES)
        tile_bytes = block_bytes * blocks
        some_blocks = even_parts(blocks, MOST_GROUPS // block_groups)
        for start in range(0, blocks, some_blocks):
            end = min(start + some_blocks, blocks)
            part_blocks = even_parts(end - start, PART_GROUPS // block_groups)
            for index in range(first, last, 2):
                next_index = min(index + 1, last - 1)  # an odd last tile is multiplied twice, to the same end
                result, other = out + 64 * index, out + 64 * next_index
                if bias != 0 and start == 0:
                    _start_with_bias(result, out_stride, tokens, bias + 64 * index, accumulate)
                    if next_index != index:
                        _start_with_bias(other, out_stride, tokens, bias + 64 * next_index, accumulate)
                for block in range(start, end, part_blocks):
                    count = min(part_blocks, end - block)
                    at = weights + block_bytes * block
                    unpack_part(at + tile_bytes * index, at + tile_bytes * next_index, count, panels)
                    begun = RESULT if start > 0 or bias != 0 or accumulate != 0 else ZEROS
                    load = SUMS if block > start else begun
                    store = RESULT if block + count == end else SUMS
                    multiply_part(
                        panels, count * block_groups, block * block_groups, x, x_stride, tokens,
                        result, other, out_stride, sums, load, store, configuration,
                    )  # fmt: skip
        tile_release()

    return by_panels
