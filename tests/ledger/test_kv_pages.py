import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from residency.errors import BudgetError
from residency.ledger import KvPages, PageCopy, PageGroup, PageKey
from residency.ledger.kv import pages_of_a_sequence
from residency.planner.memory import PAGE_RECORD_BYTES


def test_a_sequence_holds_pages_in_every_group() -> None:
    kv = KvPages([PageGroup(num_pages=4), PageGroup(num_pages=4, window_tokens=8)], page_tokens=4)
    kv.extend(7, start_token=0, num_tokens=9)
    assert [pool.num_used for pool in kv.pools] == [3, 3]


def test_pages_missing_in_one_group_are_taken_in_none() -> None:
    kv = KvPages([PageGroup(num_pages=9), PageGroup(num_pages=1)], page_tokens=4)
    with pytest.raises(BudgetError, match="2 pages of the KV cache are missing"):
        kv.extend(7, start_token=0, num_tokens=12)
    assert [pool.num_used for pool in kv.pools] == [0, 0]


def test_a_refused_sequence_stays_unknown() -> None:
    kv = KvPages([PageGroup(num_pages=0)], page_tokens=4)
    with pytest.raises(BudgetError):
        kv.extend(7, start_token=0, num_tokens=1)
    assert 7 not in kv.sequences


def test_pages_that_slide_out_make_room_for_the_next_ones() -> None:
    kv = KvPages([PageGroup(num_pages=2, window_tokens=4)], page_tokens=4)
    kv.extend(7, start_token=0, num_tokens=8)
    kv.extend(7, start_token=8, num_tokens=4)
    assert kv.sequences[7][0].first_page == 1


def test_an_ended_sequence_leaves_all_pages_free() -> None:
    kv = KvPages([PageGroup(num_pages=4), PageGroup(num_pages=4, window_tokens=2)], page_tokens=4)
    kv.extend(7, start_token=0, num_tokens=9)
    kv.free(7)
    assert [pool.num_used for pool in kv.pools] == [0, 0]


def letters(tokens: str) -> PageKey:
    """Names pages of four tokens, a letter each."""
    return lambda page: b"\0" + tokens[4 * page : 4 * page + 4].encode()


def computed(kv: KvPages, sequence: int, tokens: str, *, at_a_time: int = 4) -> None:
    """A new sequence of `tokens`, computed in chunks."""
    start = kv.begin(sequence, known_tokens=len(tokens), page_key=letters(tokens))
    for token in range(start, len(tokens), at_a_time):
        kv.extend(sequence, start_token=token, num_tokens=min(at_a_time, len(tokens) - token))
        kv.publish(sequence, computed_tokens=min(token + at_a_time, len(tokens)))


def test_a_sequence_begins_with_the_whole_pages_that_it_shares() -> None:
    kv = KvPages([PageGroup(num_pages=8)], page_tokens=4)
    computed(kv, 1, "aaaabbbbcc")
    assert kv.begin(2, known_tokens=10, page_key=letters("aaaabbxxcc")) == 4
    assert kv.sequences[2][0].pages == kv.sequences[1][0].pages[:1]


def test_the_last_known_token_is_always_left_to_compute() -> None:
    kv = KvPages([PageGroup(num_pages=8)], page_tokens=4)
    computed(kv, 1, "aaaabbbb")
    assert kv.begin(2, known_tokens=8, page_key=letters("aaaabbbb")) == 4


def test_a_prefix_outlives_its_sequences() -> None:
    kv = KvPages([PageGroup(num_pages=8)], page_tokens=4)
    computed(kv, 1, "aaaabbbbcc")
    kv.free(1)
    assert (kv.pools[0].num_used, kv.pools[0].num_cached) == (0, 2)
    assert kv.begin(2, known_tokens=9, page_key=letters("aaaabbbbx")) == 8


