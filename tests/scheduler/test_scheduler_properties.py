"""Whatever arrives, forks, is cancelled and ends: every page has its owners, and every token sees what it must.

A model of the cache holds, in each slot of each page, the tokens up to the one whose keys and values would be there.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from residency.errors import BudgetError, ContextError, UsageError
from residency.ledger import KeptPages, KvPages, PageCopy, PageGroup
from residency.scheduler import Batch, BatchEntry, Request, Scheduler, SwapCost

PAGE_TOKENS = 4
BEGINNINGS = ([0] * 20, [0] * 9 + [1] * 15, [1, 0] * 12)


@dataclass
class Live:
    """A request or an answer that has not ended."""

    request: Request
    tokens: list[int]
    cached: int = 0
    forked: bool = False
    shares_prefix: bool = True

    def page_key(self, page: int) -> bytes:
        return bytes([0, *self.tokens[page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS]])


@dataclass
class Cache:
    """What the pages of each group hold."""

    slots: dict[tuple[int, int], dict[int, tuple[int, ...]]] = field(default_factory=dict)
    next_tier: dict[tuple[int, int], dict[int, tuple[int, ...]]] = field(default_factory=dict)
    kept: dict[tuple[int, int], dict[int, tuple[int, ...]]] = field(default_factory=dict)
    digests: dict[tuple[int, int], bytes] = field(default_factory=dict)  # of what is kept

    def copy(self, copy: PageCopy) -> bool:
        """Whether it succeeds: what is kept may have given way to something else."""
        sources = {"in": self.next_tier, "load": self.kept}.get(copy.way, self.slots)
        targets = {"out": self.next_tier, "save": self.kept}.get(copy.way, self.slots)
        if copy.way == "save":
            self.digests[copy.group, copy.target] = copy.digest
        if copy.way == "load" and self.digests.get((copy.group, copy.source)) != copy.digest:
            return False
        targets[copy.group, copy.target] = dict(sources.get((copy.group, copy.source), {}))
        return True

    def fail(self, copy: PageCopy) -> None:
        """Nothing of use is where the copy should have gone."""
        targets = {"out": self.next_tier, "save": self.kept}.get(copy.way, self.slots)
        targets[copy.group, copy.target] = {}
        if copy.way == "save":
            self.digests.pop((copy.group, copy.target), None)

    def write(self, group: int, page: int, token: int, tokens: tuple[int, ...]) -> None:
        self.slots.setdefault((group, page), {})[token % PAGE_TOKENS] = tokens

    def read(self, group: int, page: int, token: int) -> tuple[int, ...]:
        return self.slots[group, page][token % PAGE_TOKENS]


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_pages=st.integers(1, 14),
        window_pages=st.integers(1, 14),
        window=st.integers(1, 20),
        chunk=st.integers(1, 12),
        sequences=st.integers(1, 4),
        guaranteed=st.booleans(),
        slots=st.integers(0, 12),
        kept_slots=st.none() | st.integers(0, 12),
    )
    def begin(
        self,
        num_pages: int,
        window_pages: int,
        window: int,
        chunk: int,
        sequences: int,
        guaranteed: bool,
        slots: int,
        kept_slots: int | None,
    ) -> None:
        self.windows = (None, window)
        groups = [
            PageGroup(num_pages=num_pages, num_slots=slots),
            PageGroup(num_pages=window_pages, window_tokens=window, num_slots=slots),
        ]
        kept = None if kept_slots is None else KeptPages([kept_slots] * 2)
        self.pages = KvPages(groups, page_tokens=PAGE_TOKENS, kept=kept)
        self.chunk, self.sequences, self.guaranteed = chunk, sequences, guaranteed
        self.scheduler = Scheduler(
            self.pages,
            chunk_tokens=chunk,
            max_sequences=sequences,
            context_tokens=40,
            admission="guaranteed" if guaranteed else "optimistic",
            swap=SwapCost(prefill_tokens_per_second=1.0, copy_bytes_per_second=3.0, page_bytes=(1, 1)),
        )
        self.live: dict[int, Live] = {}
        self.cache = Cache()
        self.next_id = 0
        self.num_sampled = 0

    @rule(
        beginning=st.sampled_from(BEGINNINGS),
        prompt=st.integers(1, 20),
        wanted=st.integers(1, 12),
        priority=st.integers(0, 2),
        answers=st.integers(1, 3),
        shares_prefix=st.booleans(),
    )
    def add(
        self, beginning: list[int], prompt: int, wanted: int, priority: int, answers: int, shares_prefix: bool
    ) -> None:
        request = Request(
            request_id=self.next_id,
            prompt_tokens=prompt,
            wanted_tokens=wanted,
            priority=priority,
            num_answers=answers,
        )
        live = self.take_in(request, beginning[:prompt], shares_prefix)
        try:
            self.scheduler.add(live.request)
        except (ContextError, BudgetError, UsageError):
            del self.live[request.request_id]

    def take_in(self, request: Request, tokens: list[int], shares_prefix: bool) -> Live:
        live = Live(request=request, tokens=list(tokens), shares_prefix=shares_prefix)
        live.request = replace(request, page_key=live.page_key if shares_prefix else None)
        self.live[request.request_id] = live
        self.next_id += 1
        return live

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        self.scheduler.cancel(request_id)
        del self.live[request_id]

    @precondition(lambda self: self.live)
    @rule(data=st.data(), failing=st.sampled_from([0, 0, 1, 2, 3]))
    def step(self, data: st.DataObject, failing: int) -> None:
        self.compute(ended=data.draw(st.sets(st.sampled_from(sorted(self.live)), max_size=1)), failing=failing)

    def scheduled(self, failing: int) -> Batch:
        """The next batch after its copies; of those to and from disk the first few fail."""
        while True:
            batch = self.scheduler.schedule()
            lost: set[int] = set()
            for copy in batch.copies:
                fails = copy.way != "within" and failing > 0
                failing -= fails
                if fails or not self.cache.copy(copy):
                    self.cache.fail(copy)
                    lost |= set() if copy.sequence is None else {copy.sequence}
                    if copy.way in ("save", "load"):
                        self.pages.lose(copy)
            if not lost:
                return batch
            self.scheduler.withdraw(batch, lost=lost)

    def compute(self, ended: set[int], failing: int = 0) -> None:
        batch = self.scheduled(failing)
        assert 1 <= batch.num_tokens <= self.chunk
        assert len(batch.entries) <= self.sequences
        assert [entry.of_prompt for entry in batch.entries] == sorted(entry.of_prompt for entry in batch.entries)
        assert not (self.guaranteed and batch.preempted)
        self.write(batch)
        expected: set[int] = set()
        forks: dict[int, list[Request]] = {}
        for entry in batch.entries:
            live = self.live[entry.request_id]
            self.read(entry, live)
            assert entry.needs_logits == (entry.start_token + entry.num_tokens == len(live.tokens))
            if entry.needs_logits:
                forks[entry.request_id] = self.fork(live)
                for each in (live.request, *forks[entry.request_id]):
                    expected |= self.sample(self.live[each.request_id], ended)
        assert set(self.scheduler.commit(batch, ended=ended, forks=forks)) == expected
        for request_id in expected:
            del self.live[request_id]

    def write(self, batch: Batch) -> None:
        """Keys and values of all tokens: a page that two write to is found out here or when read."""
        written: set[tuple[int, int, int]] = set()
        for entry in batch.entries:
            live = self.live[entry.request_id]
            of_prompt = range(live.request.prompt_tokens)
            for token in range(entry.start_token, entry.start_token + entry.num_tokens):
                assert entry.of_prompt == (token in of_prompt)
                for group, table in enumerate(self.pages.sequences[entry.request_id]):
                    page = table.page_at(token // PAGE_TOKENS)
                    assert page is not None
                    assert (group, page, token % PAGE_TOKENS) not in written
                    written.add((group, page, token % PAGE_TOKENS))
                    self.cache.write(group, page, token, tuple(live.tokens[: token + 1]))

    def read(self, entry: BatchEntry, live: Live) -> None:
        """Each token sees its own and the earlier ones of its window."""
        for token in range(entry.start_token, entry.start_token + entry.num_tokens):
            for group, window in enumerate(self.windows):
                table = self.pages.sequences[entry.request_id][group]
                for seen in range(0 if window is None else max(0, token - window + 1), token + 1):
                    page = table.page_at(seen // PAGE_TOKENS)
                    assert page is not None
                    assert self.cache.read(group, page, seen) == tuple(live.tokens[: seen + 1])

    def fork(self, live: Live) -> list[Request]:
        if live.forked or live.request.num_answers == 1:
            return []
        live.forked = True
        plain = replace(live.request, num_answers=1)
        return [
            self.take_in(replace(plain, request_id=self.next_id), live.tokens, live.shares_prefix).request
            for _ in range(1, live.request.num_answers)
        ]

    def sample(self, live: Live, ended: set[int]) -> set[int]:
        self.num_sampled += 1
        live.tokens.append(self.num_sampled % 2)
        done = len(live.tokens) == live.request.total_tokens or live.request.request_id in ended
        return {live.request.request_id} if done else set()

    @invariant()
    def those_that_run_and_only_those_hold_pages(self) -> None:
        if hasattr(self, "scheduler"):
            assert set(self.pages.sequences) == set(self.scheduler.running)
            assert sorted((*self.scheduler.running, *self.scheduler.waiting)) == sorted(self.live)

    @invariant()
    def no_page_is_lost_and_none_is_held_unseen(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for group, pool in enumerate(self.pages.pools):
            held = Counter(page for tables in self.pages.sequences.values() for page in tables[group].pages)
            assert all(pool.holders(page) == held[page] for page in range(pool.num_pages))
            assert pool.num_used == len(held)
            assert pool.num_shared == sum(holders > 1 for holders in held.values())
            assert pool.num_used + pool.num_free == pool.num_pages
            assert 0 <= pool.num_cached <= pool.num_free

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):
            if not self.scheduler.has_work:
                break
            self.compute(ended=set())
        assert not self.live
        assert all(pool.num_used == 0 for pool in (*self.pages.pools, *self.pages.slots))


TestSchedulerByRandomOperations = SchedulerMachine.TestCase
TestSchedulerByRandomOperations.settings = settings(stateful_step_count=30, deadline=None)
