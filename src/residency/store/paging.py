"""Experts in slots of memory: those that a step asks for are read, and those that a router guesses, ahead of it.

A step looks its experts up in a table of addresses and waits where one is 0 (see kernels/experts). One thread here
answers. It takes an expert out of the table before it reads another over it, and then makes sure that no step is at
that expert's layer: a step says where it is before it looks.
"""

import os
import threading
from collections.abc import Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from residency.errors import StoreError
from residency.kernels.experts import Experts, Paged
from residency.ledger.experts import ExpertSlots, LeastFrequent, Policy
from residency.planner.paging import READERS, Paging
from residency.spec.layout import store_layout
from residency.spec.model import ModelSpec
from residency.store.arena import Arena
from residency.store.direct import BLOCK_BYTES, DirectFile
from residency.store.stream import Range

_LAYER, _ASKED, _FAILED = 0, 8, 16  # words of the board


@dataclass(frozen=True, kw_only=True)
class PagingCounts:
    """What steps have needed so far, each expert once for each step and layer."""

    needed: int = 0
    missed: int = 0  # not there when a step asked
    guessed: int = 0  # experts that the router of the layer before was asked about
    guessed_right: int = 0
    read_bytes: int = 0  # from the disk, or by a device from RAM, on suspicion too
    disk_bytes: int = 0  # on a device: from the disk to RAM

    @property
    def hit_rate(self) -> float:
        """The share that was there."""
        return 1.0 - self.missed / max(1, self.needed)

    @property
    def guess_rate(self) -> float:
        """Of what was needed where somebody guessed, the share that was guessed."""
        return self.guessed_right / max(1, self.guessed)

    def since(self, before: "PagingCounts") -> "PagingCounts":
        """What has come to it since."""
        return PagingCounts(**{name: value - getattr(before, name) for name, value in vars(self).items()})


def expert_ranges(model: ModelSpec) -> dict[int, Range]:
    """Where each expert lies in the store, by its number: that of its layer times the most experts of a layer, and its
    number there.
    """
    layout, per_layer = store_layout(model), _per_layer(model)
    entries = {
        index: layout.by_name[layer.experts[0].name] for index, layer in enumerate(model.layers) if layer.experts
    }
    return {
        index * per_layer + number: Range(
            offset=entry.offset + number * entry.stride_bytes, num_bytes=entry.stride_bytes
        )
        for index, entry in entries.items()
        for number in range(model.layers[index].experts[0].copies)
    }


def _per_layer(model: ModelSpec) -> int:
    return max(layer.experts[0].copies for layer in model.layers if layer.experts)


