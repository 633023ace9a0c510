"""Matrix products on a device. Plain values go through PyTorch; codes are multiplied as they lie in memory.

Up to eight rows are bound by reading the matrix: each program adds up products of a few of its rows, without tensor
cores. More rows go through tensor cores, the matrix' values as the first operand, which is unpacked in registers (as
FlashAttention holds its weights), and where programs would be few the columns are shared among several, whose sums are
added afterwards in the order of the columns. From some hundred rows on, unpacking again for every tile of rows would
cost more than the product: the matrix is unpacked slab by slab, and the library multiplies.
"""

import torch
import triton
import triton.language as tl

from residency.formats.planes import PlaneLayout
from residency.kernels.device import DeviceMatrix, DeviceStep, Tensor
from residency.kernels.device_language import power_of_two
from residency.kernels.matmul.gpu_few import few_rows
from residency.kernels.matmul.gpu_tiles import tile_sums
from residency.kernels.matmul.gpu_unpack import unpack
from residency.kernels.recorder import Rows
from residency.planner.device_buffers import MOST_TILED_ROWS, TILE_ROWS, TILE_TOKENS, splits

MOST_FEW_ROWS = 8
_TILE_CHUNKS = 4  # of 32 columns
_FEW_TILE_ROWS, _FEW_CHUNKS = 4, 32


def linear(
    step: DeviceStep,
    x: Rows,
    matrix: DeviceMatrix,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    accumulate: bool = False,
    of_logits: bool = False,
) -> Tensor:
    """See kernels.matmul.linear."""
    if step.only_logits and not of_logits:
        return out
    tokens = step.rows(of_logits=of_logits)
    values: Tensor = x.values[:tokens, : matrix.columns]
    into = out[:tokens, : matrix.rows]
    if matrix.order is not None:
        values = torch.index_select(values, 1, matrix.order, out=_first(step.buffers["ordered"], values))
    if matrix.layout is None:
        _library(values, matrix.planes["codes"], into, bias, accumulate)
    elif tokens <= MOST_FEW_ROWS:
        _few_rows(values, matrix, matrix.layout, into, bias, accumulate)
    elif tokens <= MOST_TILED_ROWS:
        _tiled(step, values, matrix, matrix.layout, into, bias, accumulate)
    else:
        _in_slabs(step, values, matrix, matrix.layout, into, bias, accumulate)
    return out


def _first(buffer: Tensor, like: Tensor) -> Tensor:
    """As much of a buffer as a tensor (tokens, columns) takes."""
    return buffer.view(-1)[: like.numel()].view(like.shape)


