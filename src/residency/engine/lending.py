"""Lends memory of unused pages to weights, and calls it back, between steps."""

from collections.abc import Sequence

import numpy as np

from residency.engine.executor import CpuExecutor
from residency.ledger import KvPages, Ledger, MemoryClass
from residency.planner.lending import Lending
from residency.planner.plan import Plan
from residency.planner.streaming import Streaming
from residency.store.residents import Residents

PAGES, SPANS = "pages", "resident spans"  # owners in the ledger


class Lender:
    """Keeps pages and weights together within what the plan gives both, whatever each takes of it."""

    def __init__(self, plan: Plan, executor: CpuExecutor, residents: Residents, ledger: Ledger) -> None:
        """The ledger holds what the plan says of PAGES and SPANS."""
        assert plan.streaming is not None
        self._plan = plan
        self._executor = executor
        self._residents = residents
        self._ledger = ledger
        self._page_bytes = [group.page_bytes * len(group.layers) for group in plan.kv_groups]
        chunk_pages = -(-plan.chunk_tokens // plan.page_tokens) + plan.max_sequences
        self._lending = Lending(
            streaming=plan.streaming,
            pool_bytes=plan.memory.kv_cache,
            reserve_bytes=chunk_pages * sum(self._page_bytes),
        )
        self._touched = [np.ones(group.num_pages, np.bool_) for group in plan.kv_groups]  # by whoever was before
        self._calm_steps = 0

    @property
    def lent_bytes(self) -> int:
        """What weights have of the pages' memory now."""
        return self._residents.streaming.resident_bytes - self._lending.streaming.resident_bytes

    @property
    def has_borrowers(self) -> bool:
        """Whether weights would stay that stream now, were there memory."""
        return self.lent_bytes < self._lending.most_bytes

    @property
    def patience_steps(self) -> int:
        """For how many steps prefixes that nobody uses keep their pages; see Lending."""
        plan = self._plan
        return self._lending.patience_steps(
            page_bytes=sum(self._page_bytes), chunk_share=plan.page_tokens / plan.chunk_tokens
        )

    def settle(self, pages: KvPages) -> None:
        """Before a step's pages are written to: see that they have their memory, and lend what they do not need.

        StoreError where the disk fails.
        """
        free = [pool.free_pages for pool in pages.pools]
        for touched, each in zip(self._touched, free, strict=True):
            used = np.ones(len(touched), np.bool_)
            used[list(each)] = False
            touched |= used
        self._calm_steps += 1
        lent, touched_bytes = self.lent_bytes, self._bytes([int(each.sum()) for each in self._touched])
        used_bytes = self._bytes([len(touched) - len(each) for touched, each in zip(self._touched, free, strict=True)])
        target = self._lending.lent_bytes(used_bytes=used_bytes, lent_bytes=lent, calm_steps=self._calm_steps)
        if target == lent and touched_bytes + lent <= self._lending.pool_bytes:
            return
        self._trim(free)
        if (streaming := self._lending.with_lent(target)).streamed != self._residents.streaming.streamed:
            if target < lent:
                self._calm_steps = 0
            self._move(streaming)

    def _trim(self, free: Sequence[Sequence[int]]) -> None:
        """Give back the memory of pages that were used and are free."""
        for group, (touched, pages) in enumerate(zip(self._touched, free, strict=True)):
            dropped = [page for page in pages if touched[page]]
            self._executor.drop_pages(group, dropped)
            touched[dropped] = False

    def _move(self, streaming: Streaming) -> None:
        """Let other spans stay, entered in the ledger first."""
        for memory, owner in ((MemoryClass.KV_CACHE, PAGES), (MemoryClass.WEIGHTS, SPANS)):
            self._ledger.release(memory, owner=owner)
        lent_bytes = streaming.resident_bytes - self._lending.streaming.resident_bytes
        self._ledger.reserve(MemoryClass.WEIGHTS, owner=SPANS, num_bytes=streaming.resident_bytes)
        self._ledger.reserve(MemoryClass.KV_CACHE, owner=PAGES, num_bytes=self._lending.pool_bytes - lent_bytes)
        self._residents.move(streaming)
        self._executor.replace_steps()

    def _bytes(self, num_pages: Sequence[int]) -> int:
        return sum(number * each for number, each in zip(num_pages, self._page_bytes, strict=True))
