"""The loop: schedule, compute, sample, commit. The same scheduler serves one request and many."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.engine.executor import CpuExecutor
from residency.engine.generation import FinishReason, GenerationOptions, TokenEvent, TokenLogprob
from residency.engine.metrics import LoopCounts
from residency.engine.sampler import FloatArray, Sampler, allowed_by, likeliest, log_probabilities
from residency.ledger import KvPages
from residency.ledger.kv import PageGroup
from residency.planner.plan import Plan
from residency.scheduler import Batch, Request, Scheduler


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

    def sample(self, logits: FloatArray) -> int:
        """The next token, which is known from now on. Whatever the logit mask raises."""
        known = self.tokens[: self.known_tokens]
        mask = self.options.logit_mask
        allowed = None if mask is None else allowed_by(mask(known[self.prompt_tokens :].tolist()), len(logits))
        token = self.sampler.sample(logits, known, prompt_tokens=self.prompt_tokens, allowed=allowed)
        self.tokens[self.known_tokens] = token
        self.known_tokens += 1
        return token


class Loop:
    """Requests in, tokens out, one step at a time."""

    def __init__(self, plan: Plan, executor: CpuExecutor, *, eos_ids: frozenset[int], weight_read_bytes: int) -> None:
        self._plan = plan
        self._executor = executor
        self._eos_ids = eos_ids
        self._weight_read_bytes = weight_read_bytes
        groups = [PageGroup(num_pages=g.num_pages, window_tokens=g.window_tokens) for g in plan.kv_groups]
        self._pages = KvPages(groups, page_tokens=plan.page_tokens)
        self._scheduler = Scheduler(
            self._pages,
            chunk_tokens=plan.chunk_tokens,
            max_sequences=plan.max_sequences,
            context_tokens=plan.context_tokens,
        )
        self._answers: dict[int, _Answer] = {}
        self._next_id = 0
        self.read_bytes = 0  # of all steps: weights, keys and values
        self.compute_seconds = 0.0  # of all steps, in kernels

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return self._scheduler.has_work

    @property
    def kv_bytes(self) -> int:
        """The most bytes of the KV cache that were in use at one time."""
        used = zip(self._plan.kv_groups, self._pages.pools, strict=True)
        return sum(pool.peak_used * group.page_bytes * len(group.layers) for group, pool in used)

    def check(self, prompt_tokens: int, options: GenerationOptions) -> None:
        """ContextError, BudgetError or UsageError for what `submit` would refuse; any thread may ask at any time."""
        self._scheduler.check(Request(request_id=0, prompt_tokens=prompt_tokens, wanted_tokens=options.max_tokens))

    def submit(self, prompt: Sequence[int], options: GenerationOptions, *, request_id: int | None = None) -> int:
        """Take a request in and give its number, which the caller may choose. See `check` for what is refused."""
        if request_id is None:
            request_id, self._next_id = self._next_id, self._next_id + 1
        self._scheduler.add(
            Request(
                request_id=request_id,
                prompt_tokens=len(prompt),
                wanted_tokens=options.max_tokens,
                priority=options.priority,
            )
        )
        tokens = np.empty(len(prompt) + options.max_tokens, np.int64)
        tokens[: len(prompt)] = prompt
        sampler = Sampler(options.sampling)
        self._answers[request_id] = _Answer(request_id, 0, options, tokens, len(prompt), len(prompt), sampler)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Forget a request, wherever it is; nothing happens for one that has ended."""
        if self._answers.pop(request_id, None) is not None:
            self._scheduler.cancel(request_id)

    def counts(self) -> LoopCounts:
        """The state between two steps."""
        pools = self._pages.pools
        return LoopCounts(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            pages=sum(pool.num_pages for pool in pools),
            used_pages=sum(pool.num_used for pool in pools),
            read_bytes=self.read_bytes,
        )

    def step(self) -> list[TokenEvent]:
        """One step; what it gave."""
        batch = self._scheduler.schedule()
        tokens = np.concatenate(
            [
                self._answers[entry.request_id].tokens[entry.start_token : entry.start_token + entry.num_tokens]
                for entry in batch.entries
            ]
        )
        started = time.perf_counter()
        logits = self._executor.compute(batch, self._pages, tokens)
        self.compute_seconds += time.perf_counter() - started
        self.read_bytes += self._read_bytes(batch)
        wanted = [entry.request_id for entry in batch.entries if entry.needs_logits]
        events = [self._sampled(self._answers[key], row) for key, row in zip(wanted, logits, strict=True)]
        ended = [key for key, event in zip(wanted, events, strict=True) if event.is_last]
        self._scheduler.commit(batch, ended=ended)
        for key in ended:
            del self._answers[key]
        return events

    def _sampled(self, answer: _Answer, logits: FloatArray) -> TokenEvent:
        """The answer's next token; its end where a logit mask fails."""
        try:
            token = answer.sample(logits)
        except Exception as error:  # the mask is the caller's code: one request's fault ends no other
            return _end(answer, "error", f"the logit mask failed: {error}")
        at_eos = token in self._eos_ids and not answer.options.ignore_eos
        at_length = answer.known_tokens == len(answer.tokens)
        logprob: float | None = None
        top: tuple[TokenLogprob, ...] = ()
        if answer.options.logprobs is not None:
            logprob, top = _logprobs(logits, token, answer.options.logprobs)
        return TokenEvent(
            request_id=answer.request_id,
            answer=answer.number,
            token=token,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=0,
            finish_reason="stop" if at_eos else "length" if at_length else None,
            logprob=logprob,
            top_logprobs=top,
        )

    def _read_bytes(self, batch: Batch) -> int:
        """Bytes that a step reads: the weights once, and each entry's keys and values as far as its windows reach."""
        total = self._weight_read_bytes
        for entry in batch.entries:
            for group in self._plan.kv_groups:
                seen_tokens = entry.start_token + entry.num_tokens
                if group.window_tokens is not None:
                    seen_tokens = min(seen_tokens, group.window_tokens)
                total += seen_tokens * group.page_bytes // self._plan.page_tokens * len(group.layers)
        return total


def _logprobs(logits: FloatArray, token: int, num_likeliest: int) -> tuple[float, tuple[TokenLogprob, ...]]:
    """The log probability of `token`, and the likeliest tokens with theirs."""
    tokens = np.concatenate([[token], likeliest(logits, num_likeliest) if num_likeliest else []]).astype(np.int64)
    values = log_probabilities(logits, tokens).tolist()
    pairs = zip(tokens[1:].tolist(), values[1:], strict=True)
    return values[0], tuple(TokenLogprob(token=each, logprob=value) for each, value in pairs)


def _end(answer: _Answer, reason: FinishReason, error: str | None = None) -> TokenEvent:
    return TokenEvent(
        request_id=answer.request_id,
        answer=answer.number,
        token=None,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=0,
        finish_reason=reason,
        error=error,
    )
