"""Rows of any format to float32 and back: the reference that kernels and converters are checked against."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from residency.formats import blocks32, blocks256, tabled
from residency.formats.format import Format
from residency.formats.grouped import GroupedFormat, pack_grouped, unpack_grouped

Unpack = Callable[[npt.NDArray[np.void]], npt.NDArray[np.float32]]
Pack = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.void]]

CODECS: dict[str, tuple[np.dtype[np.void], Unpack, Pack]] = {
    "Q4_0": (blocks32.Q4_0_BLOCK, blocks32.unpack_q4_0, blocks32.pack_q4_0),
    "Q4_1": (blocks32.Q4_1_BLOCK, blocks32.unpack_q4_1, blocks32.pack_q4_1),
    "Q5_0": (blocks32.Q5_0_BLOCK, blocks32.unpack_q5_0, blocks32.pack_q5_0),
    "Q5_1": (blocks32.Q5_1_BLOCK, blocks32.unpack_q5_1, blocks32.pack_q5_1),
    "Q8_0": (blocks32.Q8_0_BLOCK, blocks32.unpack_q8_0, blocks32.pack_q8_0),
    "Q2_K": (blocks256.Q2_K_BLOCK, blocks256.unpack_q2_k, blocks256.pack_q2_k),
    "Q3_K": (blocks256.Q3_K_BLOCK, blocks256.unpack_q3_k, blocks256.pack_q3_k),
    "Q4_K": (blocks256.Q4_K_BLOCK, blocks256.unpack_q4_k, blocks256.pack_q4_k),
    "Q5_K": (blocks256.Q5_K_BLOCK, blocks256.unpack_q5_k, blocks256.pack_q5_k),
    "Q6_K": (blocks256.Q6_K_BLOCK, blocks256.unpack_q6_k, blocks256.pack_q6_k),
    "IQ4_NL": (tabled.IQ4_NL_BLOCK, tabled.unpack_iq4_nl, tabled.pack_iq4_nl),
    "IQ4_XS": (tabled.IQ4_XS_BLOCK, tabled.unpack_iq4_xs, tabled.pack_iq4_xs),
    "MXFP4": (tabled.MXFP4_BLOCK, tabled.unpack_mxfp4, tabled.pack_mxfp4),
}


def unpack_rows(number_format: Format, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The values of `rows` (rows, row_bytes), as (rows, columns). `row_bytes` is of whole blocks."""
    rows = np.ascontiguousarray(rows)
    num_rows = len(rows)
    if number_format.name == "F32":
        return rows.view("<f4").astype(np.float32)
    if number_format.name == "F16":
        return rows.view("<f2").astype(np.float32)
    if number_format.name == "BF16":
        return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if isinstance(number_format, GroupedFormat):
        return unpack_grouped(number_format, rows)
    block, unpack, _ = CODECS[number_format.name]
    columns = rows.shape[1] // number_format.block_bytes * number_format.block_values
    return unpack(rows.view(block).ravel()).reshape(num_rows, columns)


def pack_rows(number_format: Format, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The finite `values` (rows, columns) in `number_format`, as (rows, row_bytes). `columns` is of whole blocks."""
    num_rows, columns = values.shape
    row_bytes = number_format.bytes_of((columns,))
    values = np.ascontiguousarray(values, np.float32)
    if number_format.name == "F32":
        packed = values.astype("<f4").view(np.uint8)
    elif number_format.name == "F16":
        with np.errstate(over="ignore"):
            packed = values.astype("<f2").view(np.uint8)
    elif number_format.name == "BF16":
        packed = _bfloat16(values).view(np.uint8)
    elif isinstance(number_format, GroupedFormat):
        packed = pack_grouped(number_format, values)
    else:
        _, _, pack = CODECS[number_format.name]
        packed = pack(values.reshape(-1, number_format.block_values)).view(np.uint8)
    return packed.reshape(num_rows, row_bytes)


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Rounds halves to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
