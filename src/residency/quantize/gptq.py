"""GPTQ: weights rounded column after column, each error made good by the columns that are still to come.

E. Frantar et al.: GPTQ, accurate post-training quantization for generative pre-trained transformers (arXiv 2210.17323).
What is minimised is the squared error of the layer's outputs on calibration inputs x; their Gram matrix xᵀx is all
that it needs. Columns are taken in the order of their inputs' energy (act-order), with the groups' grids fixed
beforehand, so that groups stay runs of columns and files need no order of their own.

Shape suffixes: R rows, C columns, B columns of a block.
"""

import numpy as np

from residency.quantize.grids import Floats, IntegerMatrix, IntegerScheme, searched_grid

BLOCK_COLUMNS = 64
DAMPING = 0.01  # of the mean energy, added to each column's
_LEAF = 64  # rows that a Cholesky factor is computed of at once


def gptq(weights_RC: Floats, gram_CC: Floats, scheme: IntegerScheme, *, damping: float = DAMPING) -> IntegerMatrix:
    """The matrix with codes that follow the outputs on inputs with the Gram matrix `gram`."""
    columns = weights_RC.shape[1]
    energy_C = gram_CC.diagonal()
    grid = searched_grid(weights_RC, scheme, energy_C)
    order_C = np.argsort(-energy_C, kind="stable")
    upper_CC = inverse_factor(gram_CC[np.ix_(order_C, order_C)], damping)
    left_CR = np.ascontiguousarray(weights_RC.T[order_C])  # what is still to be rounded; columns as rows
    codes_CR = np.empty(left_CR.shape, np.uint8)
    for first in range(0, columns, BLOCK_COLUMNS):
        last = min(first + BLOCK_COLUMNS, columns)
        errors_BR = np.empty((last - first, left_CR.shape[1]), np.float32)
        for index in range(first, last):
            scale_R, zero_R = grid.column(int(order_C[index]), columns)
            code_R = (np.rint(left_CR[index] / scale_R) + zero_R).clip(0, scheme.largest_code)
            codes_CR[order_C[index]] = code_R
            error_R = (left_CR[index] - scale_R * (code_R - zero_R)) / upper_CC[index, index]
            left_CR[index + 1 : last] -= np.outer(upper_CC[index, index + 1 : last], error_R)
            errors_BR[index - first] = error_R
        left_CR[last:] -= upper_CC[first:last, last:].T @ errors_BR
    return IntegerMatrix(grid=grid, codes_RC=np.ascontiguousarray(codes_CR.T))


def inverse_factor(gram_CC: Floats, damping: float) -> Floats:
    """The upper triangular u with uᵀu = (gram + damping)⁻¹; a view.

    The lower factor l of the matrix turned by half a turn gives it without inverting the whole: turned back, l is the
    upper r with r rᵀ = gram, and u = r⁻¹. Columns without energy get the damping alone; where rounding leaves no
    positive matrix, the damping grows tenfold.
    """
    mean = float(gram_CC.diagonal().mean()) or 1.0
    while True:
        turned_CC = np.ascontiguousarray(gram_CC[::-1, ::-1])
        turned_CC[np.diag_indices_from(turned_CC)] += np.float32(damping * mean)
        inverse_CC = np.zeros_like(turned_CC)
        try:
            _invert_factor(turned_CC, inverse_CC)
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        return inverse_CC[::-1, ::-1]


def _invert_factor(matrix_CC: Floats, out_CC: Floats) -> None:
    """The inverse of a positive matrix's lower Cholesky factor, into a `out` of zeros; the matrix is used up.

    By halves, so that nearly all of it is matrix products.
    """
    columns = len(matrix_CC)
    if columns <= _LEAF:
        out_CC[:] = np.linalg.inv(np.linalg.cholesky(matrix_CC.astype(np.float64)))
        return
    half = columns // 2
    first, second = out_CC[:half, :half], out_CC[half:, half:]
    _invert_factor(matrix_CC[:half, :half], first)
    below = matrix_CC[half:, :half] @ first.T
    matrix_CC[half:, half:] -= below @ below.T
    _invert_factor(matrix_CC[half:, half:], second)
    np.matmul(second, below @ first, out=out_CC[half:, :half])
    np.negative(out_CC[half:, :half], out=out_CC[half:, :half])
