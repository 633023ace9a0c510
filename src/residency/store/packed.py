"""Matrices of integers that a checkpoint keeps as several tensors, row by row in one layout: formats.grouped's.

What is read are the layouts that formats.schemes describes: GPTQ's, AWQ's, compressed-tensors' packed and eight-bit
integers, and LLM.int8()'s. Codes, zero points and scales keep their bits; where groups are of columns in any order,
columns are taken group after group. Shape suffixes: R rows, C columns, G groups of a row, W 32-bit words, B bytes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from residency.errors import FileError
from residency.formats import GroupedFormat
from residency.formats.grouped import assembled, unpacked_codes
from residency.spec.model import SourceTensor, TensorSpec

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight columns, which is in each four bits of a word, the lowest first
_TYPES = {"I32": "<i4", "I8": "i1", "F16": "<u2", "BF16": "<u2", "F32": "<f4"}  # 16-bit numbers as their bits
_SCALES = {"gptq": ".scales", "awq": ".scales", "packed": ".weight_scale", "int8": ".weight_scale", "llm-int8": ".SCB"}

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


class PackedRows:
    """The rows of one matrix. Opening reads its tensors; FileError if one contradicts what the configuration says."""

    def __init__(self, tensor: TensorSpec) -> None:
        assert tensor.packed is not None and isinstance(tensor.format, GroupedFormat)
        self._shape, self._source, self._format = tensor.shape, tensor.packed, tensor.format
        self._main = _read(self._source.parts[0])
        self._scales_RGB = self._scales()
        self._zeros_RG = self._zero_points()
        self._order_C, self._group_of_G = self._groups()

    def rows(self, first: int, last: int) -> Bytes:
        """Rows `first` to `last`, (rows, row_bytes); `first` is a multiple of 8."""
        codes_RC = self._codes(first, last)
        if self._order_C is not None:
            codes_RC = codes_RC[:, self._order_C]
        scales_RGB = self._scales_RGB[first:last, self._group_of_G]
        zeros_RG = None if self._zeros_RG is None else self._zeros_RG[first:last, self._group_of_G]
        return assembled(self._format, codes_RC, scales_RGB, zeros_RG)

    def _codes(self, first: int, last: int) -> Bytes:
        bits, columns = self._format.bits, self._shape[1]
        match self._source.packing.layout:
            case "gptq":
                return _unpacked(self._main[:, first:last].T, bits, columns)
            case "awq":
                words_CW = self._main[:, first // 8 : -(-last // 8)]
                return np.ascontiguousarray(_unpacked_awq(words_CW)[:, : last - first].T)
            case "packed":
                return _unpacked(self._main[first:last], bits, columns)
            case _:
                return self._main[first:last].view(np.uint8) ^ np.uint8(0x80)

    def _scales(self) -> Bytes:
        """Of each row and each group of the file, in bytes."""
        layout, rows = self._source.packing.layout, self._shape[0]
        values = _read(self._source.part(_SCALES[layout]))
        if layout == "llm-int8":
            values = values / np.float32(127)
        if layout in ("gptq", "awq"):
            values = values.T
        by_row = values.reshape(1 if values.size == 1 else rows, -1)
        whole = np.ascontiguousarray(np.broadcast_to(by_row, (rows, by_row.shape[1])))
        return whole[:, :, None].view(np.uint8)

    def _zero_points(self) -> Bytes | None:
        """Of each row and each group of the file; None where all are the codes' middle."""
        packing, rows, bits = self._source.packing, self._shape[0], self._format.bits
        if packing.layout in ("int8", "llm-int8") or (packing.layout == "packed" and packing.symmetric):
            return None
        if packing.layout == "packed":
            return _unpacked(_read(self._source.part(".weight_zero_point")).T, bits, rows).T
        if packing.layout == "awq" and packing.symmetric:
            return None
        part = self._source.part(".qzeros")
        words_GW = _read(part)
        kept_GR = _unpacked_awq(words_GW) if packing.layout == "awq" else _unpacked(words_GW, bits, rows)
        zeros_RG = kept_GR.T + np.uint8(packing.zero_less)
        if not packing.symmetric:
            return zeros_RG
        if (zeros_RG != self._format.middle).any():
            raise FileError(
                f"{part.path} holds zero points in {part.name} that are not {self._format.middle}, and its "
                "configuration says that codes are symmetric; quantize the model again."
            )
        return None

    def _groups(self) -> tuple[npt.NDArray[np.int32] | None, Indices]:
        """The order in which columns are taken, None for theirs; of each stored group which of the file's it is of."""
        columns, stored = self._shape[1], self._format.block_values
        group = self._source.packing.group or columns
        in_order_C = np.arange(columns) // group
        source = self._source.group_index
        if source is None:
            return None, in_order_C[::stored]
        group_of_C = _read(source).astype(np.int64)
        if (group_of_C == in_order_C).all():
            return None, in_order_C[::stored]
        order_C = column_order(source)
        by_group = group_of_C[order_C].reshape(-1, stored)
        is_known = group_of_C.min() >= 0 and group_of_C.max() <= in_order_C[-1]
        is_sound = is_known and not np.ptp(by_group, axis=1).any()
        if not self._source.packing.ordered or not is_sound:
            kind = "any" if self._source.packing.ordered else "their own"
            raise FileError(
                f"{source.path} holds {source.name}, which contradicts its configuration: groups of {group} columns in "
                f"{kind} order; fetch the model again."
            )
        return order_C, by_group[:, 0]


def column_order(group_index: SourceTensor) -> npt.NDArray[np.int32]:
    """Which column each one is, where columns are taken group after group."""
    return np.argsort(_read(group_index), kind="stable").astype(np.int32)


def _unpacked(words_XW: npt.NDArray[np.int32], bits: int, count: int) -> Bytes:
    """`count` codes of each run of words, the lowest bits first."""
    packed_XB = np.ascontiguousarray(words_XW).view(np.uint8)[:, : -(-count * bits // 8)]
    return unpacked_codes(packed_XB, bits)[:, :count]


def _unpacked_awq(words_XW: npt.NDArray[np.int32]) -> Bytes:
    """Eight codes of each word, in AWQ's order."""
    nibbles = unpacked_codes(np.ascontiguousarray(words_XW).view(np.uint8), 4).reshape(len(words_XW), -1, 8)
    return nibbles[:, :, np.argsort(AWQ_ORDER)].reshape(len(words_XW), -1)


def _read(source: SourceTensor) -> npt.NDArray[Any]:
    with source.path.open("rb") as file:
        file.seek(source.offset)
        content = file.read(source.num_bytes)
    if len(content) != source.num_bytes:
        missing = source.num_bytes - len(content)
        raise FileError(f"{source.path} ends {missing} bytes inside the tensor {source.name}; fetch the model again.")
    return np.frombuffer(content, _TYPES[source.format.name]).reshape(source.shape)
