"""Round to nearest: each weight alone, no text needed; what every better method is held against."""

from residency.quantize.grids import Floats, IntegerMatrix, IntegerScheme, grid_of


def round_to_nearest(weights_RC: Floats, scheme: IntegerScheme) -> IntegerMatrix:
    """The matrix on the grid that reaches its groups' extremes."""
    grid = grid_of(weights_RC, scheme)
    return IntegerMatrix(grid=grid, codes_RC=grid.encode(weights_RC))
