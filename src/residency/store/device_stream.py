"""Layers that do not fit into a device's memory: kept in pinned RAM, copied to a slot while others are computed.

(Y. Sheng et al.: FlexGen, 2023, overlaps the load of the next layer with the computation of one in the same way.) What
RAM has no room for either is read from the disk before, ahead of the steps that need it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from residency.spec.device_layout import SLOTS, DeviceLayout
from residency.store.device_disk import LayerFiles, LayerReads
from residency.store.pinned import PinnedBytes


class StreamedLayers:
    """The streamed layers of a layout, in the order of a forward pass, on a few slots in turn."""

    def __init__(self, layout: DeviceLayout, device: str, files: LayerFiles | None = None) -> None:
        """`files` are of the layers on disk."""
        self._order = {layer: place for place, layer in enumerate(layout.streamed_layers)}
        self._layers = layout.streamed_layers
        self._on_disk = frozenset(layout.disk_layers)
        self._files = files
        on_device = device != "cpu"
        num_held = len(self._layers) - len(self._on_disk) + layout.disk_buffers
        self._pinned = PinnedBytes(num_held * layout.layer_bytes, device)
        held: list[torch.Tensor] = list(self._pinned.tensor.view(num_held, -1)) if num_held else []
        in_ram = [layer for layer in self._layers if layer not in self._on_disk]
        self._homes = dict(zip(in_ram, held, strict=False))
        self._buffers = held[len(in_ram) :]  # that layers on disk come through
        self._reads: LayerReads | None = None
        slots = min(SLOTS, len(self._order))
        self._slots = [torch.zeros(layout.layer_bytes, dtype=torch.uint8, device=device) for _ in range(slots)]
        self._stream: Any = torch.cuda.Stream() if on_device and slots else None  # type: ignore[no-untyped-call]
        self._arrived: list[Any] = [None] * len(self._order)
        self._entered = -1  # place of the layer that was last asked for in this step
        self._started = len(self._order)  # layers whose copies have been started in this step
        self._copies = True

    def close(self) -> None:
        """End the reads and let the RAM go."""
        if self._reads is not None:
            self._reads.close()
        self._pinned.close()

    def home(self, layer: int) -> torch.Tensor:
        """Where the bytes of a layer are kept; of one on disk, where they are put together before `keep`."""
        return self._buffers[0] if layer in self._on_disk else self._homes[layer]

    def is_kept(self, layer: int | None) -> bool:
        """Whether a layer is on disk already, so that it need not be put together."""
        return layer in self._on_disk and self._files is not None and self._files.has(layer)

    def keep(self, layer: int, home: torch.Tensor) -> None:
        """A layer is what lies in `home`. StoreError where it belongs on the disk and cannot be written."""
        if layer not in self._on_disk:
            if home is not self._homes[layer]:
                self._homes[layer].copy_(home)
            return
        assert self._files is not None, "layers on disk have files"
        self._files.write(layer, _bytes_of(home))

    def stored(self, layer: int, offset: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Some bytes of a layer on disk."""
        assert self._files is not None, "layers on disk have files"
        return self._files.part(layer, offset, num_bytes)

    def begin(self, *, copies: bool) -> None:
        """Start a step: with `copies`, those of the first layers, one to each slot, after whatever is under way."""
        if self._reads is None and self._on_disk:
            assert self._files is not None, "layers on disk have files"
            views = [_bytes_of(buffer) for buffer in self._buffers]
            self._reads = LayerReads(self._files, sorted(self._on_disk), views)
        if self._copies:
            self._copy_up_to(len(self._layers), waits=True)  # what a step that was given up has left
        self._entered, self._copies, self._started = -1, copies, 0
        self._copy_up_to(len(self._slots), waits=False)

    def slot(self, layer: int) -> torch.Tensor:
        """Where kernels that are started from now on find a layer; layers are asked for in order."""
        place = self._order[layer]
        if place != self._entered:
            assert place == self._entered + 1, "layers are streamed in the order of the model"
            self._enter(place)
        self._copy_up_to(place + len(self._slots), waits=False)
        return self._slots[place % len(self._slots)]

    def _enter(self, place: int) -> None:
        """Every reader of the layer before has been started, so that its slot can be filled after them."""
        self._copy_up_to(place + 1, waits=True)
        if self._copies and self._stream is not None:
            torch.cuda.current_stream().wait_event(self._arrived[place])
        self._entered = place

    def _copy_up_to(self, end: int, *, waits: bool) -> None:
        """Start the copies of the layers before `end`. Unless it `waits` for the disk, the first that is not in RAM yet
        and those after it are left for later.
        """
        while self._copies and self._started < min(end, len(self._layers)):
            layer = self._layers[self._started]
            if not waits and layer in self._on_disk and self._reads is not None and not self._reads.has_next:
                return
            if layer in self._on_disk:
                assert self._reads is not None, "a step has begun"
                self._copy(self._started, self._buffers[self._reads.take()])
                self._reads.give_back(self._arrived[self._started])
            else:
                self._copy(self._started, self._homes[layer])
            self._started += 1

    def _copy(self, place: int, home: torch.Tensor) -> None:
        slot = self._slots[place % len(self._slots)]
        if self._stream is None:
            slot.copy_(home)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            slot.copy_(home, non_blocking=True)
            self._arrived[place] = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._arrived[place].record()


def _bytes_of(held: torch.Tensor) -> memoryview:
    values: npt.NDArray[np.uint8] = held.numpy()
    return values.data
