"""Values of a matrix in planes, for every kernel that reads one: see formats/planes.py."""

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
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    SCALES: tl.constexpr,
):
    """Values in float32 of chunks of 32 columns, each's first 16 and last 16: twice (rows, chunks, 16).

    row (rows, 1) and chunk (1, chunks); what is not `live` (rows, chunks) is not read and stands for anything.
    """
    row = row.to(tl.int64)
    low, upper = _codes(codes, high, row, chunk, live, columns, BITS)
    first, first_least, last, last_least = _scales(scales, supers, row, chunk, live, columns, GROUP, SCALES)
    low = (low - ZERO) * first[:, :, None]
    upper = (upper - ZERO) * last[:, :, None]
    if SCALES == "half-minimum" or SCALES == "six-bit":
        low += first_least[:, :, None]
        upper += last_least[:, :, None]
    return low, upper


@triton.jit
def _codes(codes, high, row, chunk, live, columns, BITS: tl.constexpr):
    J = tl.arange(0, 16)[None, None, :]
    mask = live[:, :, None]
    if BITS == 8:
        at = (codes + row * columns + chunk * 32)[:, :, None] + J
        low = tl.load(at, mask=mask, other=0).to(tl.int8, bitcast=True).to(tl.int32)
        upper = tl.load(at + 16, mask=mask, other=0).to(tl.int8, bitcast=True).to(tl.int32)
    else:
        packed = tl.load((codes + row * (columns // 2) + chunk * 16)[:, :, None] + J, mask=mask, other=0).to(tl.int32)
        low, upper = packed & 15, packed >> 4
    if BITS == 5:
        word = tl.load(high + row * (columns // 32) + chunk, mask=live, other=0)[:, :, None]
        low |= ((word >> J) & 1) << 4
        upper |= ((word >> (J + 16)) & 1) << 4
    if BITS == 6:
        at_words = high + row * (columns // 16) + chunk * 2
        low |= ((tl.load(at_words, mask=live, other=0)[:, :, None] >> (2 * J)) & 3) << 4
        upper |= ((tl.load(at_words + 1, mask=live, other=0)[:, :, None] >> (2 * J)) & 3) << 4
    return low.to(tl.float32), upper.to(tl.float32)


@triton.jit
def _scales(scales, supers, row, chunk, live, columns, GROUP: tl.constexpr, SCALES: tl.constexpr):
    """Scale and what is added, (rows, chunks), of the first and of the last 16 columns of each chunk."""
    group = chunk * 2 if GROUP == 16 else chunk // (GROUP // 32)
    at = scales + row * (columns // GROUP) + group
    if SCALES == "half":
        scale = tl.load(at, mask=live, other=0.0).to(tl.float32)
        return scale, scale, scale, scale
    if SCALES == "half-minimum":
        pair = scales + (row * (columns // GROUP) + group) * 2
        scale = tl.load(pair, mask=live, other=0.0).to(tl.float32)
        least = tl.load(pair + 1, mask=live, other=0.0).to(tl.float32)
        return scale, least, scale, least
    block = row * (columns // 256) + chunk // 8
    if SCALES == "byte":
        factor = tl.load(supers + block, mask=live, other=0.0).to(tl.float32)
        first = tl.load(at, mask=live, other=0).to(tl.float32) * factor
        last = tl.load(at + 1, mask=live, other=0).to(tl.float32) * factor
        return first, first, last, last
    place = chunk % 8
    words = scales + block * 3
    twos = tl.load(words + 2, mask=live, other=0) >> (2 * place)
    code = (tl.load(words, mask=live, other=0) >> (4 * place)) & 15 | (twos & 3) << 4
    least_code = (tl.load(words + 1, mask=live, other=0) >> (4 * place)) & 15 | ((twos >> 16) & 3) << 4
    scale = tl.load(supers + block * 2, mask=live, other=0.0).to(tl.float32) * code.to(tl.float32)
    least = tl.load(supers + block * 2 + 1, mask=live, other=0.0).to(tl.float32) * -least_code.to(tl.float32)
    return scale, least, scale, least
