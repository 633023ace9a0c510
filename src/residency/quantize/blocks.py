"""Rows in GGUF's formats of blocks, their ranges fitted so that errors are least where inputs are strong.

Each column has an importance, the mean square of what it meets (what llama.cpp calls an importance matrix). A group's
scale, and its minimum where the format has one, are those of the weighed least squares for its codes, begun from
several widths of its range. Shape suffixes: N groups or blocks, V values, G groups of a block, R rows, C columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from residency.formats import Format, blocks32, blocks256, format_named, pack_rows, tabled, unpack_rows
from residency.quantize.grids import Floats

_WIDTHS = tuple(float(x) for x in np.linspace(0.75, 1.15, 9))  # of a group's range, tried as beginnings
_CHUNK_VALUES = 1 << 16  # fitted at once: as many as stay in the cache
_NOTHING = np.float32(1e-12)  # added to importances, so that columns that meet nothing are rounded too

Bytes = npt.NDArray[np.uint8]
Blocks = npt.NDArray[np.void]
Nearest = Callable[[Floats], Floats]  # of what codes stand for, before they are scaled


@dataclass(frozen=True, kw_only=True)
class BlockMatrix:
    """A matrix in one of GGUF's formats, its rows in the model's order."""

    format: Format
    rows_RB: Bytes

    @property
    def values_RC(self) -> Floats:
        """What it multiplies by."""
        return unpack_rows(self.format, self.rows_RB)

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Rows, and the format's name."""
        return {"rows": self.rows_RB, "format": np.array(self.format.name)}