def unpack_slab(matrix: DeviceMatrix, layout: PlaneLayout, first: int, out: Tensor) -> None:
    """Write the matrix' rows from `first` on as values, as many as out (rows, columns) has."""
    grid = (triton.cdiv(len(out), 16), triton.cdiv(matrix.columns // 32, 8))
    _unpack_slab[grid](
        *plane_words(matrix), out, first, len(out), matrix.columns, row_bytes(matrix), R=16, C=8, **constants(layout)
    )


def plane_words(matrix: DeviceMatrix) -> tuple[Tensor, ...]:
    """The planes that kernels take; in place of those that a layout has not, others that are not read."""
    codes, scales = matrix.planes["codes"], matrix.planes["scales"]
    beside = matrix.planes.get("zeros", scales)
    return codes, matrix.planes.get("high", codes), scales, matrix.planes.get("supers", beside)


def row_bytes(matrix: DeviceMatrix) -> int:
    """Bytes from one row's codes to the next's."""
    return int(matrix.planes["codes"].stride(0))


def constants(layout: PlaneLayout) -> dict[str, int | str]:
    """What kernels that unpack a layout are compiled for."""
    return {"BITS": layout.code_bits, "GROUP": layout.group_columns, "ZERO": layout.zero, "SCALES": layout.scales}


def _library(x: Tensor, weights: Tensor, out: Tensor, bias: Tensor | None, accumulate: bool) -> None:
    if accumulate:
        torch.addmm(out, x, weights.t(), out=out)
    else:
        torch.mm(x, weights.t(), out=out)
    if bias is not None:
        out.add_(bias)


def _few_rows(
    x: Tensor, matrix: DeviceMatrix, layout: PlaneLayout, out: Tensor, bias: Tensor | None, accumulate: bool
) -> None:
    _multiply_few[(triton.cdiv(matrix.rows, _FEW_TILE_ROWS),)](
        x,
        *plane_words(matrix),
        bias,
        out,
        matrix.rows,
        matrix.columns,
        row_bytes(matrix),
        x.stride(0),
        out.stride(0),
        TOKENS=len(x),
        BIAS=bias is not None,
        ADD=accumulate,
        R=_FEW_TILE_ROWS,
        C=_FEW_CHUNKS,
        **constants(layout),
        num_warps=4,
    )


def _tiled(
    step: DeviceStep,
    x: Tensor,
    matrix: DeviceMatrix,
    layout: PlaneLayout,
    out: Tensor,
    bias: Tensor | None,
    accumulate: bool,
) -> None:
    tokens, tile_tokens = len(x), min(TILE_TOKENS, power_of_two(len(x)))
    shared = splits(step.multiprocessors, rows=matrix.rows, columns=matrix.columns, tokens=tokens)
    steps = triton.cdiv(triton.cdiv(matrix.columns // 32, _TILE_CHUNKS), shared)
    partials = step.buffers["matmul_partials"]
    grid = (triton.cdiv(matrix.rows, TILE_ROWS), triton.cdiv(tokens, tile_tokens), shared)
    _multiply_tiles[grid](
        x,
        *plane_words(matrix),
        bias,
        out if shared == 1 else partials,
        tokens,
        matrix.rows,
        matrix.columns,
        row_bytes(matrix),
        x.stride(0),
        out.stride(0) if shared == 1 else matrix.rows,
        steps * _TILE_CHUNKS,
        BIAS=bias is not None and shared == 1,
        ADD=accumulate and shared == 1,
        R=TILE_ROWS,
        T=tile_tokens,
        C=_TILE_CHUNKS,
        **constants(layout),
        num_warps=4,
        num_stages=3,
    )
    if shared > 1:
        block = 256
        _add_splits[(tokens, triton.cdiv(matrix.rows, block))](
            partials,
            bias,
            out,
            tokens,
            matrix.rows,
            out.stride(0),
            SPLITS=shared,
            BIAS=bias is not None,
            ADD=accumulate,
            BLOCK=block,
        )


def _in_slabs(
    step: DeviceStep,
    x: Tensor,
    matrix: DeviceMatrix,
    layout: PlaneLayout,
    out: Tensor,
    bias: Tensor | None,
    accumulate: bool,
) -> None:
    scratch: Tensor = step.buffers["matmul_slab"]
    slab_rows = scratch.numel() // matrix.columns
    for first in range(0, matrix.rows, slab_rows):
        rows = min(slab_rows, matrix.rows - first)
        slab = scratch[: rows * matrix.columns].view(rows, matrix.columns)
        unpack_slab(matrix, layout, first, slab)
        part = None if bias is None else bias[first : first + rows]
        _library(x, slab, out[:, first : first + rows], part, accumulate)


@triton.jit
def _multiply_few(
    x,
    codes,
    high,
    scales,
    supers,
    bias,
    out,
    rows,
    columns,
    row_bytes,
    x_stride,
    out_stride,
    TOKENS: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    SCALES: tl.constexpr,
):
    """R rows of the matrix, times every token."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    sources = ()
    for token in tl.static_range(TOKENS):
        sources = sources + (x + token * x_stride,)
    sums = few_rows(
        sources,
        codes,
        high,
        scales,
        supers,
        row,
        row < rows,
        columns,
        row_bytes,
        TOKENS,
        R,
        C,
        BITS,
        GROUP,
        ZERO,
        SCALES,
    )
    for token in tl.static_range(TOKENS):
        total = tl.sum(sums[token], 1)
        if BIAS:
            total += tl.load(bias + row, mask=row < rows, other=0.0)
        place = out + token * out_stride + row
        if ADD:
            total += tl.load(place, mask=row < rows, other=0.0).to(tl.float32)
        tl.store(place, total, mask=row < rows)


@triton.jit
def _multiply_tiles(
    x,
    codes,
    high,
    scales,
    supers,
    bias,
    out,
    tokens,
    rows,
    columns,
    row_bytes,
    x_stride,
    out_stride,
    split_chunks,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    R: tl.constexpr,
    T: tl.constexpr,
    C: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    SCALES: tl.constexpr,
):
    """R rows of the matrix times T tokens, over one split's columns. Splits' sums lie one after the other."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    token = tl.program_id(1) * T + tl.arange(0, T)
    split = tl.program_id(2)
    source = x + token[None, :].to(tl.int64) * x_stride
    end = tl.minimum((split + 1) * split_chunks, columns // 32)
    sums = tile_sums(
        source,
        codes,
        high,
        scales,
        supers,
        row,
        row < rows,
        token < tokens,
        split * split_chunks,
        end,
        columns,
        row_bytes,
        R,
        T,
        C,
        BITS,
        GROUP,
        ZERO,
        SCALES,
    )
    if BIAS:
        sums += tl.load(bias + row, mask=row < rows, other=0.0)[:, None]
    target = out + (split * tokens + token[None, :]).to(tl.int64) * out_stride + row[:, None]
    inside = (row < rows)[:, None] & (token < tokens)[None, :]
    if ADD:
        sums += tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, sums, mask=inside)


@triton.jit
def _add_splits(
    partials,
    bias,
    out,
    tokens,
    rows,
    out_stride,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    total = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partials + (split * tokens + token) * rows + row, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias + row, mask=inside, other=0.0)
    place = out + token * out_stride + row
    if ADD:
        total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, total, mask=inside)


@triton.jit
def _unpack_slab(
    codes,
    high,
    scales,
    supers,
    out,
    first_row,
    rows,
    columns,
    row_bytes,
    R: tl.constexpr,
    C: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    SCALES: tl.constexpr,
):
    row = tl.program_id(0) * R + tl.arange(0, R)
    chunk = tl.program_id(1) * C + tl.arange(0, C)
    live = (row < rows)[:, None] & (chunk < columns // 32)[None, :]
    low, upper = unpack(
        codes,
        high,
        scales,
        supers,
        (first_row + row)[:, None],
        chunk[None, :],
        live,
        columns,
        row_bytes,
        BITS,
        GROUP,
        ZERO,
        SCALES,
    )
    at = out + (row[:, None].to(tl.int64) * columns + chunk[None, :] * 32)[:, :, None] + tl.arange(0, 16)[None, None, :]
    tl.store(at, low, mask=live[:, :, None])
    tl.store(at + 16, upper, mask=live[:, :, None])
