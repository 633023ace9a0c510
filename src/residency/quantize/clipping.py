"""Ranges that clip a few weights so that the others' grid is finer, chosen by what the outputs lose.

AWQ (arXiv 2306.00978) narrows each group's range by its own error and by one factor for both ends. Here both ends move
on their own, and with the errors of all other groups in sight, as inputs go together: what one group loses, another can
make good. Sweep after sweep goes over the groups, by ever smaller steps. At the end all groups of a row are stretched
together, their codes as they are, by least squares of its outputs. Both make outputs smaller, each a little, all to the
same side: layer upon layer that costs more than errors which point anywhere. So each row is stretched to what its
outputs were.

Shape suffixes: R rows, C columns, G groups, V values of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from residency.quantize.grids import (
    Floats,
    Grid,
    IntegerMatrix,
    IntegerScheme,
    extremes,
    grid_between,
    rounding_difference,
    searched_grid,
)

Factors = Sequence[tuple[float, float]]  # what the low and the high end are multiplied by

_NARROWED = [(factor, factor) for factor in np.linspace(1, 0.6, 9).tolist()]  # the first sweep's
_STEPS = (0.2, 0.16, 0.12, 0.08, 0.06, 0.04, 0.03, 0.02)  # by which either end moves in the others
_GAINS = (0.5, 2.0)  # between which a row, or a group of it, is stretched
_RIDGE = 1e-3  # of a group's own energy, by which groups that hardly count stay as they are
_TINY = 1e-30  # so that nothing is divided by 0
_FITTED_ROWS = 512  # at once


def clipped(weights_RC: Floats, gram_CC: Floats, scheme: IntegerScheme) -> IntegerMatrix:
    """The matrix on the grid that leaves its outputs off by least on inputs with the Gram matrix `gram`.

    Rows that are one group each have no groups to meet, and their errors average out over all columns: their ranges
    are narrowed by the columns' own energies.
    """
    width = scheme.group_values(weights_RC.shape[1])
    if scheme.group is None:
        grid = searched_grid(weights_RC, scheme, np.diagonal(gram_CC))
    else:
        grid = _moved_grid(weights_RC, gram_CC, scheme)
    codes_RC = grid.encode(weights_RC)
    values_RC = grid.decode(codes_RC)
    stretched = [
        _stretches(weights_RC[rows], values_RC[rows], gram_CC, width) for rows in _blocks(len(weights_RC), _FITTED_ROWS)
    ]
    return IntegerMatrix(grid=grid.stretched(np.concatenate(stretched)), codes_RC=codes_RC)


def _moved_grid(weights_RC: Floats, gram_CC: Floats, scheme: IntegerScheme) -> Grid:
    """Sweep after sweep over the groups."""
    low_RG, high_RG = extremes(weights_RC, scheme)
    ends = _Ends(low_RG=low_RG.copy(), high_RG=high_RG.copy())
    delta_RC = np.zeros_like(weights_RC)
    columns = weights_RC.shape[1]
    width = scheme.group_values(columns)
    sweeps: list[list[Factors]] = [[_NARROWED], *(_either_end(step) for step in _STEPS)]
    for rounds in sweeps:
        for group, part in enumerate(_blocks(columns, width)):
            delta_RC[:, part] = 0
            beside_RV = 2 * (delta_RC @ gram_CC[:, part])
            weights_RV, gram_VV = (np.ascontiguousarray(each) for each in (weights_RC[:, part], gram_CC[part, part]))
            delta_RC[:, part] = ends.move(group, weights_RV, gram_VV, beside_RV, scheme, rounds)
    return grid_between(ends.low_RG, ends.high_RG, scheme)


def output_error(weights_RC: Floats, rounded_RC: Floats, gram_CC: Floats) -> float:
    """The squared error of all outputs on inputs with the Gram matrix `gram`."""
    delta_RC = rounded_RC - weights_RC
    return float(np.einsum("rc,rc->", delta_RC @ gram_CC, delta_RC, dtype=np.float64))


@dataclass(frozen=True, kw_only=True)
class _Ends:
    """Where each row's groups end."""

    low_RG: Floats
    high_RG: Floats

    def move(
        self,
        group: int,
        weights_RV: Floats,
        gram_VV: Floats,
        beside_RV: Floats,
        scheme: IntegerScheme,
        rounds: Sequence[Factors],
    ) -> Floats:
        """Move a group's ends to the best of each round's, one round after the other; what rounding changes then.

        `beside` is what each value's error meets of the other groups'.
        """
        least_R = np.full(len(weights_RV), np.inf, np.float32)
        best_RV = np.zeros_like(weights_RV)
        for factors in rounds:
            low_R, high_R = self.low_RG[:, group].copy(), self.high_RG[:, group].copy()
            for down, up in factors:
                moved = low_R * np.float32(down), high_R * np.float32(up)
                grid = grid_between(moved[0][:, None], moved[1][:, None], scheme)
                delta_RV = rounding_difference(weights_RV[:, None], grid)[:, 0]
                error_R = np.einsum("rv,rv->r", delta_RV @ gram_VV + beside_RV, delta_RV)
                better_R = error_R < least_R
                least_R[better_R] = error_R[better_R]
                self.low_RG[better_R, group], self.high_RG[better_R, group] = moved[0][better_R], moved[1][better_R]
                np.copyto(best_RV, delta_RV, where=better_R[:, None])
        return best_RV


def _either_end(step: float) -> list[Factors]:
    """The low end first, then the high one: as they are, or moved by one or two steps."""
    near, far = (1 - step, 1 + step), (1 - step / 2, 1 + step / 2)
    return [[(1, 1), *((each, 1) for each in (*near, *far))], [(1, each) for each in (*near, *far)]]


def _stretches(weights_RC: Floats, rounded_RC: Floats, gram_CC: Floats, width: int) -> Floats:
    """What each group's values are multiplied by, (rows, groups), so that outputs are near and as large as before."""
    starts_G = np.arange(0, weights_RC.shape[1], width)
    wanted_RC = weights_RC @ gram_CC
    wanted_RG = np.add.reduceat(wanted_RC * rounded_RC, starts_G, axis=1).astype(np.float64)
    together_RGG = np.empty((*wanted_RG.shape, len(starts_G)))
    for group, part in enumerate(_blocks(weights_RC.shape[1], width)):
        met_RC = rounded_RC[:, part] @ gram_CC[part]
        together_RGG[:, group] = np.add.reduceat(met_RC * rounded_RC, starts_G, axis=1)
    ridge_R = _RIDGE * np.einsum("rgg->r", together_RGG) / len(starts_G) + _TINY
    together_RGG += ridge_R[:, None, None] * np.eye(len(starts_G))
    stretch_RG = np.linalg.solve(together_RGG, (wanted_RG + ridge_R[:, None])[:, :, None])[:, :, 0]
    left_R, energy_R = (stretch_RG * wanted_RG).sum(axis=1), np.einsum("rc,rc->r", wanted_RC, weights_RC)
    gain_R = np.divide(left_R, energy_R, out=np.ones_like(left_R), where=energy_R > 0)
    stretches_RG: Floats = (stretch_RG / gain_R.clip(*_GAINS)[:, None]).clip(*_GAINS).astype(np.float32)
    return stretches_RG


def _blocks(length: int, step: int) -> list[slice]:
    """Parts of `step`, the last perhaps shorter."""
    return [slice(first, min(first + step, length)) for first in range(0, length, step)]
