"""Continuous batching, first come first served, with chunked prefill beside decode.

G.-I. Yu et al.: Orca, a distributed serving system (OSDI 2022), for batching step by step; W. Kwon et al.: Efficient
memory management with PagedAttention (SOSP 2023), for preemption by recomputation; A. Agrawal et al.: Sarathi-Serve
(OSDI 2024), for prefill in chunks that share a step with decode.
"""

from collections.abc import Collection, Sequence

from residency.errors import BudgetError, ContextError, UsageError
from residency.ledger import KvPages
from residency.scheduler.batch import Batch, BatchEntry
from residency.scheduler.request import Progress, Request


class Scheduler:
    """Decides each step's batch within its tokens, its sequences and the pages of the KV cache.

    The loop: `add` requests at any time; `schedule`, compute the batch, `commit` it, and so on while `has_work`.
    The request that is first in order advances in every step, so all end.
    """

    def __init__(self, pages: KvPages, *, chunk_tokens: int, max_sequences: int, context_tokens: int) -> None:
        if chunk_tokens < 1 or max_sequences < 1:
            raise ValueError("a step has at least one token of one sequence")
        self._pages = pages
        self._chunk_tokens = chunk_tokens
        self._max_sequences = max_sequences
        self._context_tokens = context_tokens
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
        """Requests without pages, in the order in which they will run."""
        return tuple(progress.request.request_id for progress in self._waiting)

    @property
    def running(self) -> Sequence[int]:
        """Requests that hold pages, in order."""
        return tuple(progress.request.request_id for progress in self._running)

    def check(self, request: Request) -> None:
        """UsageError for a request without tokens, ContextError for one longer than the context, BudgetError for one
        that the KV cache could not hold even alone. Depends on nothing that changes.
        """
        if request.prompt_tokens < 1 or request.wanted_tokens < 1:
            raise UsageError("a request has at least one token before it and wants at least one; give a longer prompt.")
        total_tokens = request.prompt_tokens + request.wanted_tokens
        if total_tokens > self._context_tokens:
            raise ContextError(
                f"a prompt of {request.prompt_tokens} tokens and {request.wanted_tokens} more are "
                f"{total_tokens - self._context_tokens} over the context of {self._context_tokens}; shorten the "
                f"prompt, or plan with --context {total_tokens}."
            )
        if not self._pages.can_ever_hold(total_tokens, chunk_tokens=self._chunk_tokens):
            raise BudgetError(f"the KV cache has too few pages for {total_tokens} tokens; plan with a larger --memory.")

    def add(self, request: Request) -> None:
        """Take a request in. Refuses it as `check` does, and with a ValueError where its id is in use."""
        self.check(request)
        if any(request.request_id == other.request.request_id for other in (*self._waiting, *self._running)):
            raise ValueError(f"request {request.request_id} has not ended yet")
        self._wait(Progress(request=request, arrival=self._num_arrived))
        self._num_arrived += 1

    def schedule(self) -> Batch:
        """The next step: a token of every request that decodes, then prompts in chunks, then new requests.

        A request that finds no page takes those of the last in order, which begins anew later. ValueError while
        an earlier batch is not committed.
        """
        if self._in_flight is not None:
            raise ValueError("commit the batch before the next one")
        step = _Step(free_tokens=self._chunk_tokens)
        decoding = [progress for progress in self._running if progress.pending_tokens == 1]
        prefilling = [progress for progress in self._running if progress.pending_tokens > 1]
        for progress in (*decoding, *prefilling):
            if progress in self._running and step.free_tokens > 0 and self._make_room(progress, step):
                self._put(progress, step)
        if not step.preempted:
            self._admit(step)
        entries = sorted(step.entries.values(), key=lambda entry: entry.of_prompt)
        self._in_flight = Batch(entries=tuple(entries), preempted=tuple(step.preempted))
        return self._in_flight

    def commit(self, batch: Batch, *, ended: Collection[int] = ()) -> Sequence[int]:
        """Record that `batch` was computed, with one token sampled for each entry that needed logits.

        Requests in `ended` sampled their last (an end-of-text token); so did those that have all they wanted.
        Returns the requests that ended, whose pages are free now. ValueError for a batch that is not in flight.
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
            if entry.needs_logits:
                progress.known_tokens += 1
                if progress.sampled_tokens == progress.request.wanted_tokens or entry.request_id in ended:
                    done.append(entry.request_id)
                    self._leave(progress)
        return tuple(done)

    def cancel(self, request_id: int) -> None:
        """Forget a request and free its pages; KeyError where it is unknown or has ended."""
        for progress in (*self._waiting, *self._running):
            if progress.request.request_id == request_id:
                if progress in self._running:
                    self._leave(progress)
                else:
                    self._waiting.remove(progress)
                return
        raise KeyError(request_id)

    def _admit(self, step: "_Step") -> None:
        """Start waiting requests in order, up to the first whose known tokens do not find their pages free."""
        while self._waiting and step.free_tokens > 0 and len(self._running) < self._max_sequences:
            progress = self._waiting[0]
            if not self._pages.has_room_for(progress.known_tokens, chunk_tokens=self._chunk_tokens):
                return
            self._waiting.pop(0)
            self._running.append(progress)
            self._running.sort(key=lambda each: each.order)
            self._put(progress, step)

    def _make_room(self, progress: Progress, step: "_Step") -> bool:
        """Preempt those behind `progress` until its next tokens find pages; False where that is not enough.

        It then keeps what it has and waits for those before it.
        """
        num_tokens = progress.next_tokens(step.free_tokens)
        while not self._pages.can_extend(
            progress.request.request_id, start_token=progress.computed_tokens, num_tokens=num_tokens
        ):
            last = self._running[-1]
            if last is progress:
                return False
            self._leave(last)
            last.computed_tokens = 0
            self._wait(last)
            step.preempt(last.request.request_id)
        return True

    def _put(self, progress: Progress, step: "_Step") -> None:
        request_id, start = progress.request.request_id, progress.computed_tokens
        num_tokens = progress.next_tokens(step.free_tokens)
        self._pages.extend(request_id, start_token=start, num_tokens=num_tokens)
        step.put(
            BatchEntry(
                request_id=request_id,
                start_token=start,
                num_tokens=num_tokens,
                of_prompt=progress.in_prompt,
                needs_logits=num_tokens == progress.pending_tokens,
            )
        )

    def _wait(self, progress: Progress) -> None:
        self._waiting.append(progress)
        self._waiting.sort(key=lambda each: each.order)

    def _leave(self, progress: Progress) -> None:
        self._running.remove(progress)
        self._pages.free(progress.request.request_id)


class _Step:
    """A batch while it is put together."""

    def __init__(self, *, free_tokens: int) -> None:
        self.free_tokens = free_tokens
        self.entries: dict[int, BatchEntry] = {}
        self.preempted: list[int] = []

    def put(self, entry: BatchEntry) -> None:
        self.entries[entry.request_id] = entry
        self.free_tokens -= entry.num_tokens

    def preempt(self, request_id: int) -> None:
        self.preempted.append(request_id)
        entry = self.entries.pop(request_id, None)
        if entry is not None:
            self.free_tokens += entry.num_tokens
