"""Matrix products in the weights' own bits, by tiles of 16 rows: a lane of a vector is a row of the matrix.

Rows of prompts meet a matrix in blocks in tile registers where there are any (see cpu_panels.py); all others so:

Every block format comes down to the same sum over groups of 32 (or 16) columns,

    out[row] += scale[row] * (x_scale * dot(codes[row], x_codes)) + minimum[row] * x_sum

with unsigned codes, activations quantized to int8 (see `quantize_group`), and offsets and minima folded into
`minimum`. The layouts of a tile are those of residency.formats.tiles.
"""

from numba import njit

from residency.kernels.matmul import cpu_unpack as unpack
from residency.kernels.matmul.cpu_panels import MOST_TOKENS, panel_kernel
from residency.kernels.simd.blocks import GROUP_BYTES, HAS_TILES, int8_rows, share_start
from residency.kernels.simd.language import (
    add_each,
    dot4_each,
    dot4_full_each,
    fma_each,
    fma_splat_each,
    high_nibbles,
    load_bf16x16,
    load_f16x16,
    load_f32x16,
    load_i8x16,
    load_i32x16,
    load_i64,
    load_rows_f32,
    load_u8x64,
    low_nibbles,
    mul_f32,
    mul_splat_each,
    or_u8,
    plane_bit,
    plane_bits,
    prefetch,
    prefetch_l2,
    repeat,
    splat_f32,
    store_each,
    to_f32,
    to_f32_each,
    zeros_f32,
    zeros_i32,
)

RUN_BYTES = 1 << 19  # of weights that are kept in the second-level cache, beside a block's activations
LARGE_BLOCK_BYTES = 1024  # blocks from here on look ahead part by part, and are one stream
PREFETCH_BYTES = 2048  # ahead of the block in hand: measured, one row of x gains 30%, less with 1024 or 8192
FAR_PREFETCH_BYTES = 6144  # into the second-level cache: 5% more, 18% of Q6_K; of eight rows 20 to 30%
_device = njit(error_model="numpy", nogil=True, forceinline=True)


def _accumulator(tokens):
    """How a group's integer dots enter the totals, for register blocks of `tokens` vectors."""

    @_device
    def add_group(total, dots, scale, minimum, x_scale, x_sum, stride):
        scaled = mul_splat_each(to_f32_each(dots), x_scale, stride)
        return fma_splat_each(fma_each(scaled, scale, total), minimum, x_sum, stride)

    @_device
    def dot_nibbles(at, x, stride):
        dots = zeros_i32(tokens)
        for quarter in range(4):
            packed = load_u8x64(at + 64 * quarter)
            dots = dot4_each(dots, low_nibbles(packed), x + 8 * quarter, stride)
            dots = dot4_each(dots, high_nibbles(packed), x + 8 * quarter + 4, stride)
        return dots

    @_device
    def dot_nibbles_and_plane(at, plane_at, x, stride):
        dots = zeros_i32(tokens)
        plane = load_u8x64(plane_at)
        for quarter in range(4):
            packed = load_u8x64(at + 64 * quarter)
            low = or_u8(low_nibbles(packed), plane_bit(plane, 2 * quarter))
            high = or_u8(high_nibbles(packed), plane_bit(plane, 2 * quarter + 1))
            dots = dot4_each(dots, low, x + 8 * quarter, stride)
            dots = dot4_each(dots, high, x + 8 * quarter + 4, stride)
        return dots

    return add_group, dot_nibbles, dot_nibbles_and_plane


def _q4_0(tokens):
    add_group, dot_nibbles, _ = _accumulator(tokens)

    @_device
    def block(at, x, stride, total):
        scale = load_f16x16(at + 256)
        minimum = mul_f32(scale, splat_f32(-8.0))
        return add_group(total, dot_nibbles(at, x, stride), scale, minimum, x + 32, x + 44, stride)

    return block


