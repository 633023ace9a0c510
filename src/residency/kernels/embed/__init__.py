"""The embeddings of the step's tokens, from a matrix that is also the output head."""

from residency.kernels.device import DeviceMatrix, DeviceStep, on_device
from residency.kernels.matmul import Matrix
from residency.kernels.recorder import FloatArray, Recorder, address_of, row_bytes


def embed(step: Recorder, matrix: Matrix | DeviceMatrix, factor: float, out: FloatArray) -> None:
    """out (tokens, columns) = the matrix' rows of the tokens in the buffer "token_ids", times `factor`.

    Token numbers must be below the matrix' rows: nothing checks them here.
    """
    if isinstance(step, DeviceStep):
        on_device("embed").embed(step, matrix, factor, out)
        return
    assert isinstance(matrix, Matrix)
    assert matrix.columns % 32 == 0, "rows are dealt out in groups of 32 columns"
    step.launch(
        f"embed.{matrix.format.name}",
        tokens=address_of(step.buffers["token_ids"]),
        weights=address_of(matrix.tiles),
        columns=matrix.columns,
        factor=factor,
        out=address_of(out),
        out_stride=row_bytes(out),
        tokens_at=step.inputs.num_tokens,
    )
