"""Matrix products in the weights' own bits, by tiles of 16 rows: a lane of a vector is a row of the matrix.

Rows of prompts meet a matrix in blocks in tile registers where there are any (see cpu_panels.py); all others so (8 or
16 at once in tile registers, too: cpu_code_tiles.py, cpu_block_tiles.py):

Every block format comes down to the same sum over groups of 32 (or 16) columns,

    out[row] += scale[row] * (x_scale * dot(codes[row], x_codes)) + minimum[row] * x_sum

with unsigned codes, activations quantized to int8 (see simd/blocks.py), and offsets and minima folded into `minimum`.
The layouts of a tile are those of residency.formats.tiles.
"""

from numba import njit

from residency.kernels.matmul import cpu_grouped
from residency.kernels.matmul.cpu_block_tiles import IN_EIGHTS
from residency.kernels.matmul.cpu_blocks import BLOCKS, ahead
from residency.kernels.matmul.cpu_code_tiles import IN_SIXTEENS
from residency.kernels.matmul.cpu_panels import MOST_TOKENS, panel_kernel
from residency.kernels.matmul.cpu_unpack import UNPACKED
from residency.kernels.simd.blocks import GROUP, HAS_TILES, WORDS_BYTES, int8_rows, share_start
from residency.kernels.simd.language import (
    add_each,
    fma_splat_each,
    load_bf16x16,
    load_f16x16,
    load_f32x16,
    load_i64,
    load_rows_f32,
    repeat,
    store_each,
    zeros_f32,
)
from residency.kernels.simd.table import KernelTable

RUN_BYTES = 1 << 19  # of weights that are kept in the second-level cache, beside a block's activations
LARGE_BLOCK_GROUPS = 8  # blocks of so many groups of 32 columns look ahead part by part, and are one stream
_device = njit(error_model="numpy", nogil=True, forceinline=True)


def _float(load, value_bytes):
    """Blocks of four columns of floating-point weights; x is float32."""

    def of(tokens):
        @_device
        def block(at, x, words, stride, total):
            for column in range(4):
                total = fma_splat_each(total, load(at + 16 * value_bytes * column), x + 4 * column, stride)
            return total

        return block

    return of


def _finisher(tokens):
    """Store a tile's totals, with the bias and what was there before where they are wanted."""

    @_device
    def finish(total, index, out, out_stride, bias, accumulate):
        target = out + 64 * index
        if bias != 0:
            total = add_each(total, repeat(tokens, load_f32x16(bias + 64 * index)))
        if accumulate != 0:
            total = add_each(total, load_rows_f32(tokens, target, out_stride))
        store_each(total, target, out_stride)

    return finish


def _multiplier(block, tokens, block_bytes, block_groups):
    """Multiply a run of tiles by `tokens` rows of x. Blocks of no groups are of four columns in floating point."""
    is_large = block_groups >= LARGE_BLOCK_GROUPS
    x_bytes, words_bytes = GROUP * block_groups or 16, WORDS_BYTES * block_groups
    finish = _finisher(tokens)

    @njit(error_model="numpy", nogil=True)
    def multiply(first, last, weights, x, x_stride, out, out_stride, bias, accumulate, blocks):
        words = x + x_bytes * blocks
        for index in range(first, last):
            tile = weights + block_bytes * blocks * index
            total = zeros_f32(tokens)
            for i in range(blocks):
                if not is_large:
                    ahead(tile + block_bytes * i, block_bytes)
                total = block(tile + block_bytes * i, x + x_bytes * i, words + words_bytes * i, x_stride, total)
            finish(total, index, out, out_stride, bias, accumulate)

    @njit(error_model="numpy", nogil=True)
    def multiply_streams(first, last, weights, x, x_stride, out, out_stride, bias, accumulate, blocks):
        """For one token: two tiles side by side, as memory delivers two streams faster than one."""
        tile_bytes = block_bytes * blocks
        words = x + x_bytes * blocks
        for index in range(first, last, 2):
            other = min(index + 1, last - 1)
            low, high = weights + tile_bytes * index, weights + tile_bytes * other
            low_total = zeros_f32(tokens)
            high_total = zeros_f32(tokens)
            for i in range(blocks):
                ahead(low + block_bytes * i, block_bytes)
                ahead(high + block_bytes * i, block_bytes)
                x_block, its_words = x + x_bytes * i, words + words_bytes * i
                low_total = block(low + block_bytes * i, x_block, its_words, x_stride, low_total)
                high_total = block(high + block_bytes * i, x_block, its_words, x_stride, high_total)
            finish(low_total, index, out, out_stride, bias, accumulate)
            if other != index:
                finish(high_total, other, out, out_stride, bias, accumulate)

    return multiply_streams if tokens == 1 and not is_large else multiply


def _by_rows(block_of, block_bytes, block_groups, *, eight=None, sixteen=None):
    """Tiles begin .. end of one format times some tokens, in register blocks of 16, 8, 4, 2 and 1 tokens.

    `eight` or `sixteen` make what multiplies so many in tile registers. Tiles are taken in runs that stay in the
    second-level cache while all tokens pass; a register block's tokens stay in the first while the run's tiles pass.
    """
    most = 8 if HAS_TILES and eight is not None else 16
    by_1, by_2, by_4, by_8, by_most = (
        _multiplier(block_of(tokens), tokens, block_bytes, block_groups) for tokens in (1, 2, 4, 8, most)
    )
    if HAS_TILES and eight is not None:
        by_most = eight(block_bytes, _finisher(8))
    elif HAS_TILES and sixteen is not None:
        by_most = sixteen(block_bytes, _finisher(16))

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
                if left >= most:
                    by_most(first, last, weights, row, x_stride, result, out_stride, bias, accumulate, blocks)
                    token += most
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

    return by_rows


def _kernel(by_rows, by_panels):
    """The kernel of one format: this thread's tiles times all tokens. Prompts' rows, after the quantized ones, are
    multiplied by panels."""
    has_panels = by_panels is not None

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


def _in_blocks(block_of, unpack_block, block_bytes, block_groups, **in_tiles):
    by_panels = panel_kernel(unpack_block, block_bytes, block_groups) if HAS_TILES else None
    return _by_rows(block_of, block_bytes, block_groups, **in_tiles), by_panels


def _in_floats(load, value_bytes):
    return _by_rows(_float(load, value_bytes), 16 * value_bytes * 4, 0), None


# Of each format: products by rows, and by panels where prompts are multiplied so.
PRODUCTS = KernelTable(
    {
        **{
            name: _in_blocks(BLOCKS[name], *unpacked, eight=IN_EIGHTS.get(name), sixteen=IN_SIXTEENS.get(name))
            for name, unpacked in UNPACKED.items()
        },
        "F32": _in_floats(load_f32x16, 4),
        "F16": _in_floats(load_f16x16, 2),
        "BF16": _in_floats(load_bf16x16, 2),
    },
    lambda _, fmt: _in_blocks(cpu_grouped.block_of(fmt), *cpu_grouped.unpacked(fmt), sixteen=cpu_grouped.in_tiles(fmt)),
)
KERNELS = KernelTable(
    {name: _kernel(*products) for name, products in PRODUCTS.items()},
    lambda _, fmt: _kernel(*PRODUCTS[fmt.name]),
)