def _q4_1(tokens):
    add_group, dot_nibbles, _ = _accumulator(tokens)

    @_device
    def block(at, x, stride, total):
        dots = dot_nibbles(at, x, stride)
        return add_group(total, dots, load_f16x16(at + 256), load_f16x16(at + 288), x + 32, x + 44, stride)

    return block


def _q5_0(tokens):
    add_group, _, dot_nibbles_and_plane = _accumulator(tokens)

    @_device
    def block(at, x, stride, total):
        scale = load_f16x16(at + 320)
        minimum = mul_f32(scale, splat_f32(-16.0))
        dots = dot_nibbles_and_plane(at, at + 256, x, stride)
        return add_group(total, dots, scale, minimum, x + 32, x + 44, stride)

    return block


def _q5_1(tokens):
    add_group, _, dot_nibbles_and_plane = _accumulator(tokens)

    @_device
    def block(at, x, stride, total):
        dots = dot_nibbles_and_plane(at, at + 256, x, stride)
        return add_group(total, dots, load_f16x16(at + 320), load_f16x16(at + 352), x + 32, x + 44, stride)

    return block


def _q8_0(tokens):
    add_group, _, _ = _accumulator(tokens)

    @_device
    def block(at, x, stride, total):
        dots = zeros_i32(tokens)
        for part in range(8):
            dots = dot4_full_each(dots, load_u8x64(at + 64 * part), x + 4 * part, stride)
        scale = load_f16x16(at + 512)
        return add_group(total, dots, scale, mul_f32(scale, splat_f32(-128.0)), x + 32, x + 44, stride)

    return block


@_device
def _ahead(at, num_bytes, tokens):
    """Start on its way what is read later; one token reads as quickly as memory delivers, and wants it nearer, too."""
    for line in range(0, num_bytes, 64):
        if tokens == 1:
            prefetch(at + PREFETCH_BYTES + line)
        prefetch_l2(at + FAR_PREFETCH_BYTES + line)


def _k_quant(tokens, dot_group, add_group, group_bytes, planes_at, scales_at):
    """A block of Q4_K or Q5_K: eight groups of 32, scales and minima of 6 bits."""

    @_device
    def block(at, x, stride, total):
        _ahead(at + 2048, scales_at + 256 - 2048, tokens)
        scales = load_i32x16(at + scales_at)
        minima = load_i32x16(at + scales_at + 64)
        lows = load_i32x16(at + scales_at + 128)
        scale = load_f16x16(at + scales_at + 192)
        minimum = mul_f32(load_f16x16(at + scales_at + 224), splat_f32(-1.0))
        for group in range(4):
            _ahead(at + 256 * group, 256, tokens)
            x_group = x + GROUP_BYTES * group
            dots = dot_group(at + group_bytes * group, at + planes_at + 64 * group, x_group, stride)
            s = mul_f32(scale, unpack.first_scale(scales, group))
            m = mul_f32(minimum, unpack.first_scale(minima, group))
            total = add_group(total, dots, s, m, x_group + 32, x_group + 44, stride)
        for group in range(4):
            _ahead(at + 256 * (group + 4), 256, tokens)
            x_group = x + GROUP_BYTES * (group + 4)
            dots = dot_group(at + group_bytes * (group + 4), at + planes_at + 64 * (group + 4), x_group, stride)
            s = mul_f32(scale, unpack.last_scale(scales, lows, group, 0))
            m = mul_f32(minimum, unpack.last_scale(minima, lows, group, 4))
            total = add_group(total, dots, s, m, x_group + 32, x_group + 44, stride)
        return total

    return block


def _q4_k(tokens):
    add_group, dot_nibbles, _ = _accumulator(tokens)

    @_device
    def dot_group(at, plane_at, x, stride):
        return dot_nibbles(at, x, stride)

    return _k_quant(tokens, dot_group, add_group, 256, 0, 2048)


