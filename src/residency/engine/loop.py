"""The loop: schedule, compute, sample, commit. The same scheduler serves one request and many."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.engine.executor import CpuExecutor
from residency.engine.sampler import Sampler, Sampling
from residency.ledger import KvPages
from residency.ledger.kv import PageGroup
from residency.planner.plan import Plan
from residency.scheduler import Batch, Request, Scheduler


@dataclass
class _Running:
    """A request's tokens, the prompt's and the sampled ones, in an array with room for all."""

    tokens: npt.NDArray[np.int64]
    known_tokens: int
    sampler: Sampler
    ignore_eos: bool

    def add(self, token: int) -> None:
        self.tokens[self.known_tokens] = token
        self.known_tokens += 1


@dataclass(frozen=True)
class Sampled:
    """A token that a step sampled."""

    request_id: int
    token: int
    is_last: bool


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
        self._running: dict[int, _Running] = {}
        self._next_id = 0
        self.read_bytes = 0  # of all steps: weights, keys and values

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return self._scheduler.has_work

    @property
    def kv_bytes(self) -> int:
        """The most bytes of the KV cache that were in use at one time."""
        used = zip(self._plan.kv_groups, self._pages.pools, strict=True)
        return sum(pool.peak_used * group.page_bytes * len(group.layers) for group, pool in used)

    def submit(self, prompt: Sequence[int], max_tokens: int, sampling: Sampling, *, ignore_eos: bool = False) -> int:
        """Take a request in and give its number; with `ignore_eos` it ends only at max_tokens.

        ContextError, BudgetError or UsageError as the scheduler says.
        """
        request_id, self._next_id = self._next_id, self._next_id + 1
        self._scheduler.add(Request(request_id=request_id, prompt_tokens=len(prompt), wanted_tokens=max_tokens))
        tokens = np.empty(len(prompt) + max_tokens, np.int64)
        tokens[: len(prompt)] = prompt
        self._running[request_id] = _Running(tokens, len(prompt), Sampler(sampling), ignore_eos)
        return request_id

    def cancel(self, request_id: int) -> None:
        """Forget a request, wherever it is; nothing happens for one that has ended."""
        if self._running.pop(request_id, None) is not None:
            self._scheduler.cancel(request_id)

    def step(self) -> list[Sampled]:
        """One step; the tokens that it sampled."""
        batch = self._scheduler.schedule()
        tokens = np.concatenate(
            [
                self._running[entry.request_id].tokens[entry.start_token : entry.start_token + entry.num_tokens]
                for entry in batch.entries
            ]
        )
        logits = self._executor.compute(batch, self._pages, tokens)
        self.read_bytes += self._read_bytes(batch)
        sampled = []
        wanted = [entry.request_id for entry in batch.entries if entry.needs_logits]
        for row, request_id in zip(logits, wanted, strict=True):
            running = self._running[request_id]
            token = running.sampler.sample(row, running.tokens[: running.known_tokens])
            running.add(token)
            at_eos = token in self._eos_ids and not running.ignore_eos
            is_last = at_eos or running.known_tokens == len(running.tokens)
            sampled.append(Sampled(request_id, token, is_last))
        ended = [each.request_id for each in sampled if each.is_last]
        self._scheduler.commit(batch, ended=ended)
        for request_id in ended:
            del self._running[request_id]
        return sampled

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
