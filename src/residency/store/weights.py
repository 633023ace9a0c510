"""A model's weights, mapped from its store."""

import json
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.errors import StoreError
from residency.formats import unpack_rows
from residency.formats.tiles import TILE_ROWS, untile_rows
from residency.kernels.experts import Experts
from residency.kernels.matmul import Matrix
from residency.paths import cache_folder
from residency.planner.paging import Paging
from residency.planner.streaming import Streaming
from residency.spec.layout import store_layout
from residency.spec.model import ModelSpec, MoeSpec
from residency.store.convert import STORE_VERSION, Progress, convert
from residency.store.direct import file_identity
from residency.store.faults import Watch
from residency.store.paging import ExpertPager
from residency.store.residents import Residents

_EMBEDDED_TOGETHER = 32  # tokens: bounds what unpacking needs beside the result

FloatArray = npt.NDArray[np.float32]


def store_folder(fingerprint: str) -> Path:
    """Where the store of the checkpoint with this fingerprint is, or will be."""
    return cache_folder() / "stores" / f"{fingerprint[:32]}-v{STORE_VERSION}"


def ensure_store(model: ModelSpec, fingerprint: str, *, progress: Progress | None = None) -> Path:
    """The store's folder, converted first where it is missing or of the wrong length."""
    folder = store_folder(fingerprint)
    if not _is_whole(folder, store_layout(model).total_bytes):
        if folder.exists():
            _set_aside(folder)
        convert(model, folder, progress=progress)
    return folder


def _is_whole(folder: Path, total_bytes: int) -> bool:
    try:
        header = json.loads((folder / "store.json").read_text())
        kept = (header["store_version"], header["total_bytes"], (folder / "weights").stat().st_size)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return kept == (STORE_VERSION, total_bytes, total_bytes)


def _set_aside(folder: Path) -> None:
    """Give a damaged store a name that the next conversion removes."""
    folder.rename(folder.with_name(f"{folder.name}.0.part"))