def _q5_k(tokens):
    add_group, _, dot_nibbles_and_plane = _accumulator(tokens)
    return _k_quant(tokens, dot_nibbles_and_plane, add_group, 256, 2048, 2560)


def _q6_k(tokens):
    add_group, _, _ = _accumulator(tokens)

    @_device
    def half_group(at, x, stride):
        dots = zeros_i32(tokens)
        planes = load_u8x64(at + 128)
        for part in range(2):
            packed = load_u8x64(at + 64 * part)
            low = or_u8(low_nibbles(packed), plane_bits(planes, 2 * part))
            high = or_u8(high_nibbles(packed), plane_bits(planes, 2 * part + 1))
            dots = dot4_each(dots, low, x + 8 * part, stride)
            dots = dot4_each(dots, high, x + 8 * part + 4, stride)
        return dots

    @_device
    def block(at, x, stride, total):
        scale = load_f16x16(at + 3328)
        _ahead(at + 3072, 288, tokens)
        for half in range(16):
            _ahead(at + 192 * half, 192, tokens)
            x_group = x + GROUP_BYTES * (half // 2)
            which = half % 2
            dots = half_group(at + 192 * half, x_group + 16 * which, stride)
            s = mul_f32(scale, to_f32(load_i8x16(at + 3072 + 16 * half)))
            m = mul_f32(s, splat_f32(-32.0))
            total = add_group(total, dots, s, m, x_group + 32, x_group + 36 + 4 * which, stride)
        return total

    return block


def _float(load, value_bytes):
    """Blocks of four columns of floating-point weights; x is float32."""

    def of(tokens):
        @_device
        def block(at, x, stride, total):
            for column in range(4):
                total = fma_splat_each(total, load(at + 16 * value_bytes * column), x + 4 * column, stride)
            return total

        return block

    return of


def _multiplier(block, tokens, block_bytes, x_block_bytes):
    """Multiply a run of tiles by `tokens` rows of x."""

    @_device
    def finish(total, index, out, out_stride, bias, accumulate):
        target = out + 64 * index
        if bias != 0:
            total = add_each(total, repeat(tokens, load_f32x16(bias + 64 * index)))
        if accumulate != 0:
            total = add_each(total, load_rows_f32(tokens, target, out_stride))
        store_each(total, target, out_stride)

    @njit(error_model="numpy", nogil=True)
    def multiply(first, last, weights, x, x_stride, out, out_stride, bias, accumulate, blocks):
        for index in range(first, last):
            tile = weights + block_bytes * blocks * index
            total = zeros_f32(tokens)
            for i in range(blocks):
                if block_bytes < LARGE_BLOCK_BYTES:
                    _ahead(tile + block_bytes * i, block_bytes, tokens)
                total = block(tile + block_bytes * i, x + x_block_bytes * i, x_stride, total)
            finish(total, index, out, out_stride, bias, accumulate)

    @njit(error_model="numpy", nogil=True)
    def multiply_streams(first, last, weights, x, x_stride, out, out_stride, bias, accumulate, blocks):
        """For one token: two tiles side by side, as memory delivers two streams faster than one."""
        tile_bytes = block_bytes * blocks
        for index in range(first, last, 2):
            other = min(index + 1, last - 1)
            low, high = weights + tile_bytes * index, weights + tile_bytes * other
            low_total = zeros_f32(tokens)
            high_total = zeros_f32(tokens)
            for i in range(blocks):
                _ahead(low + block_bytes * i, block_bytes, tokens)
                _ahead(high + block_bytes * i, block_bytes, tokens)
                low_total = block(low + block_bytes * i, x + x_block_bytes * i, x_stride, low_total)
                high_total = block(high + block_bytes * i, x + x_block_bytes * i, x_stride, high_total)
            finish(low_total, index, out, out_stride, bias, accumulate)
            if other != index:
                finish(high_total, other, out, out_stride, bias, accumulate)

    return multiply_streams if tokens == 1 and block_bytes < LARGE_BLOCK_BYTES else multiply


def _kernel(block_of, block_bytes, x_block_bytes, unpack_block=None, block_groups=1):
    """The kernel of one format: this thread's tiles times all tokens, in register blocks of 16, 8, 4, 2 and 1 tokens.

    Tiles are taken in runs that stay in the second-level cache while all tokens pass; a register block's tokens stay in
    the first while the run's tiles pass. Prompts' rows, after the quantized ones, are multiplied by panels.
    """
    has_panels = HAS_TILES and unpack_block is not None
    by_panels = panel_kernel(unpack_block, block_bytes, block_groups) if has_panels else None
    by_1, by_2, by_4, by_8, by_16 = (
        _multiplier(block_of(tokens), tokens, block_bytes, x_block_bytes) for tokens in (1, 2, 4, 8, 16)
    )

    @njit(error_model="numpy", nogil=True)
    def by_rows(begin, end, weights, x, x_stride, tokens, out, out_stride, bias, accumulate, blocks):
        run = max(1, RUN_BYTES // (block_bytes * blocks))
        for first in range(begin, end, run):
            last = min(first + run, end)
            token = 0
            while token < tokens:
                row = x + x_stride * token
                result = out + out_stride * token
                left = tokens - token
                if left >= 16:
                    by_16(first, last, weights, row, x_stride, result, out_stride, bias, accumulate, blocks)
                    token += 16
                elif left >= 8:
                    by_8(first, last, weights, row, x_stride, result, out_stride, bias, accumulate, blocks)
                    token += 8
                elif left >= 4:
                    by_4(first, last, weights, row, x_stride, result, out_stride, bias, accumulate, blocks)
                    token += 4
                elif left >= 2:
                    by_2(first, last, weights, row, x_stride, result, out_stride, bias, accumulate, blocks)
                    token += 2
                else:
                    by_1(first, last, weights, row, x_stride, result, out_stride, bias, accumulate, blocks)
                    token += 1

    def matmul(
        weights, x, x_stride, out, out_stride, bias, accumulate, tiles, blocks, int8_at, tokens_at, thread, threads
    ):
        begin, end = share_start(tiles, thread, threads), share_start(tiles, thread + 1, threads)
        tokens = load_i64(tokens_at)
        quantized = int8_rows(tokens, int8_at) if has_panels else tokens
        by_rows(begin, end, weights, x, x_stride, quantized, out, out_stride, bias, accumulate, blocks)
        if has_panels:
            for token in range(quantized, tokens, MOST_TOKENS):
                count = min(tokens - token, MOST_TOKENS)
                row, result = x + x_stride * token, out + out_stride * token
                by_panels(begin, end, weights, row, x_stride, count, result, out_stride, bias, accumulate, blocks)

    return matmul


def _of_blocks(block_of, name):
    unpack_block, block_bytes, block_groups = unpack.UNPACKED[name]
    return _kernel(block_of, block_bytes, block_groups * GROUP_BYTES, unpack_block, block_groups)


KERNELS = {
    "Q4_0": _of_blocks(_q4_0, "Q4_0"),
    "Q4_1": _of_blocks(_q4_1, "Q4_1"),
    "Q5_0": _of_blocks(_q5_0, "Q5_0"),
    "Q5_1": _of_blocks(_q5_1, "Q5_1"),
    "Q8_0": _of_blocks(_q8_0, "Q8_0"),
    "Q4_K": _of_blocks(_q4_k, "Q4_K"),
    "Q5_K": _of_blocks(_q5_k, "Q5_K"),
    "Q6_K": _of_blocks(_q6_k, "Q6_K"),
    "F32": _kernel(_float(load_f32x16, 4), 16 * 4 * 4, 16),
    "F16": _kernel(_float(load_f16x16, 2), 16 * 2 * 4, 16),
    "BF16": _kernel(_float(load_bf16x16, 2), 16 * 2 * 4, 16),
}
