"""A few rows of activations times rows of a matrix, without tensor cores: bound by reading the matrix."""

import triton
import triton.language as tl

from residency.kernels.matmul.gpu_unpack import unpack_codes, unpack_scales


@triton.jit
def few_rows(
    sources,
    codes,
    high,
    scales,
    supers,
    row,
    there,
    columns,
    row_bytes,
    TOKENS: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    SCALES: tl.constexpr,
):
    """The products of R rows of the matrix with the row of activations that each of TOKENS `sources` points to, as
    (R, C) sums to be added up across lanes. Chunk by chunk, each scaled once; `there` (R,) says which rows are read.
    """
    same = tl.zeros((R, 1, 1), tl.int32)  # x is read where the codes are, so that each lane has both
    sums = ()
    for _ in tl.static_range(TOKENS):
        sums = sums + (tl.zeros((R, C), tl.float32),)
    for start in tl.range(0, columns // 32, C, loop_unroll_factor=2):
        chunk = start + tl.arange(0, C)[None, :]
        live = there[:, None] & (chunk < columns // 32)
        low, upper = unpack_codes(codes, high, row[:, None], chunk, live, columns, row_bytes, BITS, ZERO)
        if SCALES != "none":
            first_scale, last_scale, least = unpack_scales(
                scales, supers, row[:, None], chunk, live, columns, GROUP, SCALES
            )
        column = same + chunk[:, :, None] * 32 + tl.arange(0, 16)[None, None, :]
        added = ()
        for token in tl.static_range(TOKENS):
            at = sources[token] + column
            first = tl.load(at, mask=live[:, :, None], other=0.0).to(tl.float32)
            last = tl.load(at + 16, mask=live[:, :, None], other=0.0).to(tl.float32)
            if SCALES == "none":
                total = tl.sum(low * first, 2) + tl.sum(upper * last, 2)
            else:
                total = first_scale * tl.sum(low * first, 2) + last_scale * tl.sum(upper * last, 2)
                if SCALES != "half" and SCALES != "byte":
                    total += least * tl.sum(first + last, 2)
            added = added + (sums[token] + total,)
        sums = added
    return sums
