"""Pages of the KV cache that wait in a file until there is room for them again."""

import errno
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from residency.errors import StoreError, UsageError
from residency.planner.plan import Plan
from residency.scheduler import SwapCost
from residency.units import binary_bytes

PagesLPB = Sequence[npt.NDArray[np.uint8]]  # of each KV group: layers, pages, bytes


@dataclass(frozen=True, kw_only=True)
class SwapSpace:
    """Where the pages of preempted sequences may wait, and how quick that is."""

    folder: Path | None  # None: RAM that a device copies to by itself
    num_bytes: int
    bytes_per_second: float

    def slots(self, plan: Plan) -> Sequence[int]:
        """Pages of each KV group that there is room for, in the same proportion as in memory."""
        if self.num_bytes < 1 or not self.bytes_per_second > 0:
            raise UsageError("a swap space has at least one byte and a speed above 0.")
        part = self.num_bytes / max(1, plan.memory.kv_cache)
        return [int(group.num_pages * part) for group in plan.kv_groups]

    def cost(self, plan: Plan) -> SwapCost:
        """What swapping costs beside computing again."""
        return SwapCost(
            prefill_tokens_per_second=plan.forecast.prefill_tokens_per_second,
            copy_bytes_per_second=self.bytes_per_second,
            page_bytes=[group.page_bytes * len(group.layers) for group in plan.kv_groups],
        )


class SwapFile:
    """A file without a name: it is gone with the process. Use it in a `with` statement."""

    def __init__(self, plan: Plan, space: SwapSpace) -> None:
        """StoreError where the file cannot be made as large as that."""
        slot_bytes = [group.page_bytes * len(group.layers) for group in plan.kv_groups]
        group_bytes = [slots * each for slots, each in zip(space.slots(plan), slot_bytes, strict=True)]
        self._slot_bytes = slot_bytes
        self._starts = [sum(group_bytes[:group]) for group in range(len(group_bytes))]
        try:
            with ExitStack() as opened:
                self._file = opened.enter_context(tempfile.TemporaryFile(dir=space.folder))
                os.posix_fallocate(self._file.fileno(), 0, max(1, sum(group_bytes)))
                self._opened = opened.pop_all()
        except OSError as error:
            raise StoreError(
                f"{binary_bytes(space.num_bytes)} to swap to could not be reserved in {space.folder}: "
                f"{error.strerror}; give another folder, or less."
            ) from error

    def __enter__(self) -> "SwapFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the space back."""
        self._opened.close()

    def write(self, page_LB: npt.NDArray[np.uint8], *, group: int, slot: int) -> None:
        """Keep a page (layers, bytes) in a slot. OSError where the disk fails."""
        data = memoryview(page_LB.tobytes())
        place = self._place(group, slot)
        while data:
            written = os.pwrite(self._file.fileno(), data, place)
            data, place = data[written:], place + written

    def read(self, page_LB: npt.NDArray[np.uint8], *, group: int, slot: int) -> None:
        """Put what a slot keeps into a page (layers, bytes). OSError where the disk fails."""
        kept = os.pread(self._file.fileno(), self._slot_bytes[group], self._place(group, slot))
        if len(kept) != self._slot_bytes[group]:
            raise OSError(errno.EIO, "the swap file ends within a page")
        page_LB[:] = np.frombuffer(kept, np.uint8).reshape(page_LB.shape)

    def _place(self, group: int, slot: int) -> int:
        return self._starts[group] + slot * self._slot_bytes[group]
