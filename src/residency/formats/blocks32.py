"""The formats of 32-value blocks (Q4_0 … Q8_0), packed and unpacked in plain NumPy: their definition here.

Layouts as in ggml's ggml-common.h. Value j of the first half of a block is in the low bits of byte j, value j of the
second half in the high bits. Shape suffixes: N blocks, V values of a block.
"""

import numpy as np
import numpy.typing as npt

Blocks = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

Q4_0_BLOCK = np.dtype([("scale", "<f2"), ("low", "u1", 16)])
Q4_1_BLOCK = np.dtype([("scale", "<f2"), ("min", "<f2"), ("low", "u1", 16)])
Q5_0_BLOCK = np.dtype([("scale", "<f2"), ("high", "u1", 4), ("low", "u1", 16)])
Q5_1_BLOCK = np.dtype([("scale", "<f2"), ("min", "<f2"), ("high", "u1", 4), ("low", "u1", 16)])
Q8_0_BLOCK = np.dtype([("scale", "<f2"), ("code", "i1", 32)])


def unpack_q4_0(blocks_N: Blocks) -> Floats:
    """value = scale * (code - 8)."""
    return _column(blocks_N, "scale") * (_low_bits(blocks_N).astype(np.float32) - 8)


def unpack_q4_1(blocks_N: Blocks) -> Floats:
    """value = scale * code + min."""
    return _column(blocks_N, "scale") * _low_bits(blocks_N).astype(np.float32) + _column(blocks_N, "min")


def unpack_q5_0(blocks_N: Blocks) -> Floats:
    """value = scale * (code - 16)."""
    return _column(blocks_N, "scale") * (_five_bits(blocks_N).astype(np.float32) - 16)


def unpack_q5_1(blocks_N: Blocks) -> Floats:
    """value = scale * code + min."""
    return _column(blocks_N, "scale") * _five_bits(blocks_N).astype(np.float32) + _column(blocks_N, "min")


def unpack_q8_0(blocks_N: Blocks) -> Floats:
    """value = scale * code."""
    return _column(blocks_N, "scale") * blocks_N["code"].astype(np.float32)


def pack_q4_0(values_NV: Floats, scale_N1: Floats | None = None) -> Blocks:
    """Codes by the blocks' `scale`; without, the value of largest magnitude becomes code 0, that is -8 scales."""
    blocks_N = np.zeros(len(values_NV), Q4_0_BLOCK)
    scale_N1 = _extreme(values_NV) / np.float32(-8) if scale_N1 is None else scale_N1
    _set_low_bits(blocks_N, _round_half_up(values_NV * _inverse(scale_N1) + np.float32(8.5), 15))
    blocks_N["scale"] = _half(scale_N1)
    return blocks_N


def pack_q4_1(values_NV: Floats, between: tuple[Floats, Floats] | None = None) -> Blocks:
    """The lower value of `between` becomes code 0, the upper code 15; without, the block's least and largest."""
    blocks_N = np.zeros(len(values_NV), Q4_1_BLOCK)
    _set_low_bits(blocks_N, _pack_between(blocks_N, values_NV, 15, between))
    return blocks_N


def pack_q5_0(values_NV: Floats, scale_N1: Floats | None = None) -> Blocks:
    """Codes by the blocks' `scale`; without, the value of largest magnitude becomes code 0, that is -16 scales."""
    blocks_N = np.zeros(len(values_NV), Q5_0_BLOCK)
    scale_N1 = _extreme(values_NV) / np.float32(-16) if scale_N1 is None else scale_N1
    _set_five_bits(blocks_N, _round_half_up(values_NV * _inverse(scale_N1) + np.float32(16.5), 31))
    blocks_N["scale"] = _half(scale_N1)
    return blocks_N


def pack_q5_1(values_NV: Floats, between: tuple[Floats, Floats] | None = None) -> Blocks:
    """The lower value of `between` becomes code 0, the upper code 31; without, the block's least and largest."""
    blocks_N = np.zeros(len(values_NV), Q5_1_BLOCK)
    _set_five_bits(blocks_N, _pack_between(blocks_N, values_NV, 31, between))
    return blocks_N


def pack_q8_0(values_NV: Floats) -> Blocks:
    """The value of largest magnitude becomes code 127 or -127; halves are rounded away from zero."""
    blocks_N = np.zeros(len(values_NV), Q8_0_BLOCK)
    scale_N1 = np.abs(values_NV).max(axis=1, keepdims=True) / np.float32(127)
    scaled_NV = np.nan_to_num(values_NV * _inverse(scale_N1))
    whole_NV = np.trunc(scaled_NV)
    away_NV = whole_NV + np.trunc(2 * (scaled_NV - whole_NV))
    blocks_N["code"] = away_NV.clip(-127, 127).astype(np.int8)
    blocks_N["scale"] = _half(scale_N1)
    return blocks_N


def _column(blocks_N: Blocks, field: str) -> Floats:
    return blocks_N[field].astype(np.float32)[:, None]


def _low_bits(blocks_N: Blocks) -> Codes:
    low_NB = blocks_N["low"]
    return np.concatenate([low_NB & 15, low_NB >> 4], axis=1)


def _five_bits(blocks_N: Blocks) -> Codes:
    fifth_NV = np.unpackbits(blocks_N["high"], axis=1, bitorder="little")
    return _low_bits(blocks_N) | fifth_NV << np.uint8(4)


def _set_low_bits(blocks_N: Blocks, codes_NV: Codes) -> None:
    blocks_N["low"] = (codes_NV[:, :16] & 15) | (codes_NV[:, 16:] & 15) << 4


def _set_five_bits(blocks_N: Blocks, codes_NV: Codes) -> None:
    _set_low_bits(blocks_N, codes_NV)
    blocks_N["high"] = np.packbits(codes_NV >> 4, axis=1, bitorder="little")


def _pack_between(
    blocks_N: Blocks, values_NV: Floats, largest_code: int, between: tuple[Floats, Floats] | None
) -> Codes:
    """Sets scale and min from the extremes of each block, or from others; returns the codes."""
    least_N1: Floats = values_NV.min(axis=1, keepdims=True) if between is None else between[0]
    most_N1: Floats = values_NV.max(axis=1, keepdims=True) if between is None else between[1]
    scale_N1 = (most_N1 - least_N1) / np.float32(largest_code)
    blocks_N["scale"], blocks_N["min"] = _half(scale_N1), _half(least_N1)
    return _round_half_up((values_NV - least_N1) * _inverse(scale_N1) + np.float32(0.5), largest_code)


def _extreme(values_NV: Floats) -> Floats:
    """The value of largest magnitude of each block, with its sign."""
    return np.take_along_axis(values_NV, np.abs(values_NV).argmax(axis=1)[:, None], axis=1)


def _inverse(scale_N1: Floats) -> Floats:
    with np.errstate(divide="ignore", over="ignore"):
        inverse: Floats = np.where(scale_N1 == 0, np.float32(0), np.float32(1) / scale_N1)
    return inverse


def _round_half_up(shifted_NV: Floats, largest_code: int) -> Codes:
    return np.nan_to_num(np.trunc(shifted_NV)).clip(0, largest_code).astype(np.uint8)


def _half(column_N1: Floats) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return column_N1[:, 0].astype(np.float16)
