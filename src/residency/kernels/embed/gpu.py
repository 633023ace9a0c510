"""The embeddings of the step's tokens on a device, out of plain values or planes."""

import triton
import triton.language as tl

from residency.kernels.device import DeviceMatrix, DeviceStep, Tensor
from residency.kernels.matmul.gpu import constants, plane_words, row_bytes
from residency.kernels.matmul.gpu_unpack import unpack

_CHUNKS = 32  # of 32 columns
_COLUMNS = 1024


def embed(step: DeviceStep, matrix: DeviceMatrix, factor: float, out: Tensor) -> None:
    """See kernels.embed.embed. Rows of padding have the token 0."""
    if step.only_logits:
        return
    tokens = step.buffers["token_ids"]
    if matrix.layout is None:
        grid = (step.rows(), triton.cdiv(matrix.columns, _COLUMNS))
        codes = matrix.planes["codes"]
        _embed[grid](tokens, codes, out, matrix.columns, codes.stride(0), out.stride(0), factor, BLOCK=_COLUMNS)
    else:
        grid = (step.rows(), triton.cdiv(matrix.columns // 32, _CHUNKS))
        words = plane_words(matrix)
        _embed_planes[grid](
            tokens,
            *words,
            out,
            matrix.columns,
            row_bytes(matrix),
            out.stride(0),
            factor,
            C=_CHUNKS,
            **constants(matrix.layout),
        )


@triton.jit
def _embed(tokens, codes, out, columns, stride, out_stride, factor, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + row).to(tl.int64)
    values = tl.load(codes + token * stride + column, mask=column < columns, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + column, values * factor, mask=column < columns)


@triton.jit
def _embed_planes(
    tokens,
    codes,
    high,
    scales,
    supers,
    out,
    columns,
    row_bytes,
    out_stride,
    factor,
    C: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    SCALES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * C + tl.arange(0, C)
    live = (chunk < columns // 32)[None, :]
    token = tl.load(tokens + row + tl.arange(0, 1))[:, None]
    low, upper = unpack(
        codes, high, scales, supers, token, chunk[None, :], live, columns, row_bytes, BITS, GROUP, ZERO, SCALES
    )
    at = out + row * out_stride + (chunk * 32)[None, :, None] + tl.arange(0, 16)[None, None, :]
    tl.store(at, low * factor, mask=live[:, :, None])
    tl.store(at + 16, upper * factor, mask=live[:, :, None])
