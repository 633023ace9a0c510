"""Values of a matrix in planes, for every kernel that reads one: see formats/planes.py.

Kernels work on chunks of 32 columns: on the first 16 of each, and on the last 16. Shapes: row (rows, 1), chunk
(1, chunks), codes twice (rows, chunks, 16), scales (rows, chunks). What is not `live` (rows, chunks) is not read.
"""

import triton
import triton.language as tl


@triton.jit
def unpack(
    codes,
    high,
    scales,
    supers,
    row,
    chunk,
    live,
    columns,
    row_bytes,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    SCALES: tl.constexpr,
):
    """The values, in float32."""
    low, upper = unpack_codes(codes, high, row, chunk, live, columns, row_bytes, BITS, ZERO)
    if SCALES != "none":
        first, last, least = unpack_scales(scales, supers, row, chunk, live, columns, GROUP, SCALES)
        low *= first[:, :, None]
        upper *= last[:, :, None]
        if SCALES != "half" and SCALES != "byte":
            low += least[:, :, None]
            upper += least[:, :, None]
    return low, upper


@triton.jit
def unpack_codes(codes, high, row, chunk, live, columns, row_bytes, BITS: tl.constexpr, ZERO: tl.constexpr):
    """The codes, less the one that stands for zero, in float32. `row_bytes` are of the plane of codes; BITS 16: it has
    plain values instead, and `row_bytes` counts these.
    """
    row = row.to(tl.int64)
    J = tl.arange(0, 16)[None, None, :]
    mask = live[:, :, None]
    if BITS == 16:
        at = (codes + row * row_bytes + chunk * 32)[:, :, None] + J
        low = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        upper = tl.load(at + 16, mask=mask, other=0.0).to(tl.float32)
    elif BITS == 8:
        at = (codes + row * row_bytes + chunk * 32)[:, :, None] + J
        low = tl.load(at, mask=mask, other=0).to(tl.int32)
        upper = tl.load(at + 16, mask=mask, other=0).to(tl.int32)
    else:
        packed = tl.load((codes + row * row_bytes + chunk * 16)[:, :, None] + J, mask=mask, other=0).to(tl.int32)
        low, upper = packed & 15, packed >> 4
    if BITS == 5:
        word = tl.load(high + row * (columns // 32) + chunk, mask=live, other=0)[:, :, None]
        low |= ((word >> J) & 1) << 4
        upper |= ((word >> (J + 16)) & 1) << 4
    if BITS == 6:
        at_words = high + row * (columns // 16) + chunk * 2
        low |= ((tl.load(at_words, mask=live, other=0)[:, :, None] >> (2 * J)) & 3) << 4
        upper |= ((tl.load(at_words + 1, mask=live, other=0)[:, :, None] >> (2 * J)) & 3) << 4
    if BITS != 16:
        low, upper = _as_float(low, ZERO), _as_float(upper, ZERO)
    return low, upper


@triton.jit
def _as_float(code, ZERO: tl.constexpr):
    """code - ZERO, for codes of 8 bits: as the last bits of 2^23, which is twice as quick as conversions are."""
    return (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + ZERO)


@triton.jit
def unpack_scales(scales, supers, row, chunk, live, columns, GROUP: tl.constexpr, SCALES: tl.constexpr):
    """The scales of the first and of the last 16 columns of each chunk, and what is added to both, if anything is."""
    row = row.to(tl.int64)
    group = chunk * 2 if GROUP == 16 else chunk // (GROUP // 32)
    at = row * (columns // GROUP) + group
    block = row * (columns // 256) + chunk // 8
    if SCALES == "half":
        first = tl.load(scales + at, mask=live, other=0.0).to(tl.float32)
        last = first
        least = first
    elif SCALES == "zero":
        first = tl.load(scales + at, mask=live, other=0.0).to(tl.float32)
        last = first
        least = first * -tl.load(supers + at, mask=live, other=0).to(tl.float32)
    elif SCALES == "half-minimum":
        first = tl.load(scales + at * 2, mask=live, other=0.0).to(tl.float32)
        last = first
        least = tl.load(scales + at * 2 + 1, mask=live, other=0.0).to(tl.float32)
    elif SCALES == "byte":
        factor = tl.load(supers + block, mask=live, other=0.0).to(tl.float32)
        first = tl.load(scales + at, mask=live, other=0).to(tl.float32) * factor
        last = tl.load(scales + at + 1, mask=live, other=0).to(tl.float32) * factor
        least = first
    else:
        place = chunk % 8
        words = scales + block * 3
        twos = tl.load(words + 2, mask=live, other=0) >> (2 * place)
        code = (tl.load(words, mask=live, other=0) >> (4 * place)) & 15 | (twos & 3) << 4
        least_code = (tl.load(words + 1, mask=live, other=0) >> (4 * place)) & 15 | ((twos >> 16) & 3) << 4
        first = tl.load(supers + block * 2, mask=live, other=0.0).to(tl.float32) * code.to(tl.float32)
        last = first
        least = tl.load(supers + block * 2 + 1, mask=live, other=0.0).to(tl.float32) * -least_code.to(tl.float32)
    return first, last, least