def encoded(number_format: Format, values_RC: Floats, importance_C: Floats | None) -> BlockMatrix:
    """The matrix in `number_format`. Without importances, or for formats that are not fitted, as `pack_rows` has it."""
    if importance_C is None or number_format.name not in _FITTED:
        return BlockMatrix(format=number_format, rows_RB=pack_rows(number_format, values_RC))
    fit = _FITTED[number_format.name]
    rows, columns = values_RC.shape
    weight_C = importance_C / max(float(importance_C.mean()), 1e-30) + _NOTHING
    rows_RB = np.empty((rows, number_format.bytes_of((columns,))), np.uint8)
    step = max(1, _CHUNK_VALUES // columns)
    for first in range(0, rows, step):
        part_RC = values_RC[first : first + step]
        weight_RC = np.broadcast_to(weight_C.astype(np.float32), part_RC.shape)
        shape = (-1, number_format.block_values)
        packed = fit(np.ascontiguousarray(part_RC).reshape(shape), weight_RC.reshape(shape))
        rows_RB[first : first + step] = packed.view(np.uint8).reshape(len(part_RC), -1)
    return BlockMatrix(format=number_format, rows_RB=rows_RB)


def restored(rows_RB: Bytes, name: str) -> BlockMatrix:
    """The matrix of which these are the arrays."""
    return BlockMatrix(format=format_named(name), rows_RB=rows_RB)


def fitted_scale(values_NV: Floats, weight_NV: Floats, lowest: int, nearest: Nearest) -> Floats:
    """The scale (groups, 1) by which codes serve the values best, of which `lowest` is farthest from zero.

    The value of largest magnitude gets that code, or is clipped a little.
    """
    index_N1 = np.abs(values_NV).argmax(axis=1)[:, None]
    extreme_N1 = np.take_along_axis(values_NV, index_N1, axis=1)
    best_N1 = extreme_N1 / np.float32(lowest)
    least_N1 = np.full(best_N1.shape, np.inf, np.float32)
    for width in _WIDTHS:
        codes_NV = nearest(values_NV * _inverse(extreme_N1 * np.float32(width / lowest)))
        weighed_NV = weight_NV * codes_NV
        scale_N1 = _quotient(_sum(weighed_NV * values_NV), _sum(weighed_NV * codes_NV))
        codes_NV = nearest(values_NV * _inverse(scale_N1))
        error_N1 = _sum(weight_NV * (scale_N1 * codes_NV - values_NV) ** 2)
        better_N1 = error_N1 < least_N1
        best_N1, least_N1 = np.where(better_N1, scale_N1, best_N1), np.where(better_N1, error_N1, least_N1)
    return best_N1


def fitted_range(values_NV: Floats, weight_NV: Floats, highest: int, *, below_zero: bool) -> tuple[Floats, Floats]:
    """The step and the lowest value (groups, 1) by which codes from 0 to `highest` serve the values best.

    `below_zero` forbids lowest values above 0, which some formats cannot hold.
    """
    low_N1, high_N1 = values_NV.min(axis=1, keepdims=True), values_NV.max(axis=1, keepdims=True)
    if below_zero:
        low_N1, high_N1 = np.minimum(low_N1, 0), np.maximum(high_N1, 0)
    best, nearest = ((high_N1 - low_N1) / np.float32(highest), low_N1), _whole(0, highest)
    least_N1 = np.full(low_N1.shape, np.inf, np.float32)
    total_N1, mean_N1 = _sum(weight_NV), _sum(weight_NV * values_NV)
    for width in _WIDTHS:
        spare_N1 = (high_N1 - low_N1) * np.float32((1 - width) / 2)
        step_N1, start_N1 = (high_N1 - low_N1) * np.float32(width / highest), low_N1 + spare_N1
        codes_NV = nearest((values_NV - start_N1) * _inverse(step_N1))
        weighed_NV = weight_NV * codes_NV
        codes_N1, squares_N1, products_N1 = _sum(weighed_NV), _sum(weighed_NV * codes_NV), _sum(weighed_NV * values_NV)
        step_N1 = _quotient(total_N1 * products_N1 - mean_N1 * codes_N1, total_N1 * squares_N1 - codes_N1**2)
        start_N1 = _quotient(mean_N1 - step_N1 * codes_N1, total_N1)
        if below_zero:
            above_N1 = start_N1 > 0
            step_N1 = np.where(above_N1, _quotient(products_N1, squares_N1), step_N1)
            start_N1 = np.where(above_N1, np.float32(0), start_N1)
        codes_NV = nearest((values_NV - start_N1) * _inverse(step_N1))
        error_N1 = _sum(weight_NV * (step_N1 * codes_NV + start_N1 - values_NV) ** 2)
        better_N1 = (error_N1 < least_N1) & (step_N1 > 0)
        best = (np.where(better_N1, step_N1, best[0]), np.where(better_N1, start_N1, best[1]))
        least_N1 = np.where(better_N1, error_N1, least_N1)
    return best


def _scaled(
    pack: Callable[[Floats, Floats], Blocks], lowest: int, nearest: Nearest
) -> Callable[[Floats, Floats], Blocks]:
    def fit(values_NV: Floats, weight_NV: Floats) -> Blocks:
        return pack(values_NV, _half(fitted_scale(values_NV, weight_NV, lowest, nearest)))

    return fit


def _between(
    pack: Callable[[Floats, tuple[Floats, Floats]], Blocks], highest: int
) -> Callable[[Floats, Floats], Blocks]:
    def fit(values_NV: Floats, weight_NV: Floats) -> Blocks:
        step_N1, low_N1 = (_half(x) for x in fitted_range(values_NV, weight_NV, highest, below_zero=False))
        return pack(values_NV, (low_N1, low_N1 + step_N1 * np.float32(highest)))

    return fit


def _ranged(
    pack: Callable[[Floats, blocks256.Ranges], Blocks], highest: int, group: int
) -> Callable[[Floats, Floats], Blocks]:
    def fit(values_NV: Floats, weight_NV: Floats) -> Blocks:
        grouped, weights = (x.reshape(-1, group) for x in (values_NV, weight_NV))
        step_NG, low_NG = (
            x.reshape(len(values_NV), -1) for x in fitted_range(grouped, weights, highest, below_zero=True)
        )
        return pack(values_NV, blocks256.Ranges(step_NG=step_NG, least_NG=-low_NG))

    return fit


def _stepped(
    pack: Callable[[Floats, Floats], Blocks], lowest: int, nearest: Nearest, group: int
) -> Callable[[Floats, Floats], Blocks]:
    def fit(values_NV: Floats, weight_NV: Floats) -> Blocks:
        grouped, weights = (x.reshape(-1, group) for x in (values_NV, weight_NV))
        return pack(values_NV, fitted_scale(grouped, weights, lowest, nearest).reshape(len(values_NV), -1))

    return fit


def _whole(lowest: int, highest: int) -> Nearest:
    def nearest(scaled_NV: Floats) -> Floats:
        codes_NV: Floats = np.rint(scaled_NV).clip(lowest, highest)
        return codes_NV

    return nearest


_of_table = partial(tabled.nearest_values, tabled.IQ4_TABLE)
_FITTED: dict[str, Callable[[Floats, Floats], Blocks]] = {
    "Q4_0": _scaled(blocks32.pack_q4_0, -8, _whole(-8, 7)),
    "Q5_0": _scaled(blocks32.pack_q5_0, -16, _whole(-16, 15)),
    "Q4_1": _between(blocks32.pack_q4_1, 15),
    "Q5_1": _between(blocks32.pack_q5_1, 31),
    "IQ4_NL": _scaled(tabled.pack_iq4_nl, min(tabled.IQ4_TABLE), _of_table),
    "IQ4_XS": _stepped(tabled.pack_iq4_xs, min(tabled.IQ4_TABLE), _of_table, 32),
    "Q2_K": _ranged(blocks256.pack_q2_k, 3, 16),
    "Q3_K": _stepped(blocks256.pack_q3_k, -4, _whole(-4, 3), 16),
    "Q4_K": _ranged(blocks256.pack_q4_k, 15, 32),
    "Q5_K": _ranged(blocks256.pack_q5_k, 31, 32),
    "Q6_K": _stepped(blocks256.pack_q6_k, -32, _whole(-32, 31), 16),
}


def _inverse(scale_N1: Floats) -> Floats:
    return _quotient(np.float32(1), scale_N1)


def _sum(values_NV: Floats) -> Floats:
    total_N1: Floats = values_NV.sum(axis=1, keepdims=True)
    return total_N1


def _quotient(over: Floats | np.float32, under_N1: Floats) -> Floats:
    """over / under, and 0 where nothing is under."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        quotient_N1: Floats = np.where(np.abs(under_N1) < np.float32(1e-30), np.float32(0), over / under_N1)
    return quotient_N1


def _half(values_N1: Floats) -> Floats:
    """As the file holds it."""
    rounded_N1: Floats = values_N1.astype(np.float16).astype(np.float32)
    return rounded_N1
