"""AWQ: columns that meet strong inputs are scaled up before rounding, and what comes before is scaled down.

J. Lin et al.: AWQ, activation-aware weight quantization (arXiv 2306.00978). The scales are the inputs' mean magnitude
to a power that is searched for, so that the error of the outputs on calibration inputs is least; then each group's
range is narrowed as far as that pays. Shape suffixes: R rows, C columns, G groups, V values of a group.
"""

from collections.abc import Sequence

import numpy as np

from residency.quantize.grids import (
    SHRINKS,
    Floats,
    Grid,
    IntegerMatrix,
    IntegerScheme,
    by_group,
    grid_of,
    rounding_difference,
)

_POWERS = tuple(float(x) for x in np.linspace(0, 0.95, 20))
_SEARCHED_ROWS = 512  # of each matrix: as many tell which power is best


def column_scales(matrices: Sequence[Floats], gram_CC: Floats, magnitude_C: Floats, scheme: IntegerScheme) -> Floats:
    """What to multiply the columns of `matrices` by, which share inputs of mean magnitude `magnitude`; 1 on average."""
    searched = [matrix_RC[:: max(1, len(matrix_RC) // _SEARCHED_ROWS)] for matrix_RC in matrices]
    best_C, least = np.ones_like(magnitude_C), np.inf
    for power in _POWERS:
        scales_C = np.maximum(magnitude_C, 1e-4) ** np.float32(power)
        scales_C = (scales_C / np.sqrt(scales_C.max() * scales_C.min())).astype(np.float32)
        error = sum(_output_error(matrix_RC, gram_CC, scales_C, scheme) for matrix_RC in searched)
        if error < least:
            best_C, least = scales_C, error
    return best_C


def clipped(weights_RC: Floats, gram_CC: Floats, scheme: IntegerScheme) -> IntegerMatrix:
    """The matrix on the grid whose groups' shares of the outputs are off by least."""
    grouped_RGV = by_group(weights_RC, scheme)
    grams_GVV = _gram_of_groups(gram_CC, scheme)
    best = grid_of(weights_RC, scheme)
    scales_RG, zeros_RG = best.scales_RG.copy(), best.zeros_RG.copy()
    least_RG = np.full(scales_RG.shape, np.inf, np.float32)
    for shrink in SHRINKS:
        grid = grid_of(weights_RC * np.float32(shrink), scheme)
        delta_GRV = rounding_difference(grouped_RGV, grid).swapaxes(0, 1)
        error_RG = np.einsum("grv,grv->rg", delta_GRV @ grams_GVV, delta_GRV)
        better_RG = error_RG < least_RG
        scales_RG[better_RG], zeros_RG[better_RG] = grid.scales_RG[better_RG], grid.zeros_RG[better_RG]
        least_RG = np.minimum(error_RG, least_RG)
    grid = Grid(scheme=scheme, scales_RG=scales_RG, zeros_RG=zeros_RG)
    return IntegerMatrix(grid=grid, codes_RC=grid.encode(weights_RC))


def output_error(weights_RC: Floats, rounded_RC: Floats, gram_CC: Floats) -> float:
    """The squared error of all outputs on inputs with the Gram matrix `gram`."""
    delta_RC = rounded_RC - weights_RC
    return float(np.einsum("rc,rc->", delta_RC @ gram_CC, delta_RC, dtype=np.float64))


def _output_error(weights_RC: Floats, gram_CC: Floats, scales_C: Floats, scheme: IntegerScheme) -> float:
    scaled_RC = weights_RC * scales_C
    grid = grid_of(scaled_RC, scheme)
    return output_error(weights_RC, grid.decode(grid.encode(scaled_RC)) / scales_C, gram_CC)


def _gram_of_groups(gram_CC: Floats, scheme: IntegerScheme) -> Floats:
    """The Gram matrix of each group's own columns, (groups, values, values)."""
    columns = len(gram_CC)
    width, count = scheme.group_values(columns), scheme.num_groups(columns)
    grams_GVV = np.zeros((count, width, width), np.float32)
    for group in range(count):
        part = slice(group * width, min((group + 1) * width, columns))
        held = part.stop - part.start
        grams_GVV[group, :held, :held] = gram_CC[part, part]
    return grams_GVV
