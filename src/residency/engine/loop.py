"""The loop: schedule, compute, sample, commit. The same scheduler serves one request and many."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from residency.engine.executor import Executor, Logits
from residency.engine.generation import FinishReason, GenerationOptions, TokenEvent, TokenLogprob
from residency.engine.kv_store import KvStoreSpace
from residency.engine.lending import Lender
from residency.engine.metrics import LoopCounts
from residency.engine.sampler import FloatArray, Sampler, allowed_by
from residency.engine.scoring import ScoredPrompt, score_prompts, token_logprobs
from residency.engine.swap import SwapSpace
from residency.engine.tiers import NextTier
from residency.errors import BudgetError, UsageError
from residency.ledger import KvPages, PageCopy
from residency.ledger.groups import PageGroup
from residency.planner.plan import Plan
from residency.scheduler import Admission, Batch, BatchEntry, Request, Scheduler


@dataclass
class _Answer:
    """One answer's tokens, the prompt's and the sampled ones, in an array with room for all."""

    request_id: int
    number: int
    options: GenerationOptions
    tokens: npt.NDArray[np.int64]
    prompt_tokens: int
    known_tokens: int
    sampler: Sampler
    page_tokens: int
    scored: ScoredPrompt | None
    cached_tokens: int = 0
    needs_logits_alone: bool = field(init=False)  # as all that is told of the next token, so that a device can choose
    is_greedy: bool = field(init=False)  # and it is the likeliest

    def __post_init__(self) -> None:
        asked = self.options
        tells = asked.logprobs is not None or asked.num_answers > 1 or asked.logit_mask is not None
        self.needs_logits_alone = self.sampler.needs_logits_alone and not tells
        self.is_greedy = self.needs_logits_alone and asked.sampling.temperature == 0.0

    def sample(self, logits: FloatArray | int) -> int:
        """The next token, which is known from now on: of these logits, or the one that a device chose. UsageError where
        the logit mask fails or allows none.
        """
        token = logits if isinstance(logits, int) else self._sampled(logits)
        self.tokens[self.known_tokens] = token
        self.known_tokens += 1
        return token

    def _sampled(self, logits: FloatArray) -> int:
        known = self.tokens[: self.known_tokens]
        allowed = self._allowed(known, len(logits))
        return self.sampler.sample(logits, known, prompt_tokens=self.prompt_tokens, allowed=allowed)

    def _allowed(self, known: npt.NDArray[np.int64], vocabulary: int) -> npt.NDArray[np.bool_] | None:
        if self.options.logit_mask is None:
            return None
        try:
            allowed = allowed_by(self.options.logit_mask(known[self.prompt_tokens :].tolist()), vocabulary)
        except Exception as error:  # it is the caller's code
            raise UsageError(f"the logit mask failed: {error}") from error
        if not allowed.any():
            raise UsageError("the logit mask allows no token.")
        return allowed

    def page_key(self, page: int) -> bytes:
        """How many of a page's tokens were sampled, the tokens, and for the first page the salt.

        Sampled tokens are computed in another way than the same ones in a prompt, with a result that may be rounded
        differently; what a request gets shall not depend on what is cached.
        """
        start, end = page * self.page_tokens, (page + 1) * self.page_tokens
        num_sampled = min(self.page_tokens, max(0, end - self.prompt_tokens))
        tokens = self.tokens[start:end].astype(np.int32).tobytes()
        salt = b"" if page else self.options.cache_salt.encode("utf-8", "surrogatepass")
        return num_sampled.to_bytes() + tokens + salt

    def request(self, sequence: int, num_answers: int = 1) -> Request:
        """What the scheduler is asked for."""
        return Request(
            request_id=sequence,
            prompt_tokens=self.prompt_tokens,
            wanted_tokens=self.options.max_tokens,
            priority=self.options.priority,
            num_answers=num_answers,
            page_key=self.page_key if self.options.shares_pages else None,
        )

    def twin(self, number: int) -> "_Answer":
        """Another answer, of which nothing but the prompt is known."""
        sampler = Sampler(self.options.sampling, answer=number)
        return replace(self, number=number, tokens=self.tokens.copy(), known_tokens=self.prompt_tokens, sampler=sampler)


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
        self._answers: dict[int, _Answer] = {}  # by the number that the scheduler knows
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
        answer = _Answer(
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

    def step(self, before_run: Callable[[], None] = lambda: None) -> list[TokenEvent]:
        """One step; what it gave. `before_run` is called just before the kernels, so that whom it wakes runs beside
        them and does not hold the step up.
        """
        batch = self._scheduled()
        try:
            logits = self._compute(batch, before_run)
        except BudgetError as error:
            return [self._refuse_last(batch, str(error))]
        events: list[TokenEvent] = []
        ended: list[int] = []
        forks: dict[int, list[Request]] = {}
        wanted = [entry for entry in batch.entries if entry.needs_logits]
        for entry, row in zip(wanted, self._choices(wanted, logits), strict=True):
            answer = self._answers[entry.request_id]
            answers = {entry.request_id: answer}
            if answer.known_tokens == answer.prompt_tokens:
                answer.cached_tokens = entry.cached_tokens
                self._totals["prompt_tokens"] += answer.prompt_tokens
                self._totals["prefix_hit_tokens"] += entry.cached_tokens
                twins = {self._take_in(twin): twin for twin in map(answer.twin, range(1, answer.options.num_answers))}
                forks[entry.request_id] = [twin.request(sequence) for sequence, twin in twins.items()]
                answers |= twins
            for sequence, each in answers.items():
                event = self._sampled(each, row)
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
        event = _end(self._answers[last], "error", reason)
        self._let_go(last)
        return event

    def _choices(self, wanted: Sequence[BatchEntry], logits: Logits) -> Sequence[FloatArray | int]:
        """The logits of each entry, or its token where the step has chosen it, or a device can choose for all."""
        answers = [self._answers[entry.request_id] for entry in wanted]
        if isinstance(logits, np.ndarray):
            likeliest = self._executor.likeliest(len(wanted))
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

    def _compute(self, batch: Batch, before_run: Callable[[], None]) -> Logits:
        """The logits of the batch's entries that need them."""
        answers = [(entry, self._answers[entry.request_id]) for entry in batch.entries]
        tokens = [answer.tokens[entry.start_token : entry.start_token + entry.num_tokens] for entry, answer in answers]
        logits = self._executor.compute(batch, self._pages, np.concatenate(tokens), before_run=before_run)
        if scored := {entry.request_id: answer.scored for entry, answer in answers if answer.scored is not None}:
            logits = score_prompts(self._executor, batch, scored)
        self._totals["steps"] += 1
        self._totals["computed_tokens"] += batch.num_tokens
        self._totals["preemptions"] += len(batch.preempted)
        self._totals["read_bytes"] += self._read_bytes(batch)
        return logits

    def _take_in(self, answer: _Answer) -> int:
        sequence, self._next_sequence = self._next_sequence, self._next_sequence + 1
        self._answers[sequence] = answer
        self._sequences[answer.request_id].append(sequence)
        return sequence

    def _let_go(self, sequence: int) -> None:
        request_id = self._answers.pop(sequence).request_id
        self._sequences[request_id].remove(sequence)
        if not self._sequences[request_id]:
            del self._sequences[request_id]

    def _sampled(self, answer: _Answer, logits: FloatArray | int) -> TokenEvent:
        """The answer's next token, or its end where none can be sampled."""
        try:
            token = answer.sample(logits)
        except Exception as error:  # one answer's fault ends no other
            return _end(answer, "error", str(error))
        is_first = answer.known_tokens == answer.prompt_tokens + 1
        at_eos = token in self._eos_ids and not answer.options.ignore_eos
        at_length = answer.known_tokens == len(answer.tokens)
        logprob: float | None = None
        top: tuple[TokenLogprob, ...] = ()
        if answer.options.logprobs is not None and not isinstance(logits, int):
            logprob, top = token_logprobs(logits, token, answer.options.logprobs)
        return TokenEvent(
            request_id=answer.request_id,
            answer=answer.number,
            token=token,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            finish_reason="stop" if at_eos else "length" if at_length else None,
            logprob=logprob,
            top_logprobs=top,
            prompt_logprobs=answer.scored.logprobs if is_first and answer.scored is not None else None,
        )

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


def _end(answer: _Answer, reason: FinishReason, error: str | None = None) -> TokenEvent:
    return TokenEvent(
        request_id=answer.request_id,
        answer=answer.number,
        token=None,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        finish_reason=reason,
        error=error,
    )
