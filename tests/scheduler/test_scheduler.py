from collections.abc import Sequence

import pytest

from residency.errors import BudgetError, ContextError, UsageError
from residency.ledger import KvPages, PageGroup
from residency.scheduler import Admission, Batch, Request, Scheduler


def scheduler(
    *,
    num_pages: int = 100,
    chunk_tokens: int = 8,
    max_sequences: int = 4,
    context_tokens: int = 64,
    admission: Admission = "optimistic",
) -> Scheduler:
    pages = KvPages([PageGroup(num_pages=num_pages)], page_tokens=4)
    return Scheduler(
        pages,
        chunk_tokens=chunk_tokens,
        max_sequences=max_sequences,
        context_tokens=context_tokens,
        admission=admission,
    )


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


def test_a_more_urgent_request_takes_the_seat_of_the_last() -> None:
    one = scheduler(max_sequences=2)
    for request_id, priority in ((1, 1), (2, 1)):
        one.add(request(request_id, priority=priority))
    one.commit(one.schedule())
    one.add(request(3, priority=0))
    assert one.schedule().preempted == (2,)
    assert one.running == (3, 1)


def test_what_was_guaranteed_its_pages_keeps_its_seat_before_the_more_urgent() -> None:
    one = scheduler(max_sequences=1, admission="guaranteed")
    one.add(request(1, priority=1))
    one.commit(one.schedule())
    one.add(request(2, priority=0))
    one.schedule()
    assert one.running == (1,)


def test_without_pages_the_last_request_gives_up_its_own_and_begins_anew() -> None:
    one = scheduler(num_pages=8, chunk_tokens=16, max_sequences=16)
    one.add(request(1, prompt_tokens=4, wanted_tokens=28))
    one.add(request(2, prompt_tokens=8, wanted_tokens=24))
    batch = one.schedule()
    while not batch.preempted:
        one.commit(batch)
        batch = one.schedule()
    assert (batch.preempted, one.waiting) == ((2,), (2,))
    assert entries(batch) == [(1, 16, 1, True)]
    one.commit(batch, ended=[1])
    again = one.schedule()
    assert entries(again) == [(2, 0, 8, False)]
    one.commit(again)
    assert entries(one.schedule()) == [(2, 8, 9, True)]


def test_an_answer_is_computed_again_by_no_more_tokens_at_a_time_than_there_are_sequences() -> None:
    one = scheduler(num_pages=8, chunk_tokens=16, max_sequences=2)
    one.add(request(1, prompt_tokens=4, wanted_tokens=28))
    one.add(request(2, prompt_tokens=8, wanted_tokens=24))
    sampled = []
    while one.has_work:
        batch = one.schedule()
        sampled.append(sum(entry.num_tokens for entry in batch.entries if not entry.of_prompt))
        one.commit(batch)
    assert max(sampled) == 2


def test_a_request_starts_only_where_those_that_run_can_go_on_for_a_while() -> None:
    """Two pages are left to the first one's answer; the prompt of the second needs two more."""
    one = scheduler(num_pages=4, chunk_tokens=16)
    one.add(request(1, prompt_tokens=4, wanted_tokens=4))
    one.commit(one.schedule())
    one.add(request(2, prompt_tokens=8, wanted_tokens=4))
    one.commit(one.schedule())
    assert (one.running, one.waiting) == ((1,), (2,))


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


def steps_until(one: Scheduler, request_id: int) -> int:
    """Steps until a request samples a token."""
    for step in range(1, 1000):
        batch = one.schedule()
        one.commit(batch)
        if any(entry.request_id == request_id and entry.needs_logits for entry in batch.entries):
            return step
    raise AssertionError("never")


@pytest.mark.parametrize("prompt_tokens", [1, 100, 128, 256])
def test_a_prompt_that_comes_while_a_long_one_is_computed_waits_two_chunks_at_most(prompt_tokens: int) -> None:
    one = scheduler(num_pages=4000, chunk_tokens=256, max_sequences=4, context_tokens=8000)
    one.add(request(1, prompt_tokens=4096))
    one.commit(one.schedule())
    one.add(request(2, prompt_tokens=prompt_tokens))
    assert steps_until(one, 2) <= 2


