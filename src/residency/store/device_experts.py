"""Experts that do not all fit into a device's memory: their homes in pinned RAM, their slots, and who is in which. Of
those that RAM has no room for, store/device_homes.py.

Steps bring what they need by themselves (see kernels/experts/gpu_paging.py). Between steps the ledger that the
processor's experts are kept by is told what was used, and says which slots the next step shall fill first.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from residency.errors import StoreError
from residency.kernels.device import DevicePaged
from residency.ledger.experts import ExpertSlots, LeastFrequent
from residency.spec.device_layout import ExpertsLayout
from residency.store.device_disk import LayerFiles
from residency.store.device_homes import DiskExperts
from residency.store.paging import PagingCounts
from residency.store.pinned import PinnedBytes

_WORD_BYTES = 8
_COPIED = 2  # what steps mark experts with that they have brought
_TOLD = ("expert_occupants", "experts_used", "experts_guessed", "experts_missed")


class AsideStream:
    """A second stream of the device, for copies: see kernels.device.Aside. In the interpreter all is in one order."""

    def __init__(self, device: str) -> None:
        self._stream: Any = None if device == "cpu" else torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._ended: Any = None

    @contextmanager
    def begun(self) -> Iterator[None]:
        """What is started inside comes after all that has been started, and beside what is started next."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
            self._ended = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ended.record()

    def join(self) -> None:
        """What is started from now on comes after it."""
        if self._ended is not None:
            torch.cuda.current_stream().wait_event(self._ended)
            self._ended = None


class DeviceExpertSlots:
    """The experts of a model, of which some are on the device. `tensors` and `inputs` are a step's: see
    planner.device_buffers.
    """

    def __init__(
        self,
        layout: ExpertsLayout,
        device: str,
        tensors: Mapping[str, torch.Tensor],
        inputs: Mapping[str, npt.NDArray[Any]],
        files: LayerFiles | None = None,
    ) -> None:
        """`files` are of layers' experts, for those on disk. MachineError where so much RAM cannot be pinned."""
        self.layout = layout
        self._tensors, self._order = tensors, inputs["expert_order"]
        self._row = {layer: row * layout.per_layer for row, layer in enumerate(layout.expert_bytes)}
        self._bytes_of_layer = np.array([layout.expert_bytes.get(layer, 0) for layer in range(layout.num_layers)])
        self._pinned = PinnedBytes(layout.host_bytes, device)
        self._homes = self._pinned.tensor.view(layout.homes, layout.slot_bytes)
        self._slots = torch.zeros((layout.slots, layout.slot_bytes), dtype=torch.uint8, device=device)
        self._aside = AsideStream(device)
        on_device = device != "cpu"
        self._counts = PagingCounts()
        self._told = {name: torch.zeros_like(tensors[name], device="cpu", pin_memory=on_device) for name in _TOLD}
        self._telling: Any = torch.cuda.Event() if on_device else None  # type: ignore[no-untyped-call]
        self._is_told = False  # whether there is something to be read, once it has arrived
        num_experts = layout.num_layers * layout.per_layer
        policy = LeastFrequent(num_experts)
        self._ledger = ExpertSlots(layout.slots, num_experts, policy)
        self._disk: DiskExperts | None = None
        if layout.disk_experts:
            assert files is not None, "experts on disk have files"
            self._disk = DiskExperts(layout, self._homes, files, policy, device)
        self._forget()

    def _forget(self) -> None:
        """Nobody is on the device."""
        for name in ("expert_places", "expert_occupants"):
            self._tensors[name].fill_(-1)

    def close(self) -> None:
        """Let the pinned RAM go; no step is under way any more."""
        if self._disk is not None:
            self._disk.close()
        self._pinned.close()

    def home(self, layer: int, expert: int) -> torch.Tensor:
        """Where an expert of a layer is kept, (bytes,); of those on the disk, where a layer is put together."""
        return self._homes[expert if self._disk else self._row[layer] + expert]

    def is_kept(self, layer: int) -> bool:
        """Whether the experts of a layer are on the disk already, so that they need not be put together."""
        return self._disk is not None and self._disk.has(layer)

    def keep(self, layer: int) -> None:
        """All experts of a layer are at home. StoreError where they belong on the disk and cannot be written."""
        if self._disk is not None:
            self._disk.keep(layer)

    @property
    def first_slot(self) -> torch.Tensor:
        """The bytes of a slot, from which kernels find the others."""
        return self._slots[0]

    def paged(self, layer: int) -> DevicePaged:
        """How steps get the experts of a layer."""
        earlier = [each for each in self._row if each < layer]
        homes, disk = self._homes, self._disk
        if disk is None:
            homes = homes[self._row[layer] : self._row[layer] + self.layout.per_layer]
        return DevicePaged(
            layer=layer,
            before=earlier[-1] if earlier else layer,
            first=layer * self.layout.per_layer,
            homes=homes.view(torch.int64),
            slots=self._slots.view(torch.int64),
            words=self.layout.expert_bytes[layer] // _WORD_BYTES,
            aside=self._aside,
            table=None if disk is None else disk.table(layer),
            read=None if disk is None else partial(self._read, disk, layer),
        )

    def arrange(self) -> None:
        """Before a step: say which slots it shall fill first, into its inputs. Counts what the last step has told, if
        that has arrived; waiting for it would hold up a prompt's next chunk.
        """
        if self._has_arrived:
            self._settle()
        order = self._ledger.order()
        self._order[:] = order[: len(self._order)]
        if self._disk is not None:
            self._disk.leave(self._ledger.staying(len(self._order)))

    def _read(self, disk: DiskExperts, layer: int, copies: torch.Tensor) -> None:
        try:
            disk.read(layer, copies)
        except StoreError:
            self._forget()  # slots were given to experts that will not come
            raise

    def begin(self) -> None:
        """A step begins; recorded with it."""
        for name in ("expert_turn", "experts_guessed", "experts_missed"):
            self._tensors[name].zero_()

    def tell(self) -> None:
        """After a step has been started: let it say afterwards what it used, and who is where."""
        if self._is_told:
            return
        for name, told in self._told.items():
            told.copy_(self._tensors[name], non_blocking=True)
        if self._telling is not None:
            self._telling.record()
        self._is_told = True

    @property
    def counts(self) -> PagingCounts:
        """What steps have needed whose results have been read back; of those that were followed before, nothing is
        known. Waits for nothing.
        """
        if self._has_arrived:
            self._settle()
        return self._counts

    @property
    def _has_arrived(self) -> bool:
        return self._is_told and (self._telling is None or bool(self._telling.query()))

    def _settle(self) -> None:
        """Let the ledger know what a step has told."""
        self._is_told = False
        occupants, used, guessed, missed = (told.numpy() for told in self._told.values())
        self._ledger.use(np.flatnonzero(used).tolist())
        self._ledger.end_step()
        self._ledger.follow(occupants)
        used_where_guessed = (used > 0) & guessed.any(axis=1, keepdims=True)
        copied_of_layer = (missed == _COPIED).sum(axis=1) + (guessed == _COPIED).sum(axis=1)
        self._counts = PagingCounts(
            needed=self._counts.needed + int((used > 0).sum()),
            missed=self._counts.missed + int((missed > 0).sum()),
            guessed=self._counts.guessed + int(used_where_guessed.sum()),
            guessed_right=self._counts.guessed_right + int(((used > 0) & (guessed > 0)).sum()),
            read_bytes=self._counts.read_bytes + int(copied_of_layer @ self._bytes_of_layer),
            disk_bytes=0 if self._disk is None else self._disk.read_bytes,
        )