def test_the_end_of_a_prefix_that_nobody_holds_is_forgotten_first() -> None:
    kv = KvPages([PageGroup(num_pages=3)], page_tokens=4)
    computed(kv, 1, "aaaabbbbcccc")
    kv.free(1)
    kv.extend(2, start_token=0, num_tokens=5)
    kv.free(2)
    assert kv.begin(3, known_tokens=12, page_key=letters("aaaabbbbcccc")) == 4


def test_a_window_s_prefix_is_known_while_what_its_next_token_sees_is_kept() -> None:
    """With a window of 5 tokens, token 12 sees from token 8 on: the pages before have slid out and may go."""
    kv = KvPages([PageGroup(num_pages=9), PageGroup(num_pages=9, window_tokens=5)], page_tokens=4)
    computed(kv, 1, "aaaabbbbccccd")
    assert kv.begin(2, known_tokens=13, page_key=letters("aaaabbbbccccx")) == 12
    assert [len(table.pages) for table in kv.sequences[2]] == [3, 1]
    assert kv.sequences[2][1].first_page == 2


def test_a_window_s_prefix_without_what_its_next_token_sees_is_of_no_use() -> None:
    kv = KvPages([PageGroup(num_pages=9), PageGroup(num_pages=3, window_tokens=5)], page_tokens=4)
    computed(kv, 1, "aaaabbbbcccc")
    kv.free(1)
    computed(kv, 2, "xxxxyyyyz")
    kv.free(2)
    assert kv.begin(3, known_tokens=12, page_key=letters("aaaabbbbcccc")) == 0


def test_a_sequence_takes_over_what_another_has_published_since_it_began() -> None:
    kv = KvPages([PageGroup(num_pages=9)], page_tokens=4)
    kv.begin(1, known_tokens=12, page_key=letters("aaaabbbbcccc"))
    computed(kv, 2, "aaaabbbbx")
    assert kv.catch_up(1, computed_tokens=0, known_tokens=12) == 8
    assert kv.pools[0].num_shared == 2


def test_a_twin_s_page_is_copied_by_the_first_that_writes_to_it_and_not_by_the_last() -> None:
    kv = KvPages([PageGroup(num_pages=9)], page_tokens=4)
    kv.extend(1, start_token=0, num_tokens=6)
    kv.fork(1, 2)
    assert kv.extend(1, start_token=6, num_tokens=1) == [PageCopy(group=0, source=1, target=2)]
    assert kv.extend(2, start_token=6, num_tokens=1) == []


@given(
    total=st.integers(1, 120),
    page=st.integers(1, 9),
    window=st.none() | st.integers(1, 40),
    chunk=st.integers(1, 30),
    data=st.data(),
)
def test_the_forecast_pages_of_a_sequence_suffice_however_it_is_chunked(
    total: int, page: int, window: int | None, chunk: int, data: st.DataObject
) -> None:
    num_pages = pages_of_a_sequence(total, page_tokens=page, window_tokens=window, chunk_tokens=chunk)
    kv = KvPages([PageGroup(num_pages=num_pages, window_tokens=window)], page_tokens=page)
    start = 0
    while start < total:
        num_tokens = min(total - start, data.draw(st.integers(1, chunk)))
        kv.extend(0, start_token=start, num_tokens=num_tokens)
        start += num_tokens
    assert kv.sequences[0][0].capacity_tokens >= total


def test_a_cached_page_is_remembered_in_the_bytes_that_plans_have_for_it() -> None:
    num_pages = 512
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        pages = KvPages([PageGroup(num_pages=num_pages)], page_tokens=16)
        pages.begin(0, known_tokens=16 * num_pages, page_key=lambda page: bytes(61) + page.to_bytes(4))
        pages.extend(0, start_token=0, num_tokens=16 * num_pages)
        pages.publish(0, computed_tokens=16 * num_pages)
        pages.free(0)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pages.pools[0].num_cached == num_pages
    assert after - before <= PAGE_RECORD_BYTES * num_pages
