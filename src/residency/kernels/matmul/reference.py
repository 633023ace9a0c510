"""Matrix products, defined in plain NumPy; never optimised.

Shape suffixes: T tokens, C columns (channels in), G groups of 32 columns, V values of a group, R rows (channels out),
B bytes of a row.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.formats import Format, unpack_rows
from residency.kernels.matmul import groups_together

GROUP_VALUES = 32

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class QuantizedRows:
    """Rows of activations in groups of 32 columns: value = scale of its group * code."""

    codes_TGV: npt.NDArray[np.int8]  # -127 to 127
    scales_TG: Floats

    @property
    def values_TC(self) -> Doubles:
        """What the codes stand for."""
        values_TGV = self.codes_TGV.astype(np.float64) * self.scales_TG[:, :, None]
        return values_TGV.reshape(len(values_TGV), -1)

    @property
    def sums_TG3(self) -> Doubles:
        """Of each group: the sum of what its first 16 codes stand for, that of the last 16, and that of all."""
        halves_TG2 = self.codes_TGV.reshape(*self.scales_TG.shape, 2, 16).sum(axis=3, dtype=np.int64)
        sums_TG3 = np.concatenate([halves_TG2, halves_TG2.sum(axis=2, keepdims=True)], axis=2)
        scaled_TG3: Doubles = sums_TG3 * self.scales_TG[:, :, None].astype(np.float64)
        return scaled_TG3


def quantize_rows(x_TC: Floats, together: int = 1) -> QuantizedRows:
    """Each group's value of largest magnitude becomes code 127 or -127; halves are rounded to the even code.

    `together` groups are quantized as one. All in float32: scale = largest / 127, code = x * (127 / largest), and a
    group of zeros has scale and codes 0.
    """
    x_TGV = x_TC.astype(np.float32).reshape(len(x_TC), -1, GROUP_VALUES)
    largest_TG = np.abs(x_TGV).reshape(len(x_TC), -1, together * GROUP_VALUES).max(axis=2).repeat(together, axis=1)
    inverse_TG = np.divide(np.float32(127), largest_TG, out=np.zeros_like(largest_TG), where=largest_TG > 0)
    codes_TGV = np.rint(x_TGV * inverse_TG[:, :, None]).astype(np.int8)
    return QuantizedRows(codes_TGV=codes_TGV, scales_TG=largest_TG / np.float32(127))


def linear(
    x_TC: Floats,
    number_format: Format,
    rows_RB: npt.NDArray[np.uint8],
    *,
    bias_R: Floats | None = None,
    before_TR: Floats | None = None,
) -> Doubles:
    """x · matrixᵀ (+ bias) (+ what was there before), (tokens, rows), for a matrix in its format's own row layout.

    A matrix of floats multiplies x as it is; one in integer blocks multiplies the quantized x, and the products and
    sums are exact but for the rounding of float64.
    """
    weights_RC = unpack_rows(number_format, rows_RB).astype(np.float64)
    taken_TC = (
        x_TC.astype(np.float64)
        if number_format.is_float
        else quantize_rows(x_TC, groups_together(number_format)).values_TC
    )
    out_TR: Doubles = taken_TC @ weights_RC.T
    if bias_R is not None:
        out_TR = out_TR + bias_R
    if before_TR is not None:
        out_TR = out_TR + before_TR
    return out_TR


def rounded_to_bf16(values: Floats) -> Floats:
    """The nearest values of eight significant bits, halves to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: Floats = (
        (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    ).view(np.float32)
    return rounded


def prompt_linear(x_TC: Floats, number_format: Format, rows_RB: npt.NDArray[np.uint8]) -> Doubles:
    """As `linear`, for rows of prompts in tile registers: x and a matrix in blocks are both rounded to bfloat16."""
    weights_RC = rounded_to_bf16(unpack_rows(number_format, rows_RB)).astype(np.float64)
    out_TR: Doubles = rounded_to_bf16(x_TC).astype(np.float64) @ weights_RC.T
    return out_TR
