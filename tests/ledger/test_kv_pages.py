import pytest
from hypothesis import given
from hypothesis import strategies as st

from residency.errors import BudgetError
from residency.ledger import KvPages, PageGroup
from residency.ledger.kv import pages_of_a_sequence


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
