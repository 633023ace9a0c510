"""Layers of a device's model that RAM has no room for: a file each, as it lies in a slot, read ahead into pinned RAM;
and of layers whose experts alone are on the disk, these.

A file is written once, when a plan first needs it, under another name until it is whole.
"""

import errno
import hashlib
import os
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.errors import StoreError
from residency.paths import cache_folder
from residency.planner.streaming import READERS
from residency.spec.model import ModelSpec
from residency.store.convert import require_space
from residency.store.direct import DirectFile
from residency.store.stream import Range, Stream
from residency.units import binary_bytes

_VERSION = 1


def layer_folder(*what: str) -> Path:
    """Where the layers of a model are that is told from others by `what`: fingerprint, types."""
    digest = hashlib.sha256("\n".join((*what, str(_VERSION))).encode()).hexdigest()
    return cache_folder() / "stores" / f"{digest[:32]}-layers"


class LayerFiles:
    """The files of layers, by the numbers of the layers; layers that are alike may share one."""

    @staticmethod
    def of(
        model: ModelSpec, layers: Iterable[int], what: str, folder: Path, layer_bytes: int, *, made_up: bool
    ) -> "LayerFiles":
        """Of `what` of these layers, one for those that are alike where they are `made_up`."""
        first = {layer.likeness: index for index, layer in reversed(list(enumerate(model.layers)))}
        names = {layer: f"{what}-{first[model.layers[layer].likeness] if made_up else layer}" for layer in layers}
        return LayerFiles(folder, names, layer_bytes)

    def __init__(self, folder: Path, names: Mapping[int, str], layer_bytes: int) -> None:
        self._folder, self._names, self._layer_bytes = folder, names, layer_bytes

    def has(self, layer: int) -> bool:
        """Whether the layer's file is there, and whole."""
        path = self._path(layer)
        return path.is_file() and path.stat().st_size == self._layer_bytes

    def write(self, layer: int, content: memoryview) -> None:
        """Write a layer's file, unless it is there. StoreError where the disk is full or refuses."""
        if self.has(layer):
            return
        path = self._path(layer)
        scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            require_space(self._folder, len(content))
            with scratch.open("wb") as file:
                file.write(content)
                os.fsync(file.fileno())
            scratch.rename(path)
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else f"{error.strerror}"
            raise StoreError(
                f"a layer of {binary_bytes(len(content))} could not be written to {self._folder}: {reason}; free more "
                "there, set RESIDENCY_CACHE to another disk, or give the device more --memory."
            ) from error
        finally:
            scratch.unlink(missing_ok=True)

    def part(self, layer: int, offset: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Some bytes of a layer."""
        return np.fromfile(self._path(layer), np.uint8, num_bytes, offset=offset)

    def open(self, layer: int) -> DirectFile:
        """A layer's file, to be read. StoreError where it is missing."""
        return DirectFile(self._path(layer))

    def _path(self, layer: int) -> Path:
        return self._folder / self._names[layer]


class LayerReads:
    """Reads of layers in turn into buffers of pinned RAM, step after step. Close it after the last step."""

    def __init__(self, files: LayerFiles, layers: Sequence[int], buffers: Sequence[memoryview]) -> None:
        """StoreError where a file is missing."""
        layer_bytes = len(buffers[0])
        with ExitStack() as opened:
            sources = [opened.enter_context(files.open(layer)) for layer in layers]

            def read(into: memoryview, offset: int) -> None:
                number, start = divmod(offset, layer_bytes)
                sources[number].read(into, start)

            cycle = [Range(offset=number * layer_bytes, num_bytes=layer_bytes) for number in range(len(layers))]
            self._stream = opened.enter_context(Stream(read, cycle, buffers, readers=READERS))
            self._copied: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._thread = threading.Thread(target=self._give_back, name="residency-copied", daemon=True)
            self._thread.start()
            opened.callback(self._end_thread)
            self._opened = opened.pop_all()
        self._num_buffers = len(buffers)
        self._taken = 0

    def close(self) -> None:
        """End the threads and close the files."""
        self._opened.close()

    @property
    def has_next(self) -> bool:
        """Whether the next layer is in its buffer, or never will be."""
        return self._stream.num_arrived > self._taken

    def take(self) -> int:
        """The buffer of the next layer, once it is there. StoreError where it could not be read."""
        self._stream.wait(self._taken)
        buffer, self._taken = self._taken % self._num_buffers, self._taken + 1
        return buffer

    def give_back(self, copied: Any) -> None:
        """The buffer that was taken first, and not given back yet, may be filled anew once the event `copied`, if any,
        has come.
        """
        self._copied.put(copied or True)

    def _give_back(self) -> None:
        while copied := self._copied.get():
            if copied is not True:
                copied.synchronize()
            self._stream.release()

    def _end_thread(self) -> None:
        self._copied.put(None)
        self._thread.join()
