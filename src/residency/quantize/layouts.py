"""Quantized matrices as the tensors of published layouts: GPTQ's, AWQ's and compressed-tensors'.

The shapes are those of residency.formats.schemes. Shape suffixes: R rows, C columns, G groups, W 32-bit words,
N and V: whatever is packed together along the last axis.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from residency.errors import UsageError
from residency.formats import F16
from residency.formats.schemes import Scheme, awq, gptq, packed
from residency.quantize.grids import Codes, IntegerMatrix, IntegerScheme

LayoutName = Literal["gptq", "awq", "compressed-tensors"]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight columns each four bits of a word are, the lowest first

Arrays = dict[str, npt.NDArray[Any]]
Words = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the matrices of one checkpoint are written."""

    name: LayoutName
    scheme: IntegerScheme

    def __post_init__(self) -> None:
        if self.name == "awq" and (self.scheme.bits != 4 or self.scheme.symmetric or self.scheme.group is None):
            raise UsageError("AWQ's layout holds asymmetric groups of 4 bits; choose --layout gptq for others.")

    @property
    def described(self) -> Scheme:
        """The layout's tensors, their formats and shapes."""
        bits, group = self.scheme.bits, self.scheme.group
        if self.name == "gptq":
            return gptq(bits=bits, group=group)
        if self.name == "awq":
            return awq(bits=bits, group=group)
        return packed(bits=bits, group=group, scales=F16, symmetric=self.scheme.symmetric)

    def tensors(self, matrix: IntegerMatrix) -> Arrays:
        """The matrix's tensors, by the suffix of their names."""
        return {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}[self.name](matrix)

    def configuration(self, *, unconverted: list[str]) -> dict[str, Any]:
        """config.json's quantization_config; `unconverted` modules are left in 16 bits."""
        scheme = self.scheme
        if self.name == "gptq":
            return {
                "quant_method": "gptq",
                "bits": scheme.bits,
                "group_size": scheme.group or -1,
                "desc_act": False,  # groups are runs of columns, in whatever order they were rounded
                "sym": scheme.symmetric,
                "static_groups": True,
                "true_sequential": True,
                "lm_head": False,
                "checkpoint_format": "gptq",
            }
        if self.name == "awq":
            return {
                "quant_method": "awq",
                "bits": scheme.bits,
                "group_size": scheme.group,
                "zero_point": True,
                "version": "gemm",
                "modules_to_not_convert": None,
            }
        weights = {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "strategy": "group" if scheme.group else "channel",
            "group_size": scheme.group,
            "dynamic": False,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": unconverted,
        }


def usual_layout(method: str, scheme: IntegerScheme, columns: Iterable[int]) -> LayoutName:
    """The layout in which the method's files are published, for matrices of so many columns.

    GPTQ's for three bits, which straddle words, and where the last group is shorter: others have no place for it.
    """
    short = scheme.group is not None and any(each % scheme.group for each in columns)
    if method == "gptq" or scheme.bits == 3 or short:
        return "gptq"
    if method == "awq" and scheme.bits == 4 and not scheme.symmetric and scheme.group is not None:
        return "awq"
    return "compressed-tensors"


def packed_words(codes_NV: Codes, bits: int) -> Words:
    """Each row's codes one after the other from the lowest bit on, in whole words (rows, words)."""
    rows, count = codes_NV.shape
    bits_NVB = codes_NV[:, :, None] >> np.arange(bits, dtype=np.uint8) & np.uint8(1)
    missing = -count * bits % 32
    flat = np.pad(bits_NVB.reshape(rows, -1), ((0, 0), (0, missing)))
    words: Words = np.packbits(flat, axis=1, bitorder="little").view("<i4")
    return words


def _gptq(matrix: IntegerMatrix) -> Arrays:
    """Columns packed along the input, zeros less one along the output: readers add one."""
    bits, columns = matrix.grid.scheme.bits, matrix.codes_RC.shape[1]
    zeros_GR = np.ascontiguousarray(matrix.grid.zeros_RG.T) - np.uint8(1)
    return {
        ".qweight": np.ascontiguousarray(packed_words(matrix.codes_RC, bits).T),
        ".qzeros": packed_words(zeros_GR, bits),
        ".scales": np.ascontiguousarray(matrix.grid.scales_RG.T.astype("<f2")),
        ".g_idx": (np.arange(columns) // matrix.grid.scheme.group_values(columns)).astype("<i4"),
    }


def _awq(matrix: IntegerMatrix) -> Arrays:
    """Outputs packed in AWQ's order, zeros as they are."""

    def interleaved(codes_NR: Codes) -> Words:
        by_word = np.ascontiguousarray(codes_NR).reshape(len(codes_NR), -1, len(AWQ_ORDER))
        return packed_words(by_word[:, :, AWQ_ORDER].reshape(codes_NR.shape), 4)

    return {
        ".qweight": interleaved(matrix.codes_RC.T),
        ".qzeros": interleaved(matrix.grid.zeros_RG.T),
        ".scales": np.ascontiguousarray(matrix.grid.scales_RG.T.astype("<f2")),
    }


def _compressed(matrix: IntegerMatrix) -> Arrays:
    """Codes are those of signed integers with the middle added, as ours are."""
    bits = matrix.grid.scheme.bits
    arrays: Arrays = {
        ".weight_packed": packed_words(matrix.codes_RC, bits),
        ".weight_scale": matrix.grid.scales_RG.astype("<f2"),
        ".weight_shape": np.array(matrix.codes_RC.shape, "<i8"),
    }
    if not matrix.grid.scheme.symmetric:
        zeros_GR = np.ascontiguousarray(matrix.grid.zeros_RG.T)
        arrays[".weight_zero_point"] = np.ascontiguousarray(packed_words(zeros_GR, bits).T)
    return arrays
