from collections.abc import Sequence

import pytest

from residency.errors import BudgetError, ContextError, UsageError
from residency.ledger import KvPages, PageGroup
from residency.scheduler import Batch, Request, Scheduler


def scheduler(
    *, num_pages: int = 100, chunk_tokens: int = 8, max_sequences: int = 4, context_tokens: int = 64
) -> Scheduler:
    pages = KvPages([PageGroup(num_pages=num_pages)], page_tokens=4)
    return Scheduler(pages, chunk_tokens=chunk_tokens, max_sequences=max_sequences, context_tokens=context_tokens)


def request(request_id: int, prompt_tokens: int = 4, wanted_tokens: int = 4, priority: int = 0) -> Request:
    return Request(request_id=request_id, prompt_tokens=prompt_tokens, wanted_tokens=wanted_tokens, priority=priority)


def entries(batch: Batch) -> Sequence[tuple[int, int, int, bool]]:
    return [(e.request_id, e.start_token, e.num_tokens, e.needs_logits) for e in batch.entries]


def test_a_long_prompt_is_computed_in_chunks_and_only_the_last_needs_logits() -> None:
    one = scheduler()
    one.add(request(1, prompt_tokens=18))
    seen: list[tuple[int, int, int, bool]] = []
    for _ in range(3):
        batch = one.schedule()
        seen += entries(batch)
        one.commit(batch)
    assert seen == [(1, 0, 8, False), (1, 8, 8, False), (1, 16, 2, True)]


def test_a_request_ends_with_the_tokens_it_wanted() -> None:
    one = scheduler()
    one.add(request(1, wanted_tokens=3))
    ended = [tuple(one.commit(one.schedule())) for _ in range(3)]
    assert ended == [(), (), (1,)]
    assert not one.has_work


def test_a_request_that_sampled_its_end_ends_early() -> None:
    one = scheduler()
    one.add(request(1, wanted_tokens=30))
    assert one.commit(one.schedule(), ended=[1]) == (1,)


def test_decoding_requests_come_before_prompts_in_a_step() -> None:
    one = scheduler()
    one.add(request(1, prompt_tokens=4))
    one.commit(one.schedule())
    one.add(request(2, prompt_tokens=30))
    assert entries(one.schedule()) == [(1, 4, 1, True), (2, 0, 7, False)]


def test_no_more_sequences_run_than_were_planned() -> None:
    one = scheduler(max_sequences=2)
    for request_id in (1, 2, 3):
        one.add(request(request_id, prompt_tokens=1))
    one.schedule()
    assert (one.running, one.waiting) == ((1, 2), (3,))


def test_a_smaller_priority_runs_sooner() -> None:
    one = scheduler(max_sequences=1)
    one.add(request(1, priority=5))
    one.add(request(2, priority=1))
    one.schedule()
    assert one.running == (2,)


def test_without_pages_the_last_request_gives_up_its_own_and_begins_anew() -> None:
    one = scheduler(num_pages=3, chunk_tokens=16)
    one.add(request(1, prompt_tokens=4, wanted_tokens=8))
    one.add(request(2, prompt_tokens=8, wanted_tokens=4))
    one.commit(one.schedule())
    batch = one.schedule()
    assert (batch.preempted, one.waiting) == ((2,), (2,))
    one.commit(batch, ended=[1])
    again = one.schedule()
    assert entries(again) == [(2, 0, 8, False)]
    one.commit(again)
    assert entries(one.schedule()) == [(2, 8, 1, True)]


def test_what_was_sampled_is_computed_apart_from_the_prompt_and_before_prompts() -> None:
    one = scheduler(chunk_tokens=16)
    one.add(request(1, prompt_tokens=4, wanted_tokens=8))
    one.commit(one.schedule())
    one.add(request(2, prompt_tokens=8, wanted_tokens=4, priority=-1))
    assert [(entry.request_id, entry.of_prompt) for entry in one.schedule().entries] == [(1, False), (2, True)]


def test_a_request_longer_than_the_context_is_refused_by_how_much() -> None:
    with pytest.raises(ContextError, match=r"are 2 over the context of 64.*--context 66"):
        scheduler().add(request(1, prompt_tokens=60, wanted_tokens=6))


def test_a_request_that_no_page_count_could_hold_is_refused() -> None:
    with pytest.raises(BudgetError, match="too few pages for 20 tokens"):
        scheduler(num_pages=4).add(request(1, prompt_tokens=16, wanted_tokens=4))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError):
        scheduler().add(request(1, prompt_tokens=0))


def test_an_id_in_use_is_refused() -> None:
    one = scheduler()
    one.add(request(1))
    with pytest.raises(ValueError, match="has not ended"):
        one.add(request(1))


def test_a_batch_is_committed_before_the_next_is_scheduled() -> None:
    one = scheduler()
    one.add(request(1))
    one.schedule()
    with pytest.raises(ValueError, match="commit the batch"):
        one.schedule()


def test_a_batch_is_committed_once() -> None:
    one = scheduler()
    one.add(request(1))
    batch = one.schedule()
    one.commit(batch)
    with pytest.raises(ValueError, match="scheduled last"):
        one.commit(batch)


def test_a_request_cancelled_in_flight_is_forgotten() -> None:
    one = scheduler()
    one.add(request(1))
    batch = one.schedule()
    one.cancel(1)
    assert (one.commit(batch), one.has_work) == ((), False)


def test_an_unknown_request_cannot_be_cancelled() -> None:
    with pytest.raises(KeyError):
        scheduler().cancel(1)
