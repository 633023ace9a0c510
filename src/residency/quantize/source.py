"""Tensors of any checkpoint as float32, in the model's own order: rows as `transformers` has them, norms as they
multiply.
"""

import math

import numpy as np
import numpy.typing as npt

from residency.errors import FileError, UnsupportedError
from residency.formats import unpack_rows
from residency.spec.model import Rearrange, TensorSpec

_CHUNK_BYTES = 1 << 22  # of a file at a time

Floats = npt.NDArray[np.float32]


def read_values(tensor: TensorSpec) -> Floats:
    """All values. FileError if the file has become shorter."""
    rows = math.prod(tensor.shape[:-1])
    values = read_rows(tensor, 0, rows).reshape(tensor.shape)
    if tensor.rearrange is Rearrange.ADD_ONE:
        values += np.float32(1)
    if tensor.rearrange is Rearrange.UNPERMUTE_ROPE:
        return np.ascontiguousarray(values[rotary_order(tensor)])
    return values


def read_rows(tensor: TensorSpec, first: int, last: int) -> Floats:
    """Rows `first` to `last` as the file has them. UnsupportedError of a matrix that is quantized already."""
    if tensor.packed is not None:
        path = tensor.packed.parts[0].path
        raise UnsupportedError(f"{path} is quantized already; give the model that it was made from.")
    source = tensor.source
    assert source is not None, f"{tensor.name} was planned without a file"
    columns = tensor.shape[-1]
    row_bytes = source.format.bytes_of((columns,))
    step = max(1, _CHUNK_BYTES // row_bytes)
    values_RC = np.empty((last - first, columns), np.float32)
    with source.path.open("rb") as file:
        file.seek(source.offset + first * row_bytes)
        for start in range(first, last, step):
            wanted = min(step, last - start)
            data = file.read(wanted * row_bytes)
            if len(data) < wanted * row_bytes:
                raise FileError(f"{source.path} ends inside the tensor {source.name}; fetch the model again.")
            rows_RB = np.frombuffer(data, np.uint8).reshape(wanted, row_bytes)
            values_RC[start - first : start - first + wanted] = unpack_rows(source.format, rows_RB)
    return values_RC


def rotary_order(tensor: TensorSpec) -> npt.NDArray[np.int64]:
    """Which of the file's rows each row is, where GGUF holds (head, pair, axis) and models have (head, axis, pair)."""
    assert tensor.heads is not None
    return np.arange(tensor.shape[0]).reshape(tensor.heads, -1, 2).swapaxes(1, 2).ravel()
