"""Layers that do not fit into a device's memory: kept in pinned RAM, copied to a slot while others are computed.

(Y. Sheng et al.: FlexGen, 2023, overlaps the load of the next layer with the computation of one in the same way.)
"""

from typing import Any

import torch

from residency.spec.device_layout import SLOTS, DeviceLayout
from residency.store.pinned import PinnedBytes


class StreamedLayers:
    """The streamed layers of a layout, in the order of a forward pass, on a few slots in turn."""

    def __init__(self, layout: DeviceLayout, device: str) -> None:
        self._order = {layer: place for place, layer in enumerate(layout.streamed_layers)}
        on_device = device != "cpu"
        self._pinned = PinnedBytes(layout.host_bytes, device)
        self._homes: list[torch.Tensor] = list(self._pinned.tensor.view(len(self._order), -1)) if self._order else []
        slots = min(SLOTS, len(self._order))
        self._slots = [torch.zeros(layout.layer_bytes, dtype=torch.uint8, device=device) for _ in range(slots)]
        self._stream: Any = torch.cuda.Stream() if on_device and slots else None  # type: ignore[no-untyped-call]
        self._arrived: list[Any] = [None] * len(self._order)
        self._entered = -1  # place of the layer that was last asked for in this step
        self._copies = True

    def close(self) -> None:
        """Let the RAM go."""
        self._pinned.close()

    def home(self, layer: int) -> torch.Tensor:
        """Where the bytes of a layer are kept."""
        return self._homes[self._order[layer]]

    def begin(self, *, copies: bool) -> None:
        """Start a step: with `copies`, those of the first layers, one to each slot, after whatever is under way."""
        self._entered, self._copies = -1, copies
        for place in range(len(self._slots)):
            self._copy(place)

    def slot(self, layer: int) -> torch.Tensor:
        """Where kernels that are started from now on find a layer; layers are asked for in order."""
        place = self._order[layer]
        if place != self._entered:
            assert place == self._entered + 1, "layers are streamed in the order of the model"
            self._enter(place)
        return self._slots[place % len(self._slots)]

    def _enter(self, place: int) -> None:
        """Every reader of the layer before has been started, so that its slot can be filled after them."""
        following = place - 1 + len(self._slots)
        if place > 0 and following < len(self._homes):
            self._copy(following)
        if self._copies and self._stream is not None:
            torch.cuda.current_stream().wait_event(self._arrived[place])
        self._entered = place

    def _copy(self, place: int) -> None:
        if not self._copies:
            return
        slot, home = self._slots[place % len(self._slots)], self._homes[place]
        if self._stream is None:
            slot.copy_(home)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            slot.copy_(home, non_blocking=True)
            self._arrived[place] = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived[place].record()
