"""How much of the KV cache holds nothing, beside a scheme that gives each sequence its whole context."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from residency.ledger import KvPages, PageGroup
from residency.scheduler import Request, Scheduler

PAGE_TOKENS = 16
CONTEXT_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens' worth of memory in one step."""

    held_tokens: int
    paged_tokens: int
    contiguous_tokens: int


def mixed_workload(requests: int, seed: int) -> Iterator[Request]:
    """Prompts and answers of 16 to 512 tokens, short ones more often (log-uniform)."""
    random = Random(seed)
    for request_id in range(requests):
        prompt, answer = (round(16 * 32 ** random.random()) for _ in range(2))
        yield Request(request_id=request_id, prompt_tokens=prompt, wanted_tokens=answer)


def usage_by_step(*, max_sequences: int = 16, requests: int = 120) -> Iterator[Usage]:
    """The workload, run on paper with room for all."""
    pages = KvPages([PageGroup(num_pages=max_sequences * CONTEXT_TOKENS // PAGE_TOKENS)], page_tokens=PAGE_TOKENS)
    scheduler = Scheduler(pages, chunk_tokens=256, max_sequences=max_sequences, context_tokens=CONTEXT_TOKENS)
    for request in mixed_workload(requests, seed=0):
        scheduler.add(request)
    while scheduler.has_work:
        batch = scheduler.schedule()
        ending_tokens = {entry.request_id: entry.start_token + entry.num_tokens for entry in batch.entries}
        yield Usage(
            held_tokens=sum(ending_tokens.values()),
            paged_tokens=sum(PAGE_TOKENS * len(pages.sequences[each][0].pages) for each in ending_tokens),
            contiguous_tokens=CONTEXT_TOKENS * len(ending_tokens),
        )
        scheduler.commit(batch)


def test_pages_waste_less_than_four_percent_and_whole_contexts_most() -> None:
    steps = list(usage_by_step())
    held_tokens = sum(step.held_tokens for step in steps)
    assert 1 - held_tokens / sum(step.paged_tokens for step in steps) < 0.04
    assert 1 - held_tokens / sum(step.contiguous_tokens for step in steps) > 0.6