class ExpertPager:
    """The experts of a model, of which some are in memory. Close it after the last step."""

    def __init__(self, model: ModelSpec, path: Path, paging: Paging, policy: Policy | None = None) -> None:
        """StoreError where the store cannot be opened."""
        self._layers = [index for index, layer in enumerate(model.layers) if layer.experts]
        self._per_layer = _per_layer(model)
        self._paging = paging
        self._places = expert_ranges(model)
        num_experts = len(model.layers) * self._per_layer
        self._table = np.zeros(num_experts, np.int64)
        self._guessed = np.zeros((len(model.layers), self._per_layer), np.int32)
        self._used = np.zeros((len(model.layers), self._per_layer), np.int32)
        self._board = np.zeros(24, np.int64)
        self._slots = ExpertSlots(paging.slots, num_experts, policy or LeastFrequent(num_experts))
        self._answered = 0  # how often a step has asked and been answered
        self._counted: set[int] = set()  # layers of this step whose uses have been counted
        self._missed = 0
        self.counts = PagingCounts()
        self._read_bytes = 0  # from the disk, so far
        self._changing, self._order = threading.Lock(), threading.Lock()
        self._failure: Exception | None = None
        self._closing = False
        with ExitStack() as opened:
            self._arena = Arena(paging.memory_bytes)
            opened.callback(self._arena.close)
            self._source = opened.enter_context(DirectFile(path))
            self._bell = os.eventfd(0, os.EFD_CLOEXEC)
            opened.callback(os.close, self._bell)
            self._readers = opened.enter_context(ThreadPoolExecutor(READERS, "residency-experts"))
            self._thread = threading.Thread(target=self._serve, name="residency-pager", daemon=True)
            self._thread.start()
            opened.callback(self._end_thread)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End the threads and give the memory back."""
        self._opened.close()

    @property
    def in_memory(self) -> tuple[int, int]:
        """Address and bytes of the slots."""
        return self._arena.address, self._arena.num_bytes

    def paged(self, layer: int, experts: Experts) -> Experts:
        """The experts of a layer, as a step finds those that are in memory and asks for the others."""
        first = layer * self._per_layer
        table = self._table[first : first + experts.spec.num_experts]
        paged = Paged(
            layer=layer,
            board=self._board,
            bell=self._bell,
            guessed=self._guessed[layer],
            found=np.zeros_like(table),
        )
        return replace(experts, addresses=table, paged=paged)

    def watch(self, used: npt.NDArray[np.int32]) -> None:
        """`used` (layers, experts) is where steps write how many rows each expert gets."""
        self._used = used

    def begin(self) -> None:
        """A step begins. StoreError where reading has failed."""
        self._check()
        self._used[:] = 0
        self._guessed[:] = 0

    def end(self) -> None:
        """A step is over. StoreError where reading has failed: then its results are worth nothing."""
        self._check()
        with self._changing:
            for layer in self._layers:
                self._count(layer)
            self._counted.clear()
            self._slots.end_step()
            used, guessed = self._used > 0, self._guessed > 0
            used_where_guessed = used & guessed.any(axis=1, keepdims=True)
            self.counts = PagingCounts(
                needed=self.counts.needed + int(used.sum()),
                missed=self.counts.missed + self._missed,
                guessed=self.counts.guessed + int(used_where_guessed.sum()),
                guessed_right=self.counts.guessed_right + int((used & guessed).sum()),
                read_bytes=self._read_bytes,
            )
            self._missed = 0

    def _check(self) -> None:
        if self._failure is not None:
            if isinstance(self._failure, StoreError):
                raise StoreError(str(self._failure)) from self._failure
            raise StoreError(f"experts could not be read: {self._failure}; start again.") from self._failure

    def _count(self, layer: int) -> list[int]:
        """Count the uses of a layer, once a step; returns the experts that are missing."""
        used = self._numbers(layer, self._used)
        if layer in self._counted:
            return [expert for expert in used if expert not in self._slots]
        self._counted.add(layer)
        return self._slots.use(used)

    def _numbers(self, layer: int, marks: npt.NDArray[np.int32]) -> list[int]:
        """The experts of a layer that are marked now: a step may be marking others, and NumPy looks twice."""
        first = layer * self._per_layer
        return [first + int(number) for number in np.flatnonzero(marks[layer].copy())]

    # -- the thread that answers

    def _serve(self) -> None:
        try:
            while True:
                os.eventfd_read(self._bell)
                if self._closing:
                    return
                while self._is_asked:
                    self._answered = int(self._board[_ASKED])
                    self._bring_asked(int(self._board[_LAYER]))
                self._bring_guessed(int(self._board[_LAYER]))
        except Exception as error:  # whatever it is, a step that waits must end
            self._failure = error
            self._table[self._table == 0] = self._arena.address
            self._board[_FAILED] = 1

    def _end_thread(self) -> None:
        self._closing = True
        os.eventfd_write(self._bell, 1)
        self._thread.join()

    @property
    def _is_asked(self) -> bool:
        return bool(self._board[_ASKED] != self._answered)

    def _bring_asked(self, layer: int) -> None:
        """All experts of the layer that the step waits for; it goes on when the last is there."""
        with self._changing:
            missing = self._count(layer)
            self._missed += len(missing)
            kept = self._numbers(layer, self._used)
            slots = [self._room_for(expert, kept) for expert in missing]
        reads = [self._begun(self._blocks(expert, slot)) for expert, slot in zip(missing, slots, strict=True)]
        for expert, slot, blocks in zip(missing, slots, reads, strict=True):
            self._finish(blocks)
            self._table[expert] = self._address(slot)

    def _room_for(self, expert: int, kept: Container[int]) -> int:
        brought = self._slots.bring(expert, kept=kept)
        assert brought is not None, "there is a slot for each expert of a layer"
        if brought.evicted is not None:
            self._table[brought.evicted] = 0
        return brought.slot

    def _bring_guessed(self, layer: int) -> None:
        """What the next mixture will probably need, one after another, until a step asks."""
        later = next((each for each in self._layers if each > layer), None)
        for expert in [] if later is None else self._numbers(later, self._guessed):
            with self._changing:
                if self._is_asked or expert in self._slots:
                    continue
                slot = self._room_on_suspicion(expert, layer)
            if slot is not None:
                self._bring_unless_asked(expert, slot)

    def _bring_unless_asked(self, expert: int, slot: int) -> None:
        """Read an expert some blocks at a time; once a step asks for others, this one is given up."""
        blocks = self._blocks(expert, slot)
        for first in range(0, len(blocks), READERS):
            if self._is_asked and not self._used.ravel()[expert]:
                with self._changing:
                    self._slots.forget(expert)
                return
            self._finish(self._begun(blocks[first : first + READERS]))
        self._table[expert] = self._address(slot)

    def _room_on_suspicion(self, expert: int, layer: int) -> int | None:
        """A slot, if one can be had from an expert that no step may be using."""
        kept = range(layer * self._per_layer, (layer + 1) * self._per_layer)
        brought = self._slots.bring(expert, kept=kept, on_suspicion=True)
        if brought is None or brought.evicted is None:
            return None if brought is None else brought.slot
        self._table[brought.evicted] = 0
        with self._order:  # what is written before is seen before anything is read after
            pass
        if int(self._board[_LAYER]) == brought.evicted // self._per_layer:  # a step has come there meanwhile
            self._table[brought.evicted] = self._address(brought.slot)
            self._slots.undo(expert, brought)
            return None
        return brought.slot

    # -- reading

    def _address(self, slot: int) -> int:
        return self._arena.address + slot * self._paging.slot_bytes

    def _blocks(self, expert: int, slot: int) -> list[tuple[memoryview, int]]:
        """Where the blocks of an expert go, and where they lie."""
        offset, num_bytes = self._places[expert].offset, self._places[expert].num_bytes
        start = slot * self._paging.slot_bytes
        return [
            (self._arena.memory[start + at : start + min(at + BLOCK_BYTES, num_bytes)], offset + at)
            for at in range(0, num_bytes, BLOCK_BYTES)
        ]

    def _begun(self, blocks: Sequence[tuple[memoryview, int]]) -> "list[Future[None]]":
        self._read_bytes += sum(len(into) for into, _ in blocks)
        return [self._readers.submit(self._source.read, into, offset) for into, offset in blocks]

    def _finish(self, blocks: "Sequence[Future[None]]") -> None:
        for block in blocks:
            block.result()
