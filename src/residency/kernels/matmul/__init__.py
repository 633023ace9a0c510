"""Matrix products: rows of activations times a matrix in its own format."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.formats import Format
from residency.kernels.device import DeviceStep, on_device
from residency.kernels.order import in_order
from residency.kernels.recorder import FloatArray, Recorder, Rows, address_of, row_bytes

_FLOAT_BLOCK_COLUMNS = 4
_IN_INTEGERS = ("Q4_K", "Q5_K", "Q6_K")  # a block's products are added up with their scales as integers
_SHARE_BYTES = 1 << 16  # of a matrix that one thread may take over from another: some microseconds of reading


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix (rows, columns) in tiles of 16 rows; see residency.formats.tiles."""

    format: Format
    rows: int
    columns: int
    tiles: npt.NDArray[np.uint8]
    order: npt.NDArray[np.int32] | None = None  # which of x's columns each one multiplies, where not its own

    @property
    def blocks(self) -> int:
        """Blocks along the columns of a tile."""
        return self.columns // (_FLOAT_BLOCK_COLUMNS if self.format.is_float else self.format.block_values)


def groups_together(number_format: Format) -> int:
    """How many of x's groups of 32 columns must share a scale to be multiplied by a matrix in this format."""
    return number_format.block_values // 32 if number_format.name in _IN_INTEGERS else 1


def linear(
    step: Recorder,
    x: Rows,
    matrix: Matrix,
    out: FloatArray,
    *,
    bias: FloatArray | None = None,
    accumulate: bool = False,
    of_logits: bool = False,
    but_prompts: bool = False,
    meet: bool = True,
) -> FloatArray:
    """out = x · matrixᵀ (+ bias) (+ out, where `accumulate`), for the step's tokens or its logits' rows.

    With `but_prompts` prompts' rows are left out. x (tokens, columns), out (tokens, rows rounded up to 16). Formats in
    blocks multiply the packed rows of x.
    """
    if isinstance(step, DeviceStep):
        product: FloatArray = on_device("matmul").linear(
            step, x, matrix, out, bias=bias, accumulate=accumulate, of_logits=of_logits
        )
        return product
    assert x.values.shape[1] >= matrix.columns, (x.values.shape, matrix.columns)
    assert out.shape[1] * 4 >= -(-matrix.rows // 16) * 64, "each tile of 16 rows is stored whole"
    if matrix.order is not None:
        x = in_order(step, x, matrix.order)
    source: FloatArray | npt.NDArray[np.uint8] = (
        x.as_values() if matrix.format.is_float else x.as_q8(groups_together(matrix.format))
    )
    step.launch(
        f"matmul.{matrix.format.name}",
        meet=meet,
        shares=max(1, matrix.tiles.nbytes // _SHARE_BYTES),
        weights=address_of(matrix.tiles),
        x=address_of(source),
        x_stride=row_bytes(source),
        out=address_of(out),
        out_stride=row_bytes(out),
        bias=0 if bias is None else address_of(bias),
        accumulate=accumulate,
        tiles=-(-matrix.rows // 16),
        blocks=matrix.blocks,
        int8_at=step.inputs.num_logits if of_logits else step.inputs.num_int8,
        tokens_at=step.inputs.num_logits
        if of_logits
        else step.inputs.num_int8
        if but_prompts
        else step.inputs.num_tokens,
    )
    return out
