"""The definition of the embedding of tokens, in plain NumPy."""

import numpy as np
import numpy.typing as npt

from residency.formats import Format, unpack_rows


def embed(
    fmt: Format, rows_RB: npt.NDArray[np.uint8], tokens_T: npt.NDArray[np.int64], factor: float
) -> npt.NDArray[np.float32]:
    """The rows (rows, row_bytes) of the tokens (tokens,), as float32 (tokens, columns), times `factor`."""
    return unpack_rows(fmt, rows_RB[tokens_T]) * np.float32(factor)
