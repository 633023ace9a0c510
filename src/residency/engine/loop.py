"""The loop: schedule, compute, sample, commit. The same scheduler serves one request and many."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from residency.engine.executor import Executor, Logits
from residency.engine.generation import GenerationOptions, TokenEvent
from residency.engine.kv_store import KvStoreSpace
from residency.engine.lending import Lender
from residency.engine.loop_answer import LoopAnswer
from residency.engine.metrics import LoopCounts
from residency.engine.sampler import FloatArray, Sampler
from residency.engine.scoring import ScoredPrompt, score_prompts
from residency.engine.swap import SwapSpace
from residency.engine.tiers import NextTier
from residency.errors import BudgetError
from residency.ledger import KvPages, PageCopy
from residency.ledger.groups import PageGroup
from residency.planner.plan import Plan
from residency.scheduler import Admission, Batch, Request, Scheduler


class Loop:
    """Requests in, tokens out, one step at a time."""

    def __init__(
        self,
        plan: Plan,
        executor: Executor,
        *,
        eos_ids: frozenset[int],
        weight_read_bytes: int,
        admission: Admission = "optimistic",
        swap: SwapSpace | None = None,
        store: KvStoreSpace | None = None,
        lender: Lender | None = None,
    ) -> None:
        """With a `lender`, memory of pages that nobody uses is weights'. With `swap`, what is preempted may wait in a
        file; with `store`, prompts' pages are kept in one. See NextTier for what is raised where they cannot be made.
        """
        self._plan = plan
        self._executor = executor
        self._eos_ids = eos_ids
        self._weight_read_bytes = weight_read_bytes
        self._lender = lender
        self._tier = NextTier(plan, swap=swap, store=store)
        groups = [
            PageGroup(num_pages=group.num_pages, window_tokens=group.window_tokens, num_slots=num_slots)
            for group, num_slots in zip(plan.kv_groups, self._tier.swap_slots, strict=True)
        ]
        self._pages = KvPages(groups, page_tokens=plan.page_tokens, kept=self._tier.kept)
        self._scheduler = Scheduler(
            self._pages,
            chunk_tokens=plan.chunk_tokens,
            max_sequences=plan.max_sequences,
            context_tokens=plan.context_tokens,
            admission=admission,
            swap=self._tier.swap_cost,
        )
        self._answers: dict[int, LoopAnswer] = {}  # by the number that the scheduler knows
        self._sequences: dict[int, list[int]] = {}  # those numbers of each request
        self._next_request = self._next_sequence = 0
        self._totals: Counter[str] = Counter()

    def close(self) -> None:
        """Keep the prompts' pages that are cached, where there is a store for them, and close the files."""
        self._make(self._pages.save_cached())
        self._tier.close()

    @property
    def has_unsaved_pages(self) -> bool:
        """Whether pages of prompts are not in their store yet."""
        return self._pages.has_unsaved

    def save_page(self) -> None:
        """Put one of them there, between two steps; steps do the same."""
        self._pages.save_next()
        self._make(self._pages.take_copies())

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return self._scheduler.has_work

    @property
    def kv_bytes(self) -> int:
        """The most bytes of the KV cache that were in use at one time."""
        used = zip(self._plan.kv_groups, self._pages.pools, strict=True)
        return sum(pool.peak_used * group.page_bytes * len(group.layers) for group, pool in used)

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._totals["steps"]

    @property
    def compute_seconds(self) -> float:
        """Of all steps, in kernels."""
        return self._executor.compute_seconds

    @property
    def read_bytes(self) -> int:
        """Of all steps: weights, keys and values."""
        return self._totals["read_bytes"]

    def check(self, prompt_tokens: int, options: GenerationOptions) -> None:
        """ContextError, BudgetError or UsageError for what `submit` would refuse; any thread may ask at any time."""
        request = Request(
            request_id=0, prompt_tokens=prompt_tokens, wanted_tokens=options.max_tokens, num_answers=options.num_answers
        )
        self._scheduler.check(request)

    def submit(self, prompt: Sequence[int], options: GenerationOptions, *, request_id: int | None = None) -> int:
        """Take a request in and give its number, which the caller may choose. See `check` for what is refused."""
        if request_id is None:
            request_id, self._next_request = self._next_request, self._next_request + 1
        tokens = np.empty(len(prompt) + options.max_tokens, np.int64)
        tokens[: len(prompt)] = prompt
        answer = LoopAnswer(
            request_id=request_id,
            number=0,
            options=options,
            tokens=tokens,
            prompt_tokens=len(prompt),
            known_tokens=len(prompt),
            sampler=Sampler(options.sampling),
            page_tokens=self._plan.page_tokens,
            scored=ScoredPrompt.of(tokens[: len(prompt)], options.prompt_logprobs),
        )
        self._scheduler.add(answer.request(self._next_sequence, options.num_answers))
        self._sequences[request_id] = []
        self._take_in(answer)
        return request_id

    def cancel(self, request_id: int, answer: int | None = None) -> None:
        """Forget a request, or one of its answers that has begun, wherever it is; nothing happens for one that has
        ended.
        """
        for sequence in tuple(self._sequences.get(request_id, ())):
            if answer is None or self._answers[sequence].number == answer:
                self._scheduler.cancel(sequence)
                self._let_go(sequence)

    def counts(self) -> LoopCounts:
        """The state between two steps."""
        pools = self._pages.pools
        used = zip(self._plan.kv_groups, pools, strict=True)
        return LoopCounts(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            pages=sum(pool.num_pages for pool in pools),
            used_pages=sum(pool.num_used for pool in pools),
            shared_pages=sum(pool.num_shared for pool in pools),
            cached_pages=sum(pool.num_cached for pool in pools),
            kv_used_bytes=sum(pool.num_used * group.page_bytes * len(group.layers) for group, pool in used),
            kept_pages=0 if self._tier.kept is None else self._tier.kept.num_kept,
            kept_slots=0 if self._tier.kept is None else self._tier.kept.num_slots,
            kv_tokens=self._scheduler.computed_tokens,
            **self._totals,
        )

    def step(self, before_run: Callable[[Batch], None] = lambda batch: None) -> list[TokenEvent]:
        """One step; what it gave. `before_run` is called with what it computes just before the kernels, so that whom it
        wakes runs beside them and does not hold the step up.
        """
        batch = self._scheduled()
        answers = [self._answers[entry.request_id] for entry in batch.entries]
        try:
            logits = self._compute(batch, answers, before_run)
        except BudgetError as error:
            return [self._refuse_last(batch, str(error))]
        events: list[TokenEvent] = []
        ended: list[int] = []
        forks: dict[int, list[Request]] = {}
        wanted = [pair for pair in zip(batch.entries, answers, strict=True) if pair[0].needs_logits]
        chosen = self._choices([answer for _, answer in wanted], logits)
        for (entry, answer), row in zip(wanted, chosen, strict=True):
            sequences = [(entry.request_id, answer)]
            if answer.known_tokens == answer.prompt_tokens:
                twins = self._begin(answer, entry.cached_tokens)
                forks[entry.request_id] = [twin.request(sequence) for sequence, twin in twins]
                sequences += twins
            for sequence, each in sequences:
                event = each.next(row, self._eos_ids)
                events.append(event)
                if event.finish_reason is not None:
                    ended.append(sequence)
        self._totals["sampled_tokens"] += len([event for event in events if event.token is not None])
        self._scheduler.commit(batch, ended=ended, forks=forks)
        for sequence in ended:
            self._let_go(sequence)
        return events

    def _refuse_last(self, batch: Batch, reason: str) -> TokenEvent:
        """A device had no memory for the step: the request that is last in order ends, and the others go on."""
        self._scheduler.withdraw(batch, lost=())
        last = self._scheduler.running[-1]
        self._scheduler.cancel(last)
        event = self._answers[last].end("error", reason)
        self._let_go(last)
        return event

    def _begin(self, answer: LoopAnswer, cached_tokens: int) -> list[tuple[int, LoopAnswer]]:
        """A prompt has been computed: its further answers, each with the number that the scheduler will know."""
        answer.cached_tokens = cached_tokens
        self._totals["prompt_tokens"] += answer.prompt_tokens
        self._totals["prefix_hit_tokens"] += cached_tokens
        return [(self._take_in(twin), twin) for twin in map(answer.twin, range(1, answer.options.num_answers))]

    def _choices(self, answers: Sequence[LoopAnswer], logits: Logits) -> Sequence[FloatArray | int]:
        """The logits of each answer, or its token where the step has chosen it, or a device can choose for all."""
        if isinstance(logits, np.ndarray):
            likeliest = self._executor.likeliest(len(answers))
            pairs = zip(answers, likeliest, strict=True)
            return [token if answer.is_greedy else logits[row] for row, (answer, token) in enumerate(pairs)]
        if answers and all(answer.needs_logits_alone for answer in answers):
            return logits.drawn([answer.sampler.draw() for answer in answers])
        return list(logits.rows())

    def _scheduled(self) -> Batch:
        """The next batch, for which all copies have been made. What a failing disk has lost is computed anew."""
        batch = self._schedule()
        while lost := {copy.sequence for copy in self._make(batch.copies) if copy.sequence is not None}:
            self._scheduler.withdraw(batch, lost=lost)
            batch = self._schedule()
        return batch

    def _schedule(self) -> Batch:
        """The next batch, whose pages have their memory."""
        if self._lender is None:
            return self._scheduler.schedule()
        if self._lender.has_borrowers:
            self._make(self._pages.give_up_cached(unused_turns=self._lender.patience_steps))
        batch = self._scheduler.schedule()
        self._lender.settle(self._pages)
        return batch

    def _make(self, copies: Sequence[PageCopy]) -> Sequence[PageCopy]:
        """Make copies; those that failed."""
        if not copies:
            return ()
        failed = self._executor.copy_pages(copies, self._tier)
        for copy in failed:
            if copy.way in ("save", "load"):
                self._pages.lose(copy)
        ways = Counter(copy.way for copy in copies)
        self._totals.update(
            swapped_pages=ways["out"], saved_pages=ways["save"], loaded_pages=ways["load"], failed_copies=len(failed)
        )
        return failed

    def _compute(self, batch: Batch, answers: Sequence[LoopAnswer], before_run: Callable[[Batch], None]) -> Logits:
        """The logits of the batch's entries, which are of these answers, that need them."""
        pairs = list(zip(batch.entries, answers, strict=True))
        tokens = [answer.tokens[entry.start_token : entry.start_token + entry.num_tokens] for entry, answer in pairs]
        begin = partial(before_run, batch)
        logits = self._executor.compute(batch, self._pages, np.concatenate(tokens), before_run=begin)
        if scored := {entry.request_id: answer.scored for entry, answer in pairs if answer.scored is not None}:
            logits = score_prompts(self._executor, batch, scored)
        self._totals["steps"] += 1
        self._totals["computed_tokens"] += batch.num_tokens
        self._totals["preemptions"] += len(batch.preempted)
        self._totals["read_bytes"] += self._read_bytes(batch)
        return logits

    def _take_in(self, answer: LoopAnswer) -> int:
        sequence, self._next_sequence = self._next_sequence, self._next_sequence + 1
        self._answers[sequence] = answer
        self._sequences[answer.request_id].append(sequence)
        return sequence

    def _let_go(self, sequence: int) -> None:
        request_id = self._answers.pop(sequence).request_id
        self._sequences[request_id].remove(sequence)
        if not self._sequences[request_id]:
            del self._sequences[request_id]

    def _read_bytes(self, batch: Batch) -> int:
        """Bytes that a step reads: the weights once, of experts those that its tokens were sent to, and each entry's
        keys and values as far as its windows reach.
        """
        total = self._weight_read_bytes + self._executor.routed_bytes
        ends = [entry.start_token + entry.num_tokens for entry in batch.entries]
        for group in self._plan.kv_groups:
            seen_tokens = sum(ends if group.window_tokens is None else [min(end, group.window_tokens) for end in ends])
            total += seen_tokens * group.page_bytes // self._plan.page_tokens * len(group.layers)
        return total
