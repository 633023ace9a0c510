"""Integers of few bits for the rows of a matrix: value = scale * (code - zero), by group of columns.

Shape suffixes: R rows, C columns, G groups, V values of a group. A last group of fewer columns is allowed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

_LEAST_SCALE = float(np.finfo(np.float16).smallest_subnormal)
_SHRINKS = np.linspace(1.0, 0.6, 17, dtype=np.float32)  # what a search tries to narrow each group's range by


@dataclass(frozen=True, kw_only=True)
class IntegerScheme:
    """Codes of `bits` with one scale, and without symmetry one zero, for each row and `group` of columns."""

    bits: int
    group: int | None  # columns that share a scale; None: a whole row
    symmetric: bool

    @property
    def largest_code(self) -> int:
        """Codes go from 0 to this."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero of symmetric codes."""
        return 1 << (self.bits - 1)

    def group_values(self, columns: int) -> int:
        """Columns of a group, of a matrix of `columns`."""
        return columns if self.group is None else self.group

    def num_groups(self, columns: int) -> int:
        """Groups of a row, the last perhaps shorter."""
        return -(-columns // self.group_values(columns))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values that a matrix's codes stand for. Scales are exact in float16, zeros are 1 to the largest code."""

    scheme: IntegerScheme
    scales_RG: Floats
    zeros_RG: Codes

    def column(self, index: int, columns: int) -> tuple[Floats, Floats]:
        """The scale and the zero of each row, at one of `columns` columns."""
        group = index // self.scheme.group_values(columns)
        return self.scales_RG[:, group], self.zeros_RG[:, group].astype(np.float32)

    def of_group(self, group: int) -> "Grid":
        """Of one group's columns."""
        part = slice(group, group + 1)
        return Grid(scheme=self.scheme, scales_RG=self.scales_RG[:, part], zeros_RG=self.zeros_RG[:, part])

    def stretched(self, factors_RG: Floats) -> "Grid":
        """With each group's values multiplied by a number; one column of factors is for whole rows."""
        scales_RG = _half(self.scales_RG * factors_RG)
        return Grid(scheme=self.scheme, scales_RG=scales_RG, zeros_RG=self.zeros_RG)

    def encode(self, weights_RC: Floats) -> Codes:
        """The nearest codes."""
        grouped_RGV = by_group(weights_RC, self.scheme)
        codes_RGV = np.rint(grouped_RGV / self.scales_RG[:, :, None]) + self.zeros_RG[:, :, None]
        codes = codes_RGV.clip(0, self.scheme.largest_code).astype(np.uint8)
        return np.ascontiguousarray(codes.reshape(len(codes), -1)[:, : weights_RC.shape[1]])

    def decode(self, codes_RC: Codes) -> Floats:
        """What the codes stand for."""
        columns = codes_RC.shape[1]
        groups_C = np.arange(columns) // self.scheme.group_values(columns)
        signed_RC = codes_RC.astype(np.float32) - self.zeros_RG.astype(np.float32)[:, groups_C]
        values: Floats = self.scales_RG[:, groups_C] * signed_RC
        return values


@dataclass(frozen=True, kw_only=True)
class IntegerMatrix:
    """A quantized matrix."""

    grid: Grid
    codes_RC: Codes

    @property
    def values_RC(self) -> Floats:
        """What it multiplies by."""
        return self.grid.decode(self.codes_RC)

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Codes, scales and zeros."""
        return {"codes": self.codes_RC, "scales": self.grid.scales_RG, "zeros": self.grid.zeros_RG}


def by_group(weights_RC: Floats, scheme: IntegerScheme) -> Floats:
    """(rows, groups, values of a group), a last short group filled up with zeros."""
    rows, columns = weights_RC.shape
    missing = scheme.num_groups(columns) * scheme.group_values(columns) - columns
    whole_RC = np.pad(weights_RC, ((0, 0), (0, missing))) if missing else weights_RC
    grouped_RGV: Floats = whole_RC.reshape(rows, scheme.num_groups(columns), -1)
    return grouped_RGV


def grid_of(weights_RC: Floats, scheme: IntegerScheme) -> Grid:
    """The grid that just reaches each group's extremes, and zero."""
    return grid_between(*extremes(weights_RC, scheme), scheme)


def searched_grid(weights_RC: Floats, scheme: IntegerScheme, importance_C: Floats | None = None) -> Grid:
    """The grid whose rounding errors, squared and weighed by `importance` of their columns, are least in each group.

    Each group's range is narrowed as far as pays: a few clipped values cost less than a coarser grid for all.
    """
    weight_C = np.ones(weights_RC.shape[1], np.float32) if importance_C is None else importance_C.astype(np.float32)
    weight_1GV = by_group(weight_C[None, :], scheme)
    grouped_RGV = by_group(weights_RC, scheme)
    low_RG, high_RG = extremes(weights_RC, scheme)
    tried = [grid_between(low_RG * shrink, high_RG * shrink, scheme) for shrink in _SHRINKS]
    scales_RG, zeros_RG = tried[0].scales_RG.copy(), tried[0].zeros_RG.copy()
    least_RG = np.full(scales_RG.shape, np.inf, np.float32)
    for grid in tried:
        error_RG = rounding_error(grouped_RGV, grid, weight_1GV)
        better_RG = error_RG < least_RG
        scales_RG[better_RG], zeros_RG[better_RG] = grid.scales_RG[better_RG], grid.zeros_RG[better_RG]
        least_RG = np.minimum(error_RG, least_RG)
    return Grid(scheme=scheme, scales_RG=scales_RG, zeros_RG=zeros_RG)


def rounding_error(grouped_RGV: Floats, grid: Grid, weight_1GV: Floats) -> Floats:
    """The weighed sum of squared errors of each row and group."""
    delta_RGV = rounding_difference(grouped_RGV, grid)
    error_RG: Floats = np.einsum("rgv,gv->rg", delta_RGV * delta_RGV, weight_1GV[0])
    return error_RG


def rounding_difference(grouped_RGV: Floats, grid: Grid) -> Floats:
    """What each value becomes less what it was."""
    scale_RG1, zero_RG1 = grid.scales_RG[:, :, None], grid.zeros_RG[:, :, None].astype(np.float32)
    codes_RGV: Floats = np.rint(grouped_RGV / scale_RG1)
    np.clip(codes_RGV, -zero_RG1, grid.scheme.largest_code - zero_RG1, out=codes_RGV)
    codes_RGV *= scale_RG1
    codes_RGV -= grouped_RGV
    return codes_RGV


def extremes(weights_RC: Floats, scheme: IntegerScheme) -> tuple[Floats, Floats]:
    """The least and the largest value of each row and group."""
    grouped_RGV = by_group(weights_RC, scheme)
    return grouped_RGV.min(axis=2), grouped_RGV.max(axis=2)


def grid_between(low_RG: Floats, high_RG: Floats, scheme: IntegerScheme) -> Grid:
    """The grid that just reaches from the low ends to the high ones, and zero.

    Without symmetry zero is a code above 0, as GPTQ's files, which store it less one, can hold no other.
    """
    largest = scheme.largest_code
    if scheme.symmetric:
        scale_RG = np.maximum(high_RG, -low_RG) * np.float32(2 / largest)
        zeros_RG = np.full(scale_RG.shape, scheme.middle, np.uint8)
        return Grid(scheme=scheme, scales_RG=_half(scale_RG), zeros_RG=zeros_RG)
    high_RG = np.maximum(high_RG, 0)
    low_RG = np.minimum(low_RG, -high_RG / np.float32(largest - 1))
    scales_RG = _half((high_RG - low_RG) / np.float32(largest))
    zeros_RG = np.rint(-low_RG / scales_RG).clip(1, largest).astype(np.uint8)
    return Grid(scheme=scheme, scales_RG=scales_RG, zeros_RG=zeros_RG)


def _half(scale_RG: Floats) -> Floats:
    """Rounded to what files hold, never 0."""
    half_RG: Floats = np.maximum(scale_RG, np.float32(_LEAST_SCALE)).astype(np.float16).astype(np.float32)
    return half_RG
