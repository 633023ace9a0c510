"""Convert a checkpoint once into the kernels' layout: tiled matrices, float32 vectors, layer after layer.

A store is a folder: `weights`, laid out as spec.layout says, and `store.json`, written last. It is made under another
name and renamed when complete, so that a store is whole or absent.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from residency.errors import FileError, StoreError
from residency.formats import I32, unpack_rows
from residency.formats.tiles import TILE_ROWS, tile_rows
from residency.spec.layout import StoreLayout, store_layout
from residency.spec.model import ModelSpec, Rearrange, SourceTensor, TensorSpec
from residency.store.packed import PackedRows, column_order
from residency.units import binary_bytes

STORE_VERSION = 1
_CHUNK_BYTES = 1 << 20  # of source at a time: a conversion's memory is a few times this

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Bytes = npt.NDArray[np.uint8]


def convert(model: ModelSpec, folder: Path, *, progress: Progress | None = None) -> None:
    """Write the store of `model`, whose tensors all have sources, as `folder`.

    FileError if a source is shorter than it was; StoreError if the disk is full or refuses. Nothing is left behind.
    """
    layout = store_layout(model)
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        require_space(scratch.parent, layout.total_bytes)
        scratch.mkdir()
        _write_tensors(model, layout, scratch / "weights", progress)
        header = {"store_version": STORE_VERSION, "model": model.name, "total_bytes": layout.total_bytes}
        (scratch / "store.json").write_text(json.dumps(header) + "\n")
        _publish(scratch, folder)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else f"{error.strerror}"
        raise StoreError(
            f"{model.name} could not be converted into {folder.parent}: {reason}; it needs "
            f"{binary_bytes(layout.total_bytes)} there. Free that much, or set RESIDENCY_CACHE to another disk."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, folder: Path) -> None:
    """Rename; where somebody else was faster, theirs is as good."""
    try:
        scratch.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed conversions left."""
    for part in parent.glob("*.part"):
        pid = part.name.split(".")[-2]
        if pid.isdigit() and int(pid) != os.getpid() and not _is_running(int(pid)):
            shutil.rmtree(part, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if pid == 0:  # a damaged store that was set aside; to the system, 0 would be this process's group
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def require_space(folder: Path, needed_bytes: int) -> None:
    """StoreError where the folder's disk has not so many bytes free."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise StoreError(
            f"the model's store needs {binary_bytes(needed_bytes)} in {folder} and {binary_bytes(free_bytes)} are "
            f"free, {binary_bytes(needed_bytes - free_bytes)} too little. Free that much, or set RESIDENCY_CACHE to "
            "another disk."
        )


def _write_tensors(model: ModelSpec, layout: StoreLayout, path: Path, progress: Progress | None) -> None:
    done_bytes = 0
    with path.open("wb") as out:
        out.truncate(layout.total_bytes)
        for tensor in model.tensors:
            entry = layout.by_name[tensor.name]
            as_rows = tensor is model.embedding and not model.tied
            for number, copy in enumerate(tensor.each_copy):
                out.seek(entry.offset + number * entry.stride_bytes)
                for chunk in stored_chunks(copy, as_rows):
                    out.write(chunk.data)
                    done_bytes += chunk.nbytes
                    if progress:
                        progress(done_bytes, layout.total_bytes)
        out.flush()
        os.fsync(out.fileno())


def stored_chunks(tensor: TensorSpec, as_rows: bool) -> Iterator[Bytes]:
    """The tensor's bytes in order, as the store holds them, or `as_rows` of its own format; vectors as float32."""
    if len(tensor.shape) == 1:
        yield _vector(tensor).view(np.uint8)
        return
    row_bytes = tensor.format.bytes_of(tensor.shape[1:])
    rows_of = _rows(tensor, row_bytes)
    step = max(TILE_ROWS, _CHUNK_BYTES // row_bytes // TILE_ROWS * TILE_ROWS)
    for first in range(0, tensor.shape[0], step):
        rows = rows_of(first, min(first + step, tensor.shape[0]))
        yield np.ascontiguousarray(rows if as_rows else tile_rows(tensor.format, rows))


def _rows(tensor: TensorSpec, row_bytes: int) -> Callable[[int, int], Bytes]:
    """What gives the rows from one number to another, in the format's own layout."""
    if tensor.packed is not None:
        return PackedRows(tensor).rows
    source = _source(tensor)
    order = _row_order(tensor)
    if order is None:
        return lambda first, last: _read(source, first, last, row_bytes)
    whole = _read(source, 0, tensor.shape[0], row_bytes)[order]
    return lambda first, last: whole[first:last]


def _source(tensor: TensorSpec) -> SourceTensor:
    assert tensor.source is not None, f"{tensor.name} was planned without a file"
    return tensor.source


def _vector(tensor: TensorSpec) -> npt.NDArray[np.float32] | npt.NDArray[np.int32]:
    """A norm's weights or a bias as float32; an order of columns as int32."""
    source = _source(tensor)
    if tensor.format == I32:
        return column_order(source)
    (values,) = unpack_rows(tensor.format, _read(source, 0, 1, tensor.num_bytes))
    order = _row_order(tensor)
    if tensor.rearrange is Rearrange.ADD_ONE:
        values = values + np.float32(1.0)
    return np.ascontiguousarray(values if order is None else values[order])


def _row_order(tensor: TensorSpec) -> npt.NDArray[np.int64] | None:
    """Which source row each row is. GGUF's llama files hold (head, pair, axis); here it is (head, axis, pair)."""
    if tensor.rearrange is not Rearrange.UNPERMUTE_ROPE:
        return None
    assert tensor.heads is not None
    return np.arange(tensor.shape[0]).reshape(tensor.heads, -1, 2).swapaxes(1, 2).ravel()


def _read(source: SourceTensor, first: int, last: int, row_bytes: int) -> Bytes:
    with source.path.open("rb") as file:
        file.seek(source.offset + first * row_bytes)
        content = file.read((last - first) * row_bytes)
    if len(content) != (last - first) * row_bytes:
        missing = (last - first) * row_bytes - len(content)
        raise FileError(f"{source.path} ends {missing} bytes inside the tensor {source.name}; fetch the model again.")
    return np.frombuffer(content, np.uint8).reshape(last - first, row_bytes)
