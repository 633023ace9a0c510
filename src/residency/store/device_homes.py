"""Experts that not even RAM has room for: all lie on the disk, and those that are used most have a home in pinned RAM.

Whoever a step asks for is given a home before the device copies it from there (see kernels/experts/gpu_paging.py).
What makes room is what is worth least; and before that, what stays on the device anyway, so that the two tiers hold
different experts.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import torch

from residency.ledger.experts import BesideNearer, ExpertSlots, Policy
from residency.planner.paging import READERS
from residency.spec.device_layout import ExpertsLayout
from residency.store.device_disk import LayerFiles
from residency.store.direct import BLOCK_BYTES, DirectFile
from residency.store.pinned import PinnedBytes

_TABLE = torch.int32


class DiskExperts:
    """The experts of a layout in files of whole layers, and who of them is in which home. `homes` (homes, bytes) are in
    pinned RAM. Close it after the last step.
    """

    def __init__(
        self, layout: ExpertsLayout, homes: torch.Tensor, files: LayerFiles, policy: Policy, device: str
    ) -> None:
        """`policy` says what experts are worth, and is told by somebody else."""
        self._layout, self._files = layout, files
        values: npt.NDArray[np.uint8] = homes.view(-1).numpy()
        self._memory = values.data
        num_experts = layout.num_layers * layout.per_layer
        self._policy = BesideNearer(policy)
        self._ledger = ExpertSlots(layout.homes, num_experts, self._policy)
        self._sources: dict[int, DirectFile] = {}
        self.read_bytes = 0
        with ExitStack() as opened:
            pinned = PinnedBytes(num_experts * _TABLE.itemsize, device)
            opened.callback(pinned.close)
            self._table = pinned.tensor.view(_TABLE).fill_(-1)
            self._files_open = opened.enter_context(ExitStack())
            self._readers = opened.enter_context(ThreadPoolExecutor(READERS, "residency-experts"))
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End the threads and close the files; no step is under way any more."""
        self._opened.close()

    def has(self, layer: int) -> bool:
        """Whether a layer's experts are on the disk already."""
        return self._files.has(layer)

    def keep(self, layer: int) -> None:
        """The experts of a layer are what lies in the first homes. StoreError where they cannot be written."""
        self._files.write(layer, self._memory[: self._layout.per_layer * self._layout.slot_bytes])

    def table(self, layer: int) -> torch.Tensor:
        """The home of each expert of a layer, or -1: in pinned RAM, where kernels read it."""
        return self._table.view(self._layout.num_layers, -1)[layer]

    def leave(self, experts: Sequence[int]) -> None:
        """These stay on the device during the next step, and need no home."""
        self._policy.nearer = experts

    def read(self, layer: int, copies: torch.Tensor) -> None:
        """Give each expert of a layer a home that a list on the device says is copied next: how many, which.

        Waits for the list. StoreError where the disk fails; the missing ones have no home then.
        """
        count, *listed = copies.tolist()
        wanted = [layer * self._layout.per_layer + each for each in listed[:count]]
        missing = [expert for expert in wanted if expert not in self._ledger]
        if not missing:
            return
        source = self._source(layer)
        homes = {expert: self._room_for(expert, wanted) for expert in missing}
        reads = [read for expert, home in homes.items() for read in self._begun(source, expert, home)]
        wait(reads)
        try:
            for read in reads:
                read.result()
        except Exception:
            for expert in homes:
                self._ledger.forget(expert)
            raise
        for expert, home in homes.items():
            self._table[expert] = home

    def _source(self, layer: int) -> DirectFile:
        if layer not in self._sources:
            self._sources[layer] = self._files_open.enter_context(self._files.open(layer))
        return self._sources[layer]

    def _room_for(self, expert: int, kept: Sequence[int]) -> int:
        brought = self._ledger.bring(expert, kept=kept)
        assert brought is not None, "there is a home for each expert of a layer"
        if brought.evicted is not None:
            self._table[brought.evicted] = -1
        return brought.slot

    def _begun(self, source: DirectFile, expert: int, home: int) -> "list[Future[None]]":
        """The reads of an expert, block by block."""
        slot_bytes = self._layout.slot_bytes
        into = self._memory[home * slot_bytes : (home + 1) * slot_bytes]
        begins = expert % self._layout.per_layer * slot_bytes
        self.read_bytes += slot_bytes
        return [
            self._readers.submit(source.read, into[at : at + BLOCK_BYTES], begins + at)
            for at in range(0, slot_bytes, BLOCK_BYTES)
        ]
