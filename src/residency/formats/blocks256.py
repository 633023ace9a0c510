"""The formats of 256-value blocks (Q2_K … Q6_K), packed and unpacked in plain NumPy: their definition here.

Layouts as in ggml's ggml-common.h. Packing sets each group's range by its extremes, unless it is given better ones.
Shape suffixes: N blocks, G groups of a block (8 of 32 values, or 16 of 16), V values of a group.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Blocks = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

Q2_K_BLOCK = np.dtype([("groups", "u1", 16), ("low", "u1", 64), ("scale", "<f2"), ("min", "<f2")])
Q3_K_BLOCK = np.dtype([("high", "u1", 32), ("low", "u1", 64), ("groups", "u1", 12), ("scale", "<f2")])
Q4_K_BLOCK = np.dtype([("scale", "<f2"), ("min", "<f2"), ("groups", "u1", 12), ("low", "u1", 128)])
Q5_K_BLOCK = np.dtype([("scale", "<f2"), ("min", "<f2"), ("groups", "u1", 12), ("high", "u1", 32), ("low", "u1", 128)])
Q6_K_BLOCK = np.dtype([("low", "u1", 128), ("high", "u1", 64), ("groups", "i1", 16), ("scale", "<f2")])

_QUARTERS: Codes = np.array([[0], [2], [4], [6]], np.uint8)  # shifts of the four pairs of bits in a byte


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What groups reach: from -least by steps."""

    step_NG: Floats
    least_NG: Floats


def unpack_q2_k(blocks_N: Blocks) -> Floats:
    """value = scale * group_scale * code - min * group_min, groups of 16."""
    groups_NG = blocks_N["groups"]
    step_NG = blocks_N["scale"].astype(np.float32)[:, None] * (groups_NG & 15).astype(np.float32)
    least_NG = blocks_N["min"].astype(np.float32)[:, None] * (groups_NG >> 4).astype(np.float32)
    values_NGV = step_NG[:, :, None] * _two_bits(blocks_N).astype(np.float32) - least_NG[:, :, None]
    return values_NGV.reshape(len(blocks_N), 256)