def test_a_short_prompt_ends_in_a_step_of_half_a_chunk_of_the_long_one_before_it() -> None:
    one = scheduler(num_pages=4000, chunk_tokens=256, max_sequences=2, context_tokens=8000)
    one.add(request(1, prompt_tokens=4096))
    one.commit(one.schedule())
    one.add(request(2, prompt_tokens=16))
    assert entries(one.schedule()) == [(1, 256, 128, False), (2, 0, 16, True)]


def test_a_long_prompt_advances_however_many_short_ones_come() -> None:
    one = scheduler(num_pages=4000, chunk_tokens=256, max_sequences=100, context_tokens=8000)
    one.add(request(0, prompt_tokens=4096, wanted_tokens=1))
    for step in range(1, 33):
        one.add(request(step, prompt_tokens=200, wanted_tokens=1))
        batch = one.schedule()
        one.commit(batch)
        assert batch.num_tokens == 256
    assert 0 not in one.running


def test_prompts_of_equal_length_are_computed_one_after_the_other() -> None:
    one = scheduler(num_pages=400, chunk_tokens=16, max_sequences=4, context_tokens=100)
    for request_id in (1, 2):
        one.add(request(request_id, prompt_tokens=32))
    assert entries(one.schedule()) == [(1, 0, 16, False)]


def keyed(request_id: int, tokens: str, wanted_tokens: int = 4) -> Request:
    """A request whose prompt is `tokens`, a letter each."""
    return Request(
        request_id=request_id,
        prompt_tokens=len(tokens),
        wanted_tokens=wanted_tokens,
        page_key=lambda page: b"\0" + tokens[4 * page : 4 * page + 4].encode(),
    )


def test_a_prompt_waits_while_another_computes_what_it_needs() -> None:
    one = scheduler(chunk_tokens=16)
    one.add(keyed(1, "aaaabbbbx"))
    one.add(keyed(2, "aaaabbbby"))
    first = one.schedule()
    one.commit(first)
    assert entries(first) == [(1, 0, 9, True)]
    assert entries(one.schedule()) == [(1, 9, 1, True), (2, 8, 1, True)]


def test_an_entry_says_how_many_tokens_of_its_prompt_others_had_computed() -> None:
    one = scheduler(chunk_tokens=16)
    one.add(keyed(1, "aaaabbbbx"))
    one.commit(one.schedule())
    one.add(keyed(2, "aaaabbbby"))
    assert [entry.cached_tokens for entry in one.schedule().entries] == [0, 8]


def test_a_prompt_that_goes_on_stops_at_the_end_of_a_page() -> None:
    one = scheduler(chunk_tokens=11)
    one.add(keyed(1, "aaaabbbbccccdddd"))
    assert entries(one.schedule()) == [(1, 0, 8, False)]


def test_answers_to_one_prompt_share_its_pages_and_copy_the_one_that_they_write_to() -> None:
    one = scheduler(num_pages=4, chunk_tokens=16)
    one.add(Request(request_id=1, prompt_tokens=6, wanted_tokens=4, num_answers=2))
    one.commit(one.schedule(), forks={1: [request(2, prompt_tokens=6)]})
    batch = one.schedule()
    assert entries(batch) == [(1, 6, 1, True), (2, 6, 1, True)]
    assert [(copy.source, copy.target) for copy in batch.copies] == [(1, 2)]


def test_more_answers_than_run_at_one_time_are_refused() -> None:
    with pytest.raises(UsageError, match="3 answers cannot run at one time; ask for at most 2"):
        scheduler(max_sequences=2).add(Request(request_id=1, prompt_tokens=2, wanted_tokens=4, num_answers=3))


def test_guaranteed_admission_starts_nothing_that_might_lack_pages_later() -> None:
    """Each request needs one page now and three at its end; there are five."""
    one = scheduler(num_pages=5, admission="guaranteed")
    for request_id in (1, 2):
        one.add(request(request_id, prompt_tokens=4, wanted_tokens=8))
    one.schedule()
    assert (one.running, one.waiting) == ((1,), (2,))


def test_guaranteed_admission_refuses_answers_that_cannot_all_be_held() -> None:
    with pytest.raises(BudgetError, match="too few pages for 2 answers of 12 tokens"):
        scheduler(num_pages=5, admission="guaranteed").add(
            Request(request_id=1, prompt_tokens=4, wanted_tokens=8, num_answers=2)
        )
