"""Continuous batching, first come first served, with chunked prefill beside decode.

G.-I. Yu et al.: Orca, a distributed serving system (OSDI 2022), for batching step by step; W. Kwon et al.: Efficient
memory management with PagedAttention (SOSP 2023), for preemption by recomputation; A. Agrawal et al.: Sarathi-Serve
(OSDI 2024), for prefill in chunks that share a step with decode.
"""

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Literal

from residency.errors import BudgetError, ContextError, UsageError
from residency.ledger import KvPages, PageCopy
from residency.scheduler.batch import Batch, BatchEntry
from residency.scheduler.request import Progress, Request
from residency.scheduler.share import shares_of_prompts
from residency.scheduler.swap import SwapCost

# What optimistic admission leaves to each request that runs. On a mixed workload with pages for about half of the
# demand, 41% of all tokens are computed again after preemptions with 0, 9% with 2, and 4% with 4, which starts requests
# so late that the whole takes no less time.
_PAGES_TO_GO_ON = 2

Admission = Literal["guaranteed", "optimistic"]


class Scheduler:
    """Decides each step's batch within its tokens, its sequences and the pages of the KV cache.

    The loop: `add` requests at any time; `schedule`, compute the batch, `commit` it, and so on while `has_work`.
    The request that is first in order advances in every step, so all end.

    Admission: "optimistic" starts a request when the pages of what it has so far are free, and preempts the last in
    order when pages run out or a more urgent one finds no room: its tokens are computed again later, or its pages wait
    in the next tier where `swap` says that this is quicker. "guaranteed" starts a request when the most that it may
    ever need is free as well, so that nothing is ever preempted.
    """

    def __init__(
        self,
        pages: KvPages,
        *,
        chunk_tokens: int,
        max_sequences: int,
        context_tokens: int,
        admission: Admission = "optimistic",
        swap: SwapCost | None = None,
    ) -> None:
        if chunk_tokens < 1 or max_sequences < 1:
            raise ValueError("a step has at least one token of one sequence")
        self._pages = pages
        self._chunk_tokens = chunk_tokens
        self._max_sequences = max_sequences
        self._context_tokens = context_tokens
        self._admission = admission
        self._swap = swap
        self._num_arrived = 0
        self._waiting: list[Progress] = []
        self._running: list[Progress] = []
        self._in_flight: Batch | None = None

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._waiting or self._running)

    @property
    def waiting(self) -> Sequence[int]:
        """Requests that hold no pages, in the order in which they will run."""
        return tuple(progress.request.request_id for progress in self._waiting)

    @property
    def running(self) -> Sequence[int]:
        """Requests that hold pages, in order."""
        return tuple(progress.request.request_id for progress in self._running)

    @property
    def computed_tokens(self) -> int:
        """Tokens that are in the cache, a shared one counted for each that shares it."""
        return sum(progress.computed_tokens for progress in self._running)

    def check(self, request: Request) -> None:
        """UsageError for a request without tokens or with more answers than run at one time, ContextError for one
        longer than the context, BudgetError for one that the KV cache could not hold even alone. Depends on nothing
        that changes.
        """
        if request.prompt_tokens < 1 or request.wanted_tokens < 1:
            raise UsageError("a request has at least one token before it and wants at least one; give a longer prompt.")
        if not 1 <= request.num_answers <= self._max_sequences:
            raise UsageError(
                f"{request.num_answers} answers cannot run at one time; ask for at most {self._max_sequences}."
            )
        if request.total_tokens > self._context_tokens:
            raise ContextError(
                f"a prompt of {request.prompt_tokens} tokens and {request.wanted_tokens} more are "
                f"{request.total_tokens - self._context_tokens} over the context of {self._context_tokens}; shorten "
                f"the prompt, or plan with --context {request.total_tokens}."
            )
        together = request.num_answers if self._admission == "guaranteed" else 1
        if not self._pages.can_ever_hold(request.total_tokens, chunk_tokens=self._chunk_tokens, num_sequences=together):
            answers = f"{together} answers of " if together > 1 else ""
            raise BudgetError(
                f"the KV cache has too few pages for {answers}{request.total_tokens} tokens; "
                "plan with a larger --memory."
            )

    def add(self, request: Request) -> None:
        """Take a request in. Refuses it as `check` does, and with a ValueError where its id is in use."""
        self.check(request)
        if any(request.request_id == other.request.request_id for other in (*self._waiting, *self._running)):
            raise ValueError(f"request {request.request_id} has not ended yet")
        self._wait(Progress(request=request, arrival=self._num_arrived))
        self._num_arrived += 1

    def schedule(self) -> Batch:
        """The next step: a token of every request that decodes, then prompts in chunks, new requests among them.

        A request that finds no page takes those of the last in order, which begins anew later. ValueError while
        an earlier batch is not committed.
        """
        if self._in_flight is not None:
            raise ValueError("commit the batch before the next one")
        step = _Step(free_tokens=self._chunk_tokens, free_sampled=self._max_sequences)
        decoding = dict.fromkeys([each for each in self._running if each.known_tokens - each.computed_tokens == 1])
        for progress in decoding:
            self._put(progress, 1, step)
        if not step.preempted:
            self._admit(step)
        if prompts := [each for each in self._running if each not in decoding]:
            for progress, num_tokens in self._shares(prompts, step.free_tokens):
                self._put(progress, num_tokens, step)
        self._pages.save_next()  # a page a step, so that a store on disk costs no step more than a little
        step.copies += self._pages.take_copies()
        self._in_flight = step.batch()
        return self._in_flight

    def commit(
        self, batch: Batch, *, ended: Collection[int] = (), forks: Mapping[int, Sequence[Request]] | None = None
    ) -> Sequence[int]:
        """Record that `batch` was computed, with one token sampled for each entry that needed logits.

        `forks` are further answers to requests whose prompts are complete now, each with a first token of its own; they
        share their prompt's pages. Requests in `ended` sampled their last (an end-of-text token); so did those that
        have all they wanted. Returns the requests that ended, whose pages are free now. ValueError for a batch that is
        not in flight.
        """
        if batch is not self._in_flight:
            raise ValueError("only the batch that was scheduled last can be committed")
        self._in_flight = None
        running = {progress.request.request_id: progress for progress in self._running}
        done = []
        for entry in batch.entries:
            progress = running.get(entry.request_id)
            if progress is None:  # cancelled while it was computed
                continue
            progress.computed_tokens += entry.num_tokens
            if progress.computed_tokens >= progress.writable_until:  # at a page's end, or further
                self._pages.publish(entry.request_id, computed_tokens=progress.computed_tokens)
            if not entry.needs_logits:
                continue
            progress.known_tokens += 1
            twins = self._fork(progress, forks[entry.request_id]) if forks and entry.request_id in forks else ()
            for each in (progress, *twins):
                request = each.request
                if each.known_tokens == request.total_tokens or request.request_id in ended:
                    done.append(request.request_id)
                    self._leave(each)
        return tuple(done)

    def withdraw(self, batch: Batch, *, lost: Collection[int]) -> None:
        """Take a batch back that cannot be computed, for copies of pages of the requests in `lost` have failed: these
        begin anew. All other copies have been made. ValueError for a batch that is not in flight.
        """
        if batch is not self._in_flight:
            raise ValueError("only the batch that was scheduled last can be withdrawn")
        self._in_flight = None
        for progress in [each for each in (*self._waiting, *self._running) if each.request.request_id in lost]:
            if progress in self._running:
                self._leave(progress)
                self._wait(progress)
            elif progress.is_swapped:
                self._pages.drop_swapped(progress.request.request_id)
                progress.is_swapped = False
            progress.restart()

    def cancel(self, request_id: int) -> None:
        """Forget a request and free its pages; KeyError where it is unknown or has ended."""
        for progress in (*self._waiting, *self._running):
            if progress.request.request_id == request_id:
                if progress in self._running:
                    self._leave(progress)
                else:
                    self._waiting.remove(progress)
                    if progress.is_swapped:
                        self._pages.drop_swapped(request_id)
                return
        raise KeyError(request_id)

    def _admit(self, step: "_Step") -> None:
        """Start waiting requests in order, up to the first that does not find its seats or its pages."""
        while self._waiting:
            if not self._has_room_for(self._waiting[0]):
                if not self._may_overtake(self._waiting[0]):
                    return
                self._preempt(self._running[-1], step)
                continue
            progress = self._waiting.pop(0)
            request = progress.request
            if progress.is_swapped:
                progress.is_swapped = False
                step.copies += self._pages.swap_in(request.request_id, page_key=request.page_key)
            else:
                found_tokens = self._pages.begin(
                    request.request_id, known_tokens=progress.known_tokens, page_key=request.page_key
                )
                self._found(progress, found_tokens)
            self._running.append(progress)
            self._running.sort(key=lambda each: each.order)

    def _may_overtake(self, progress: Progress) -> bool:
        """Whether the last that runs is less urgent than `progress`, and not promised that it can stay."""
        if self._admission == "guaranteed" or not self._running:
            return False
        return progress.request.priority < self._running[-1].request.priority

    def _has_room_for(self, progress: Progress) -> bool:
        seats = sum(each.num_answers for each in self._running) + progress.num_answers
        if seats > self._max_sequences:
            return False
        if self._admission == "guaranteed":
            claims = [self._claim(each) for each in (*self._running, progress)]
            pools = enumerate(self._pages.pools)
            return all(sum(claim[group] for claim in claims) <= pool.num_pages for group, pool in pools)
        return self._pages.has_room_for(
            progress.known_tokens,
            chunk_tokens=self._chunk_tokens,
            page_key=None if progress.is_swapped else progress.request.page_key,
            promised=self._promised(),
        )

    def _claim(self, progress: Progress) -> list[int]:
        """The most pages of each group that all of a request's answers may ever hold."""
        needed = self._pages.pages_of(progress.request.total_tokens, chunk_tokens=self._chunk_tokens)
        return [progress.num_answers * pages for pages in needed]

    def _promised(self) -> list[int]:
        """Free pages of each group that running requests are about to take: for their prompts, and to go on."""
        promised = [_PAGES_TO_GO_ON * len(self._running)] * len(self._pages.pools)
        for progress in [each for each in self._running if each.pending_tokens > 1]:
            needed = self._pages.pages_of(progress.known_tokens, chunk_tokens=self._chunk_tokens)
            tables = self._pages.sequences[progress.request.request_id]
            for group, (pages, table) in enumerate(zip(needed, tables, strict=True)):
                promised[group] += max(0, pages - len(table.pages))
        return promised

    def _shares(self, prompts: Sequence[Progress], free_tokens: int) -> Sequence[tuple[Progress, int]]:
        """Those of `prompts` that advance in this step, and by how many tokens; see `shares_of_prompts`.

        A prompt first takes over what others have computed of it, and waits while another is computing what it needs.
        """
        for progress in prompts:
            self._found(
                progress,
                self._pages.catch_up(
                    progress.request.request_id,
                    computed_tokens=progress.computed_tokens,
                    known_tokens=progress.known_tokens,
                ),
            )
        return shares_of_prompts(prompts, free_tokens, page_tokens=self._pages.page_tokens, waits=self._waits_for)

    def _waits_for(self, progress: Progress, other: Progress) -> bool:
        return progress.computed_tokens % self._pages.page_tokens == 0 and self._pages.computes_next_page_of(
            progress.request.request_id, other.request.request_id, known_tokens=other.known_tokens
        )

    def _found(self, progress: Progress, computed_tokens: int) -> None:
        """Others had computed a request's tokens up to `computed_tokens`."""
        if progress.sampled_tokens == 0:
            progress.cached_tokens += computed_tokens - progress.computed_tokens
        progress.computed_tokens = computed_tokens

    def _put(self, progress: Progress, num_tokens: int, step: "_Step") -> None:
        """Add a request's next tokens to the step, where there is room and it has not been preempted meanwhile.

        It preempts those behind itself until its tokens find pages; where that is not enough, it keeps what it has and
        waits for those before it.
        """
        request, start_token = progress.request, progress.computed_tokens
        in_prompt = start_token < request.prompt_tokens
        most_tokens = step.free_tokens if in_prompt else min(step.free_tokens, step.free_sampled)
        num_tokens = min(num_tokens, most_tokens)
        if num_tokens == 0 or (step.preempted and progress not in self._running):
            return
        if start_token + num_tokens > progress.writable_until and not self._extend(progress, num_tokens, step):
            return
        step.put(
            BatchEntry(
                request.request_id,
                start_token,
                num_tokens,
                in_prompt,
                start_token + num_tokens == progress.known_tokens,
                progress.cached_tokens,
            )
        )

    def _extend(self, progress: Progress, num_tokens: int, step: "_Step") -> bool:
        """See that a request's next tokens have pages to be written to; whether they have. See `_put`."""
        request_id, start_token = progress.request.request_id, progress.computed_tokens
        while not self._pages.can_extend(request_id, start_token=start_token, num_tokens=num_tokens):
            last = self._running[-1]
            if last is progress:
                return False
            self._preempt(last, step)
        step.copies += self._pages.extend(request_id, start_token=start_token, num_tokens=num_tokens)
        progress.writable_until = self._pages.writable_until(request_id, start_token)
        return True

    def _preempt(self, progress: Progress, step: "_Step") -> None:
        """Take a request's pages: it waits, swapped out where that pays and there is room, and else to begin anew."""
        request_id = progress.request.request_id
        progress.writable_until = 0
        if self._swap is not None and self._can_swap(progress, self._swap):
            step.copies += self._pages.swap_out(request_id, computed_tokens=progress.computed_tokens)
            progress.is_swapped = True
        else:
            self._pages.free(request_id)
            progress.restart()
        self._running.remove(progress)
        self._wait(progress)
        step.preempt(request_id)

    def _can_swap(self, progress: Progress, cost: SwapCost) -> bool:
        held_pages = [len(table.pages) for table in self._pages.sequences[progress.request.request_id]]
        has_slots = all(pages <= pool.num_free for pages, pool in zip(held_pages, self._pages.slots, strict=True))
        return has_slots and cost.pays(computed_tokens=progress.computed_tokens, held_pages=held_pages)

    def _fork(self, progress: Progress, requests: Sequence[Request]) -> list[Progress]:
        if not requests:
            return []
        twins = [progress.fork(request) for request in requests]
        for twin in twins:
            self._pages.fork(progress.request.request_id, twin.request.request_id, page_key=twin.request.page_key)
        progress.num_answers = 1
        self._running.extend(twins)
        self._running.sort(key=lambda each: each.order)
        return twins

    def _wait(self, progress: Progress) -> None:
        self._waiting.append(progress)
        self._waiting.sort(key=lambda each: each.order)

    def _leave(self, progress: Progress) -> None:
        self._running.remove(progress)
        self._pages.free(progress.request.request_id)


class _Step:
    """A batch while it is put together.

    Of the answers' tokens it takes as many as there are sequences, those that are computed again included: the executor
    sums the contexts of so many in parts, as they were summed when they were sampled.
    """

    def __init__(self, *, free_tokens: int, free_sampled: int) -> None:
        self.free_tokens = free_tokens
        self.free_sampled = free_sampled  # answers' tokens that still find room, if free_tokens do
        self.copies: list[PageCopy] = []
        self.preempted: list[int] = []
        self._entries: dict[int, BatchEntry] = {}

    def put(self, entry: BatchEntry) -> None:
        self._entries[entry.request_id] = entry
        self.free_tokens -= entry.num_tokens
        if not entry.of_prompt:
            self.free_sampled -= entry.num_tokens

    def preempt(self, request_id: int) -> None:
        self.preempted.append(request_id)
        entry = self._entries.pop(request_id, None)
        if entry is not None:
            self.free_tokens += entry.num_tokens
            if not entry.of_prompt:
                self.free_sampled += entry.num_tokens

    def batch(self) -> Batch:
        entries = sorted(self._entries.values(), key=attrgetter("of_prompt"))
        return Batch(entries=tuple(entries), preempted=tuple(self.preempted), copies=tuple(self.copies))
