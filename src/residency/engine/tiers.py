"""Where pages of the KV cache go when there is no room for them in memory: files."""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from residency.engine.kv_store import KvStore, KvStoreSpace
from residency.engine.swap import SwapFile, SwapSpace
from residency.ledger import KeptPages, PageCopy
from residency.planner.plan import Plan
from residency.scheduler import SwapCost


class NextTier:
    """The file of what is preempted, and the one of prompts' pages; each where there is a space for it."""

    def __init__(self, plan: Plan, *, swap: SwapSpace | None = None, store: KvStoreSpace | None = None) -> None:
        """See SwapFile and KvStore for what may fail."""
        self.swap_slots: Sequence[int] = [0] * len(plan.kv_groups) if swap is None else swap.slots(plan)
        self.swap_cost: SwapCost | None = None if swap is None else swap.cost(plan)
        with ExitStack() as opened:
            has_file = swap is not None and swap.folder is not None
            self._swap = opened.enter_context(SwapFile(plan, swap)) if swap is not None and has_file else None
            self._store = None if store is None else opened.enter_context(KvStore(plan, store))
            self._opened = opened.pop_all()

    @property
    def kept(self) -> KeptPages | None:
        """Which prompts' pages there are; None without a store."""
        return None if self._store is None else self._store.kept

    def close(self) -> None:
        """Close the files."""
        self._opened.close()

    def write(self, copy: PageCopy, page_LB: npt.NDArray[np.uint8]) -> None:
        """Put a page (layers, bytes) where the copy says. OSError where the disk fails."""
        if copy.way == "save":
            assert self._store is not None, "nothing is kept without a store"
            self._store.write(page_LB, group=copy.group, slot=copy.target, digest=copy.digest)
        else:
            assert self._swap is not None, "nothing is swapped by a scheduler that has no slots"
            self._swap.write(page_LB, group=copy.group, slot=copy.target)

    def read(self, copy: PageCopy, page_LB: npt.NDArray[np.uint8]) -> None:
        """Bring a page back. OSError where the disk fails, StoreError where the page is not there any more."""
        if copy.way == "load":
            assert self._store is not None, "nothing is kept without a store"
            self._store.read(page_LB, group=copy.group, slot=copy.source, digest=copy.digest)
        else:
            assert self._swap is not None, "nothing is swapped by a scheduler that has no slots"
            self._swap.read(page_LB, group=copy.group, slot=copy.source)
