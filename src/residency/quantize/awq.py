"""AWQ: columns that meet strong inputs are scaled up before rounding, and what comes before is scaled down.

J. Lin et al.: AWQ, activation-aware weight quantization (arXiv 2306.00978). The paper's scales are the inputs' mean
magnitude to one power for all columns; of many matrices that search finds only that no power helps, as a column that is
scaled up far widens the range of all that share its group. So each column has a scale of its own here, found by
descent of what rounding errors are expected to add up to. Then each group's range is narrowed as far as that pays,
with the errors of the groups beside it in sight. Clipping makes outputs smaller, each a little, all to the same side:
layer upon layer that costs more than errors which point anywhere. So each row is stretched to what its outputs were.

Shape suffixes: R rows, C columns, G groups, V values of a group.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from residency.quantize.grids import (
    Floats,
    Grid,
    IntegerMatrix,
    IntegerScheme,
    by_group,
    narrowed_grids,
    rounding_difference,
)

Columns = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

_SEARCHED_ROWS = 256  # of each matrix: as many tell where ranges end
_STEPS, _RATE, _STEEPEST = 60, 0.15, 3.0  # of the descent: how many, the first one's length, the largest slope
_FLOOR = 1e-4  # of a group's error, so that columns that end no range keep a finite slope
_FAINTEST = np.float32(1e-8)  # of the strongest input, what silent ones are taken for
_TINY = np.float32(1e-30)  # so that nothing is divided by 0
_SWEEPS = 2  # over a matrix' groups
_GAINS = (0.5, 2.0)  # between which a row is stretched


def column_scales(
    matrices: Sequence[Floats], energy_C: Floats, scheme: IntegerScheme, tied_C: Columns | None = None
) -> Floats:
    """What to multiply the columns of `matrices` by, which share inputs of mean square `energy`; 1 on average.

    Rounding errors are even in a group's step and hardly meet, so that of a row and group range² * sum(energy / scale²)
    is expected, but for a factor. Columns with the same number in `tied` get the same scale.
    """
    rows_RC = np.concatenate([matrix_RC[:: max(1, len(matrix_RC) // _SEARCHED_ROWS)] for matrix_RC in matrices])
    grouped_RGV = by_group(rows_RC, scheme)
    held_GV = by_group(np.maximum(energy_C, _FAINTEST * energy_C.max() + _TINY)[None], scheme)[0]
    tied_P = np.arange(held_GV.size)  # P: with the columns that fill up a last short group
    if tied_C is not None:
        tied_P[: len(tied_C)] = tied_C
    logs_P, best_P, least = np.zeros(held_GV.size), np.zeros(held_GV.size), np.inf
    for step in range(_STEPS):
        scales_GV = np.exp(logs_P).astype(np.float32).reshape(held_GV.shape)
        range_G, ends_GV = _ranges(grouped_RGV * scales_GV, scheme)
        noise_GV = held_GV / scales_GV**2
        noise_G = noise_GV.sum(axis=1)
        error_G = range_G * noise_G
        if error_G.sum() < least:
            best_P, least = logs_P, error_G.sum()
        floor_G1 = _FLOOR * error_G[:, None] + _TINY
        lost_P = _summed(noise_GV * range_G[:, None] + floor_G1, tied_P)  # by a smaller scale
        won_P = _summed(ends_GV * noise_G[:, None] + floor_G1, tied_P)
        slope_P = np.log(lost_P / won_P).clip(-_STEEPEST, _STEEPEST)
        logs_P = logs_P + _RATE * (1 - step / _STEPS) * slope_P
    best_C = best_P[: len(energy_C)]
    scales_C: Floats = np.exp(best_C - best_C.mean()).astype(np.float32)
    return scales_C


def clipped(weights_RC: Floats, gram_CC: Floats, scheme: IntegerScheme) -> IntegerMatrix:
    """The matrix on the grid that leaves its outputs off by least, of those that narrow groups' ranges.

    Group after group, each with the errors of the others as they are; after the first sweep the first ones are chosen
    again, with all others in sight. Then each row is stretched until its outputs are as large as they were.
    """
    columns = weights_RC.shape[1]
    width, count = scheme.group_values(columns), scheme.num_groups(columns)
    tried = narrowed_grids(weights_RC, scheme)
    scales_RG, zeros_RG = tried[0].scales_RG.copy(), tried[0].zeros_RG.copy()
    delta_RC = np.zeros_like(weights_RC)
    for group in [*range(count)] * _SWEEPS:
        part = slice(group * width, min((group + 1) * width, columns))
        weights_RV, gram_VV = np.ascontiguousarray(weights_RC[:, part]), gram_CC[part, part]
        delta_RC[:, part] = 0
        beside_RV = 2 * (delta_RC @ gram_CC[:, part])
        least_R = np.full(len(weights_RC), np.inf, np.float32)
        for grid in tried:
            delta_RV = rounding_difference(weights_RV[:, None], grid.of_group(group))[:, 0]
            error_R = np.einsum("rv,rv->r", delta_RV @ gram_VV + beside_RV, delta_RV)
            better_R = error_R < least_R
            least_R[better_R] = error_R[better_R]
            scales_RG[better_R, group] = grid.scales_RG[better_R, group]
            zeros_RG[better_R, group] = grid.zeros_RG[better_R, group]
            delta_RC[better_R, part] = delta_RV[better_R]
    grid = Grid(scheme=scheme, scales_RG=scales_RG, zeros_RG=zeros_RG)
    codes_RC = grid.encode(weights_RC)
    gain_R = _gain(weights_RC, grid.decode(codes_RC), gram_CC)
    return IntegerMatrix(grid=grid.divided(gain_R), codes_RC=codes_RC)


def _gain(weights_RC: Floats, rounded_RC: Floats, gram_CC: Floats) -> Floats:
    """How much of each output is left: its regression on what it was."""
    projected_RC = weights_RC @ gram_CC
    left_R, energy_R = (np.einsum("rc,rc->r", projected_RC, each_RC) for each_RC in (rounded_RC, weights_RC))
    gain_R: Floats = np.divide(left_R, energy_R, out=np.ones_like(left_R), where=energy_R > 0)
    return gain_R.clip(*_GAINS)


def output_error(weights_RC: Floats, rounded_RC: Floats, gram_CC: Floats) -> float:
    """The squared error of all outputs on inputs with the Gram matrix `gram`."""
    delta_RC = rounded_RC - weights_RC
    return float(np.einsum("rc,rc->", delta_RC @ gram_CC, delta_RC, dtype=np.float64))


def _ranges(scaled_RGV: Floats, scheme: IntegerScheme) -> tuple[Doubles, Doubles]:
    """The squared ranges of all rows' groups added up, and how much of that hangs on each column that ends one."""
    high_RG, low_RG = scaled_RGV.argmax(axis=2), scaled_RGV.argmin(axis=2)
    reached = [np.take_along_axis(scaled_RGV, each[:, :, None], axis=2)[:, :, 0] for each in (high_RG, low_RG)]
    above_RG, below_RG = np.maximum(reached[0], 0), np.maximum(-reached[1], 0)
    if scheme.symmetric:  # the farther end alone counts, twice
        upper_RG = above_RG >= below_RG
        above_RG, below_RG = 2 * above_RG * upper_RG, 2 * below_RG * ~upper_RG
    range_RG = above_RG + below_RG
    _, groups, width = scaled_RGV.shape
    first_G = np.arange(groups) * width
    ends_GV = np.zeros((groups, width))
    for end_RG, reached_RG in ((high_RG, above_RG), (low_RG, below_RG)):
        part_P = np.bincount((first_G + end_RG).ravel(), (range_RG * reached_RG).ravel(), groups * width)
        ends_GV += part_P.reshape(groups, width)
    return (range_RG**2).sum(axis=0, dtype=np.float64), ends_GV


def _summed(values_GV: Doubles, tied_P: Columns) -> Doubles:
    """For each column the sum over those that are tied to it."""
    return np.bincount(tied_P, values_GV.ravel())[tied_P].astype(np.float64)
