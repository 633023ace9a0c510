"""AWQ: columns that meet strong inputs are scaled up before rounding, and what comes before is scaled down.

J. Lin et al.: AWQ, activation-aware weight quantization (arXiv 2306.00978). The paper's scales are the inputs' mean
magnitude to one power for all columns; of many matrices that search finds only that no power helps, as a column that is
scaled up far widens the range of all that share its group. So each column has a scale of its own here, found by
descent of what rounding errors are expected to add up to. What is clipped afterwards is residency.quantize.clipping's.

Shape suffixes: R rows, C columns, G groups, V values of a group.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from residency.quantize.grids import Floats, IntegerScheme, by_group

Columns = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

_SEARCHED_ROWS = 1024  # of each matrix: as many tell where ranges end
_STEPS, _RATE, _STEEPEST = 60, 0.15, 3.0  # of the descent: how many, the first one's length, the largest slope
_FLOOR = 1e-4  # of a group's error, so that columns that end no range keep a finite slope
_FAINTEST = np.float32(1e-8)  # of the strongest input, what silent ones are taken for
_TINY = np.float32(1e-30)  # so that nothing is divided by 0


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