class Weights:
    """The tensors of an open store, by the names of `transformers`. Matrices are views of the map: close it last.

    Resident tensors are mapped; an embedding that is not tied to the head is read row by row from the file. Where some
    stream, matrices are views of addresses alone, which hold nothing: `residents` knows where each span is. Where
    experts are paged, `pager` brings them.
    """

    def __init__(
        self,
        model: ModelSpec,
        folder: Path,
        streaming: Streaming | None = None,
        paging: Paging | None = None,
        *,
        loading: Progress | None = None,
    ) -> None:
        """StoreError where the store is missing, cut, or cannot be read."""
        self._model = model
        self._layout = store_layout(model)
        self._tensors = {tensor.name: tensor for tensor in model.tensors}
        try:
            self._file = (folder / "weights").open("rb")
        except OSError as error:
            raise StoreError(
                f"the store {folder} could not be opened: {error.strerror}; run again to convert."
            ) from error
        length = os.fstat(self._file.fileno()).st_size
        if length != self._layout.total_bytes:
            self._file.close()
            raise StoreError(f"the store {folder} is {self._layout.total_bytes - length} bytes short; delete it.")
        self._path, self._identity = folder / "weights", file_identity(self._file.fileno())
        self._watch: Watch | None = None
        self.residents: Residents | None = None
        self.pager: ExpertPager | None = None
        self.num_bytes = self._layout.resident_bytes if paging is None else self._layout.experts_offset  # of the map
        if streaming is None:
            self._map = mmap.mmap(self._file.fileno(), self.num_bytes, prot=mmap.PROT_READ)
            self._map.madvise(mmap.MADV_WILLNEED)
        else:
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # of the embedding, a row here and there
            self._map = mmap.mmap(-1, self.num_bytes, prot=mmap.PROT_READ)
        try:
            if streaming is not None:
                self.residents = Residents(model, folder / "weights", streaming, loading)
            if paging is not None:
                self.pager = ExpertPager(model, folder / "weights", paging)
        except StoreError:
            if self.residents is not None:
                self.residents.close()
            self._file.close()
            raise
        self._bytes: npt.NDArray[Any] = np.frombuffer(self._map, np.uint8)

    def __enter__(self) -> "Weights":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the map back once no view of it is left, and close the file."""
        for part in (self.residents, self.pager, self._watch):
            if part is not None:
                part.close()
        del self._bytes
        try:
            self._map.close()
        except BufferError:
            pass  # a matrix is still referred to; the map goes with it
        self._file.close()

    def watch(self) -> None:
        """Let a step that cannot read the map end as any other: `check` then tells. Links the kernel faults.HANDLER."""
        if self.residents is None:
            self._watch = Watch(self.address, self.num_bytes)

    def check(self) -> None:
        """StoreError where the mapped store is not what it was, or could not be read: what was computed since is worth
        nothing.
        """
        if self._watch is None:
            return
        if file_identity(self._file.fileno()) != self._identity:
            raise StoreError(f"{self._path} was changed while the model ran; start again.")
        if self._watch.faults:
            raise StoreError(f"the disk failed to read {self._path}; check it, or move the cache folder.")

    @property
    def in_memory(self) -> tuple[tuple[int, int], ...]:
        """Addresses and bytes of the memory that holds weights."""
        slots = () if self.pager is None else (self.pager.in_memory,)
        unrouted = ((self.address, self.num_bytes),) if self.residents is None else self.residents.in_memory
        return *unrouted, *slots

    def offset_of(self, name: str) -> int:
        """Where a tensor begins in the store, and in the map."""
        return self._layout.by_name[name].offset

    @property
    def address(self) -> int:
        """Where the map begins."""
        return int(self._bytes.ctypes.data)

    def matrix(self, name: str) -> Matrix:
        """A resident matrix."""
        tensor = self._tensors[name]
        rows, columns = tensor.shape
        order = None if tensor.packed is None else tensor.packed.order
        return Matrix(
            format=tensor.format,
            rows=rows,
            columns=columns,
            tiles=self._view(name),
            order=None if order is None else self._view(order).view(np.int32),
        )

    def vector(self, name: str) -> FloatArray:
        """A norm's weights or a bias, as float32."""
        return self._view(name).view(np.float32)

    def experts(self, index: int) -> Experts:
        """The experts of a layer that is a mixture: all of them mapped, or paged."""
        layer = self._model.layers[index]
        assert isinstance(layer.mlp, MoeSpec)
        gate, up, down = (self._layout.by_name[tensor.name] for tensor in layer.experts)
        first = self.address + gate.offset
        mapped = Experts(
            spec=layer.mlp,
            gate_format=layer.experts[0].format,
            down_format=layer.experts[2].format,
            up_at=up.offset - gate.offset,
            down_at=down.offset - gate.offset,
            addresses=first + gate.stride_bytes * np.arange(layer.mlp.num_experts, dtype=np.int64),
        )
        return mapped if self.pager is None else self.pager.paged(index, mapped)

    def has(self, name: str) -> bool:
        """Whether the model has such a tensor."""
        return name in self._tensors

    @property
    def head(self) -> Matrix:
        """The matrix that makes logits: the output head, or the embedding tied to it."""
        tensor = self._model.head or self._model.embedding
        return self.matrix(tensor.name)

    def embed(self, tokens: npt.NDArray[np.int64], out: FloatArray) -> None:
        """The embeddings of `tokens` (n,) into out (n, hidden), scaled as the model asks, from the file: only the rows
        asked for are read, or the tiles of a matrix that is also the head. Tokens must be in range.
        """
        tensor = self._model.embedding
        row_bytes = tensor.format.bytes_of(tensor.shape[1:])
        together = TILE_ROWS if self._model.tied else 1
        read_bytes = together * row_bytes
        start = self._layout.by_name[tensor.name].offset
        read_NB = np.empty((min(len(tokens), _EMBEDDED_TOGETHER), read_bytes), np.uint8)
        for first in range(0, len(tokens), _EMBEDDED_TOGETHER):
            part = tokens[first : first + _EMBEDDED_TOGETHER]
            for into, number in zip(read_NB, (part // together).tolist(), strict=False):
                if os.preadv(self._file.fileno(), [into.data], start + number * read_bytes) != read_bytes:
                    raise StoreError("the store's embedding could not be read; delete the store and run again.")
            rows = read_NB[: len(part)]
            if self._model.tied:
                rows = untile_rows(tensor.format, rows, np.arange(len(part)) * TILE_ROWS + part % TILE_ROWS)
            out[first : first + len(part)] = unpack_rows(tensor.format, rows)
        if self._model.embedding_scale != 1.0:
            out *= np.float32(self._model.embedding_scale)

    def _view(self, name: str) -> npt.NDArray[np.uint8]:
        entry = self._layout.by_name[name]
        return self._bytes[entry.offset : entry.offset + entry.num_bytes]
