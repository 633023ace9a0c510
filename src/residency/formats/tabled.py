"""The formats whose codes of four bits are places in a table (IQ4_NL, IQ4_XS, MXFP4), packed and unpacked in plain
NumPy: their definition here.

Layouts and tables as in ggml's ggml-common.h; MXFP4's values are those of the OCP Microscaling Formats (MX)
Specification 1.0, doubled, and so its scales are half of 2**(exponent - 127). Packing gives each value the nearest one
in the table. Shape suffixes: N blocks, G groups of 32 values of a block, V values of a group.
"""

import numpy as np
import numpy.typing as npt

Blocks = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

IQ4_TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_TABLE = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

_WIDEST = 256  # twice what tables hold at most

IQ4_NL_BLOCK = np.dtype([("scale", "<f2"), ("low", "u1", 16)])
IQ4_XS_BLOCK = np.dtype([("scale", "<f2"), ("high", "<u2"), ("groups", "u1", 4), ("low", "u1", (8, 16))])
MXFP4_BLOCK = np.dtype([("exponent", "u1"), ("low", "u1", 16)])


def unpack_iq4_nl(blocks_N: Blocks) -> Floats:
    """value = scale * table[code]."""
    return blocks_N["scale"].astype(np.float32)[:, None] * _values(IQ4_TABLE, blocks_N["low"])


def unpack_iq4_xs(blocks_N: Blocks) -> Floats:
    """value = scale * (group_scale - 32) * table[code], groups of 32."""
    step_NG = blocks_N["scale"].astype(np.float32)[:, None] * _group_scales(blocks_N).astype(np.float32)
    values_NGV = step_NG[:, :, None] * _values(IQ4_TABLE, blocks_N["low"])
    return values_NGV.reshape(len(blocks_N), 256)


def unpack_mxfp4(blocks_N: Blocks) -> Floats:
    """value = 2**(exponent - 128) * table[code]."""
    return _half_power(blocks_N["exponent"])[:, None] * _values(MXFP4_TABLE, blocks_N["low"])


def pack_iq4_nl(values_NV: Floats, scale_N1: Floats | None = None) -> Blocks:
    """Codes by the blocks' `scale`; without, the value of largest magnitude becomes code 0, that is -127 scales."""
    blocks_N = np.zeros(len(values_NV), IQ4_NL_BLOCK)
    with np.errstate(over="ignore"):
        scale_N = _extreme(values_NV) / np.float32(-127) if scale_N1 is None else scale_N1[:, 0]
        blocks_N["scale"] = scale_N.astype(np.float16)
    blocks_N["low"] = _nearest(IQ4_TABLE, values_NV, blocks_N["scale"].astype(np.float32))
    return blocks_N


def pack_iq4_xs(values_NB: Floats, steps_NG: Floats | None = None) -> Blocks:
    """Codes by the groups' `steps`; without, each group's value of largest magnitude becomes code 0, -127 steps."""
    values_NGV = values_NB.reshape(-1, 8, 32)
    blocks_N = np.zeros(len(values_NGV), IQ4_XS_BLOCK)
    step_NG = _extreme(values_NGV) / np.float32(-127) if steps_NG is None else steps_NG
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        blocks_N["scale"] = (_extreme(step_NG) / np.float32(-32)).astype(np.float16)
        scale_N1 = blocks_N["scale"].astype(np.float32)[:, None]
        whole_NG = np.rint(np.nan_to_num(step_NG / scale_N1)).clip(-32, 31) * (scale_N1 != 0)
    bits_NG = (whole_NG + 32).astype(np.uint8)
    blocks_N["groups"] = bits_NG[:, 0::2] & 15 | (bits_NG[:, 1::2] & 15) << 4
    high_NG = (bits_NG >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    blocks_N["high"] = np.bitwise_or.reduce(high_NG, axis=1)
    blocks_N["low"] = _nearest(IQ4_TABLE, values_NGV, scale_N1 * whole_NG.astype(np.float32))
    return blocks_N


def pack_mxfp4(values_NV: Floats) -> Blocks:
    """The exponent is that of the largest magnitude, less 2, which is the exponent of the table's largest value."""
    blocks_N = np.zeros(len(values_NV), MXFP4_BLOCK)
    largest_N = np.abs(values_NV).max(axis=1)
    with np.errstate(divide="ignore"):
        exponent_N = np.floor(np.log2(largest_N)) + np.float32(125)
    blocks_N["exponent"] = np.where(largest_N > 0, exponent_N, 0).clip(0, 254)
    blocks_N["low"] = _nearest(MXFP4_TABLE, values_NV, _half_power(blocks_N["exponent"]))
    return blocks_N


def _values(table: tuple[int, ...], low: Codes) -> Floats:
    """The table's values of blocks' codes: low nibbles are the first half."""
    codes = np.concatenate([low & 15, low >> 4], axis=-1)
    values: Floats = np.array(table, np.float32)[codes]
    return values


def nearest_values(table: tuple[int, ...], scaled: Floats) -> Floats:
    """The table's value that is nearest to each, the lower of two that are as near."""
    return np.unique(np.array(table, np.float32))[_places(table, scaled)]


def _nearest(table: tuple[int, ...], values: Floats, scale: Floats) -> Codes:
    """The blocks' bytes of the codes whose values are nearest."""
    wide = scale[..., None]
    scaled = np.divide(values, wide, out=np.zeros_like(values), where=wide != 0)
    codes_of = np.unique(table, return_index=True)[1].astype(np.uint8)
    codes = codes_of[_places(table, scaled)]
    low: Codes = codes[..., :16] | codes[..., 16:] << np.uint8(4)
    return low


def _places(table: tuple[int, ...], scaled: Floats) -> npt.NDArray[np.int64]:
    """Where each one's nearest value is among the table's, in ascending order.

    Half way between two of a table is a whole or a half, so that values, doubled and rounded up, are one of few.
    """
    ascending = np.unique(table)
    places_of: npt.NDArray[np.int64] = np.searchsorted(ascending[1:] + ascending[:-1], np.arange(-_WIDEST, _WIDEST + 1))
    doubled = np.ceil(2 * scaled).clip(-_WIDEST, _WIDEST)
    return places_of[doubled.astype(np.int64) + _WIDEST]


def _group_scales(blocks_N: Blocks) -> npt.NDArray[np.int8]:
    nibbles_NG = (blocks_N["groups"][:, :, None] >> np.array([0, 4], np.uint8)).reshape(-1, 8) & 15
    pairs_NG = blocks_N["high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    return (nibbles_NG | pairs_NG.astype(np.uint8) << 4).astype(np.int8) - np.int8(32)


def _half_power(exponent_N: Codes) -> Floats:
    """2**(exponent - 128), of which the two smallest are denormal."""
    wide_N = exponent_N.astype(np.uint32)
    bits_N = np.where(wide_N < 2, np.uint32(0x00200000) << wide_N, (np.maximum(wide_N, 1) - 1) << 23)
    return bits_N.astype(np.uint32).view(np.float32)


def _extreme(values: Floats) -> Floats:
    """The value of largest magnitude along the last axis, with its sign."""
    index = np.abs(values).argmax(axis=-1)[..., None]
    picked: Floats = np.take_along_axis(values, index, axis=-1)[..., 0]
    return picked
