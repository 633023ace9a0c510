"""The definition of putting columns in order, in plain NumPy. Shape suffixes: T tokens, C columns."""

import numpy as np
import numpy.typing as npt


def in_order(x_TC: npt.NDArray[np.float32], order_C: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Column c of the result is column order[c] of x."""
    return x_TC[:, order_C]
