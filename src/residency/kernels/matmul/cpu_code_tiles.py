"""Products of 16 tokens in tile registers (Intel AMX), by the same sums as one token's.

A group's codes, of 32 columns, are laid out as bytes, one tile instruction multiplies them by all tokens, and the
integers enter the totals as cpu_blocks.py says: bit for bit what one token alone gets. A group takes three turns of the
loop, two apart: its codes are laid out, multiplied, and scaled; so no turn waits for a result of its own.
"""

from functools import partial

from numba import njit

from residency.kernels.matmul.cpu_blocks import FAR_PREFETCH_BYTES, accumulator
from residency.kernels.simd.blocks import GROUP, TILE_TOKENS, WORDS_BYTES
from residency.kernels.simd.language import (
    high_nibbles,
    load_f16x16,
    load_f32x16,
    load_rows_i32,
    load_u8x64,
    low_nibbles,
    mul_f32,
    or_u8,
    plane_bit,
    prefetch_l2,
    splat_f32,
    stack_bytes,
    store_f32x16,
    store_i64,
    store_u8x64,
    tile_configure,
    tile_dot_i8u8,
    tile_load,
    tile_release,
    tile_store,
    tile_zero,
    zeros_f32,
)

DELAY = 2  # turns between a group's codes and its product, and between that and its scaling
SLOTS = 8  # groups that are under way, and more
SCALES_AT = 512  # in a slot, after 32 columns' codes: 16 scales, and 16 minima
SLOT_BYTES = SCALES_AT + 128
SLOTS_BYTES = SLOTS * SLOT_BYTES
SUMS = 4  # products that are under way
SUM_BYTES = 64 * TILE_TOKENS  # of 16 rows
SUMS_BYTES = SUMS * SUM_BYTES

_device = njit(error_model="numpy", nogil=True, forceinline=True)
_function = njit(error_model="numpy", nogil=True)


@_device
def ahead(at, num_bytes):
    """Start on its way into the second-level cache what is laid out later."""
    for line in range(0, num_bytes, 64):
        prefetch_l2(at + FAR_PREFETCH_BYTES + line)


@_device
def store_scales(scale, minimum, slot):
    """A group's 16 scales, and what code 0 stands for."""
    store_f32x16(slot + SCALES_AT, scale)
    store_f32x16(slot + SCALES_AT + 64, minimum)


@_device
def nibbles(at, slot):
    """Lay out 32 columns' codes of four bits."""
    for quarter in range(4):
        packed = load_u8x64(at + 64 * quarter)
        store_u8x64(slot + 128 * quarter, low_nibbles(packed))
        store_u8x64(slot + 128 * quarter + 64, high_nibbles(packed))


@_device
def _nibbles_and_plane(at, plane_at, slot):
    plane = load_u8x64(plane_at)
    for quarter in range(4):
        packed = load_u8x64(at + 64 * quarter)
        store_u8x64(slot + 128 * quarter, or_u8(low_nibbles(packed), plane_bit(plane, 2 * quarter)))
        store_u8x64(slot + 128 * quarter + 64, or_u8(high_nibbles(packed), plane_bit(plane, 2 * quarter + 1)))


def _one_group(has_plane, has_minimum, middle=0.0):
    """Q4_0, Q4_1, Q5_0 and Q5_1: the minimum is stored, or a multiple of the scale."""
    scale_at = 320 if has_plane else 256
    block_bytes = scale_at + (64 if has_minimum else 32)

    @_device
    def lay_out(at, group, slot):
        ahead(at, block_bytes)
        scale = load_f16x16(at + scale_at)
        minimum = load_f16x16(at + scale_at + 32) if has_minimum else mul_f32(scale, splat_f32(middle))
        store_scales(scale, minimum, slot)
        if has_plane:
            _nibbles_and_plane(at, at + 256, slot)
        else:
            nibbles(at, slot)
        return slot

    return lay_out


@_device
def _q8_0(at, group, slot):
    """The codes are bytes already."""
    ahead(at, 544)
    scale = load_f16x16(at + 512)
    store_scales(scale, mul_f32(scale, splat_f32(-128.0)), slot)
    return at


@_function
def _configure(at):
    """Registers 0: sums, 1: the tokens' columns, 2: codes."""
    for offset in range(0, 64, 8):
        store_i64(at + offset, 0)
    store_i64(at, 1)
    store_i64(at + 16, 64 + (32 << 16) + (64 << 32))
    store_i64(at + 48, TILE_TOKENS + (TILE_TOKENS << 8) + (8 << 16))
    tile_configure(at)


def tile_multiplier(lay_out, block_groups, block_bytes, finish):
    """Multiply a run of tiles by 16 rows of x, as cpu.py's multipliers do; `finish` stores a tile's totals.

    `lay_out(block, group, slot)` returns where the group's codes are.
    """
    add_group, _, _ = accumulator(TILE_TOKENS)

    @_device
    def scaled(total, sums, slot, words, stride):
        scale, minimum = load_f32x16(slot + SCALES_AT), load_f32x16(slot + SCALES_AT + 64)
        return add_group(total, load_rows_i32(TILE_TOKENS, sums, 64), scale, minimum, words, words + 12, stride)

    @_function
    def multiply(first, last, weights, x, x_stride, out, out_stride, bias, accumulate, blocks):
        slots, sums = stack_bytes(SLOTS_BYTES), stack_bytes(SUMS_BYTES)
        _configure(sums)
        row_groups = block_groups * blocks
        words = x + GROUP * row_groups
        groups = row_groups * (last - first)
        at, group = weights + block_bytes * blocks * first, 0  # the block, and its group, to be laid out
        codes = next_codes = last_codes = slots
        multiplied = added = 0  # the row's group that is to be multiplied, and scaled
        total = zeros_f32(TILE_TOKENS)
        for turn in range(groups + 2 * DELAY):
            if turn < groups:
                last_codes = lay_out(at, group, slots + SLOT_BYTES * (turn % SLOTS))
                group += 1
                if group == block_groups:
                    group, at = 0, at + block_bytes
            if turn >= DELAY:
                tile_zero(0)
                tile_load(1, x + GROUP * multiplied, x_stride)
                tile_load(2, codes, 64)
                tile_dot_i8u8(0, 1, 2)
                tile_store(0, sums + SUM_BYTES * (turn % SUMS), 64)
                multiplied = multiplied + 1 if multiplied + 1 < row_groups else 0
            codes, next_codes = next_codes, last_codes
            if turn >= 2 * DELAY:
                its_sums = sums + SUM_BYTES * ((turn - DELAY) % SUMS)
                slot = slots + SLOT_BYTES * ((turn - 2 * DELAY) % SLOTS)
                total = scaled(total, its_sums, slot, words + WORDS_BYTES * added, x_stride)
                added += 1
                if added == row_groups:
                    finish(total, first, out, out_stride, bias, accumulate)
                    total = zeros_f32(TILE_TOKENS)
                    first, added = first + 1, 0
        tile_release()

    return multiply


# Of each format for which this is quicker, `multiplier(block_bytes, finish)`; a block is one group.
IN_SIXTEENS = {
    name: partial(tile_multiplier, lay_out, 1)
    for name, lay_out in {
        "Q4_0": _one_group(False, False, -8.0),
        "Q4_1": _one_group(False, True),
        "Q5_0": _one_group(True, False, -16.0),
        "Q5_1": _one_group(True, True),
        "Q8_0": _q8_0,
    }.items()
}