def unpack_q3_k(blocks_N: Blocks) -> Floats:
    """value = scale * (group_scale - 32) * (code - 4), groups of 16."""
    third_NG = blocks_N["high"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes_NGV = _two_bits(blocks_N) | third_NG.reshape(len(blocks_N), 16, 16) << np.uint8(2)
    step_NG = blocks_N["scale"].astype(np.float32)[:, None] * _six_bits(blocks_N["groups"])
    values_NGV = step_NG[:, :, None] * (codes_NGV.astype(np.float32) - 4)
    return values_NGV.reshape(len(blocks_N), 256)


def unpack_q4_k(blocks_N: Blocks) -> Floats:
    """value = scale * group_scale * code - min * group_min, groups of 32."""
    return _scaled(blocks_N, _four_bits(blocks_N))


def unpack_q5_k(blocks_N: Blocks) -> Floats:
    """value = scale * group_scale * code - min * group_min, groups of 32."""
    fifth_NGV = blocks_N["high"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    return _scaled(blocks_N, _four_bits(blocks_N) | fifth_NGV << np.uint8(4))


def unpack_q6_k(blocks_N: Blocks) -> Floats:
    """value = scale * group_scale * (code - 32), groups of 16."""
    num_blocks = len(blocks_N)
    low_NHQL = blocks_N["low"].reshape(num_blocks, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & np.uint8(15)
    shifts_Q1 = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high_NHQL = blocks_N["high"].reshape(num_blocks, 2, 1, 32) >> shifts_Q1 & 3
    codes_NGV = low_NHQL.reshape(num_blocks, 16, 16) | high_NHQL.reshape(num_blocks, 16, 16) << 4
    scale_NG = blocks_N["scale"].astype(np.float32)[:, None] * blocks_N["groups"].astype(np.float32)
    values_NGV = scale_NG[:, :, None] * (codes_NGV.astype(np.float32) - 32)
    return values_NGV.reshape(num_blocks, 256)


def pack_q2_k(values_NB: Floats, ranges: Ranges | None = None) -> Blocks:
    """Codes 0 to 3 by the groups' `ranges`; without, between each group's extremes, with zero in the range."""
    values_NGV = values_NB.reshape(-1, 16, 16)
    blocks_N = np.zeros(len(values_NGV), Q2_K_BLOCK)
    if ranges is None:
        least_NG = np.maximum(-values_NGV.min(axis=2), np.float32(0))
        step_NG = (np.maximum(values_NGV.max(axis=2), np.float32(0)) + least_NG) / np.float32(3)
    else:
        step_NG, least_NG = ranges.step_NG, ranges.least_NG
    blocks_N["scale"] = _half(step_NG.max(axis=1, keepdims=True) / np.float32(15))
    blocks_N["min"] = _half(least_NG.max(axis=1, keepdims=True) / np.float32(15))
    scale_N1, min_N1 = (blocks_N[field].astype(np.float32)[:, None] for field in ("scale", "min"))
    rounded = np.ceil(_ratio(step_NG, scale_N1) - np.float32(0.01 if ranges is None else 0.5))
    scale_NG = rounded.clip(0, 15).astype(np.uint8)
    min_NG = np.rint(_ratio(least_NG, min_N1)).clip(0, 15).astype(np.uint8)
    blocks_N["groups"] = scale_NG | min_NG << 4
    step_NG1, least_NG1 = (scale_N1 * scale_NG)[:, :, None], (min_N1 * min_NG)[:, :, None]
    _set_two_bits(blocks_N, np.rint(_ratio(values_NGV + least_NG1, step_NG1)).clip(0, 3).astype(np.uint8))
    return blocks_N


def pack_q3_k(values_NB: Floats, steps_NG: Floats | None = None) -> Blocks:
    """Codes by the groups' `steps`; without, each group's value of largest magnitude becomes code 0, -4 steps."""
    values_NGV = values_NB.reshape(-1, 16, 16)
    blocks_N = np.zeros(len(values_NGV), Q3_K_BLOCK)
    group_NG = _extreme(values_NGV) / np.float32(-4) if steps_NG is None else steps_NG
    blocks_N["scale"] = _half(_extreme(group_NG) / np.float32(-32))
    scale_N1 = blocks_N["scale"].astype(np.float32)[:, None]
    whole_NG = np.rint(_ratio(group_NG, scale_N1)).clip(-32, 31)
    bits_NG = (whole_NG + 32).astype(np.uint8)
    high_NPQ = (bits_NG >> 4).reshape(-1, 4, 4) << _QUARTERS
    blocks_N["groups"][:, :8] = bits_NG[:, :8] & 15 | (bits_NG[:, 8:] & 15) << 4
    blocks_N["groups"][:, 8:] = np.bitwise_or.reduce(high_NPQ, axis=1)
    step_NG1 = (scale_N1 * whole_NG.astype(np.float32))[:, :, None]
    codes_NGV = (np.rint(_ratio(values_NGV, step_NG1)).clip(-4, 3) + 4).astype(np.uint8)
    _set_two_bits(blocks_N, codes_NGV & np.uint8(3))
    third_NGV = (codes_NGV >> 2).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
    blocks_N["high"] = np.bitwise_or.reduce(third_NGV, axis=1)
    return blocks_N


def pack_q4_k(values_NB: Floats, ranges: Ranges | None = None) -> Blocks:
    """Codes 0 to 15 in the groups' `ranges`; without, between each group's extremes, and zero is in the range."""
    blocks_N = np.zeros(len(values_NB), Q4_K_BLOCK)
    _set_four_bits(blocks_N, _pack_groups(blocks_N, values_NB, 15, ranges))
    return blocks_N


def pack_q5_k(values_NB: Floats, ranges: Ranges | None = None) -> Blocks:
    """Codes 0 to 31 in the groups' `ranges`; without, between each group's extremes, and zero is in the range."""
    blocks_N = np.zeros(len(values_NB), Q5_K_BLOCK)
    codes_NGV = _pack_groups(blocks_N, values_NB, 31, ranges)
    _set_four_bits(blocks_N, codes_NGV & np.uint8(15))
    fifth_NGV = (codes_NGV >> 4) << np.arange(8, dtype=np.uint8)[:, None]
    blocks_N["high"] = np.bitwise_or.reduce(fifth_NGV, axis=1)
    return blocks_N


def pack_q6_k(values_NB: Floats, steps_NG: Floats | None = None) -> Blocks:
    """Codes by the groups' `steps`; without, each group's value of largest magnitude becomes code 0, -32 steps."""
    num_blocks = len(values_NB)
    blocks_N = np.zeros(num_blocks, Q6_K_BLOCK)
    values_NGV = values_NB.reshape(num_blocks, 16, 16)
    group_NG = _extreme(values_NGV) / np.float32(-32) if steps_NG is None else steps_NG
    blocks_N["scale"] = _half(_extreme(group_NG) / np.float32(-128))
    scale_N1 = blocks_N["scale"].astype(np.float32)[:, None]
    blocks_N["groups"] = np.rint(_ratio(group_NG, scale_N1)).clip(-128, 127).astype(np.int8)
    step_NG1 = (scale_N1 * blocks_N["groups"])[:, :, None]
    codes_NGV = (np.rint(_ratio(values_NGV, step_NG1)).clip(-32, 31) + 32).astype(np.uint8)
    codes_NHPQL = codes_NGV.reshape(num_blocks, 2, 2, 64)
    low_NHL = codes_NHPQL[:, :, 0] & 15 | (codes_NHPQL[:, :, 1] & 15) << 4
    blocks_N["low"] = low_NHL.reshape(num_blocks, 128)
    high_NHQL = (codes_NGV >> 4).reshape(num_blocks, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    blocks_N["high"] = np.bitwise_or.reduce(high_NHQL, axis=2).reshape(num_blocks, 64)
    return blocks_N


def _two_bits(blocks_N: Blocks) -> Codes:
    """Of each 128 values, the first 32 are the low two bits of 32 bytes, the next 32 the two above, and so on."""
    codes_NHQV: Codes = blocks_N["low"].reshape(-1, 2, 1, 32) >> _QUARTERS & np.uint8(3)
    return codes_NHQV.reshape(len(blocks_N), 16, 16)


def _set_two_bits(blocks_N: Blocks, codes_NGV: Codes) -> None:
    low_NHV = np.bitwise_or.reduce(codes_NGV.reshape(-1, 2, 4, 32) << _QUARTERS, axis=2)
    blocks_N["low"] = low_NHV.reshape(len(blocks_N), 64)


def _six_bits(groups_NB: Codes) -> Floats:
    """Q3_K's 16 group scales: four bits in the halves of the first eight bytes, two in quarters of the last four."""
    low_NG = np.concatenate([groups_NB[:, :8] & 15, groups_NB[:, :8] >> 4], axis=1)
    high_NPQ = groups_NB[:, None, 8:] >> _QUARTERS & 3
    scales_NG: Floats = (low_NG | high_NPQ.reshape(-1, 16) << 4).astype(np.float32) - np.float32(32)
    return scales_NG


def _four_bits(blocks_N: Blocks) -> Codes:
    """Groups 2i and 2i + 1 are the low and the high halves of the bytes 32i to 32i + 31."""
    low_NPV = blocks_N["low"].reshape(len(blocks_N), 4, 1, 32)
    codes: Codes = low_NPV >> np.array([0, 4], np.uint8)[:, None] & np.uint8(15)
    return codes.reshape(len(blocks_N), 8, 32)


def _set_four_bits(blocks_N: Blocks, codes_NGV: Codes) -> None:
    blocks_N["low"] = (codes_NGV[:, 0::2] | codes_NGV[:, 1::2] << 4).reshape(len(blocks_N), 128)


def _scaled(blocks_N: Blocks, codes_NGV: Codes) -> Floats:
    """Applies the 6-bit group scales and mins: those of groups 4 to 7 have their high bits above the first ones'."""
    groups_N = blocks_N["groups"]
    first_N4, second_N4, rest_N4 = groups_N[:, :4], groups_N[:, 4:8], groups_N[:, 8:]
    scale_NG = np.concatenate([first_N4 & 63, rest_N4 & 15 | first_N4 >> 6 << 4], axis=1)
    min_NG = np.concatenate([second_N4 & 63, rest_N4 >> 4 | second_N4 >> 6 << 4], axis=1)
    step_NG = blocks_N["scale"].astype(np.float32)[:, None] * scale_NG
    least_NG = blocks_N["min"].astype(np.float32)[:, None] * min_NG
    values_NGV = step_NG[:, :, None] * codes_NGV - least_NG[:, :, None]
    values: Floats = values_NGV.astype(np.float32, copy=False).reshape(len(blocks_N), 256)
    return values


def _pack_groups(blocks_N: Blocks, values_NB: Floats, largest_code: int, ranges: Ranges | None) -> Codes:
    """Sets scale, min and the 6-bit group scales and mins; returns the codes."""
    values_NGV = values_NB.reshape(len(values_NB), 8, 32)
    if ranges is None:
        least_NG = np.maximum(-values_NGV.min(axis=2), np.float32(0))
        step_NG = (np.maximum(values_NGV.max(axis=2), np.float32(0)) + least_NG) / np.float32(largest_code)
    else:
        step_NG, least_NG = ranges.step_NG, ranges.least_NG
    blocks_N["scale"] = _half(step_NG.max(axis=1, keepdims=True) / np.float32(63))
    blocks_N["min"] = _half(least_NG.max(axis=1, keepdims=True) / np.float32(63))
    scale_N1 = blocks_N["scale"].astype(np.float32)[:, None]
    min_N1 = blocks_N["min"].astype(np.float32)[:, None]
    ratio_NG = _ratio(step_NG, scale_N1)
    whole_NG = np.ceil(ratio_NG - np.float32(0.01)) if ranges is None else np.rint(ratio_NG)
    scale_NG = whole_NG.clip(0, 63).astype(np.uint8)
    min_NG = np.rint(_ratio(least_NG, min_N1)).clip(0, 63).astype(np.uint8)
    first_N4 = scale_NG[:, :4] | scale_NG[:, 4:] >> 4 << 6
    second_N4 = min_NG[:, :4] | min_NG[:, 4:] >> 4 << 6
    rest_N4 = scale_NG[:, 4:] & 15 | (min_NG[:, 4:] & 15) << 4
    blocks_N["groups"] = np.concatenate([first_N4, second_N4, rest_N4], axis=1)
    step_NG1, least_NG1 = (scale_N1 * scale_NG)[:, :, None], (min_N1 * min_NG)[:, :, None]
    return np.rint(_ratio(values_NGV + least_NG1, step_NG1)).clip(0, largest_code).astype(np.uint8)


def _extreme(values: Floats) -> Floats:
    """The value of largest magnitude along the last axis, with its sign; a column if there is but one axis left."""
    index = np.abs(values).argmax(axis=-1)[..., None]
    picked = np.take_along_axis(values, index, axis=-1)
    return picked[..., 0] if values.ndim == 3 else picked


def _ratio(values: Floats, steps: Floats) -> Floats:
    """values / steps, and 0 where there is no step."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        ratios: Floats = np.nan_to_num(np.where(steps == 0, np.float32(0), values / steps))
    return ratios


def _half(column_N1: Floats) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return column_N1[:, 0].astype(np.float16)
