"""What pages leave unused is lent to weights, and called back."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from residency.planner.lending import Lending
from residency.planner.streaming import Streaming

PLANNED = Streaming(
    slots=2, slot_bytes=100, span_bytes=(100,) * 20, streamed=tuple(range(0, 20, 2)), disk_bytes_per_second=100.0
)
LENDING = Lending(streaming=PLANNED, pool_bytes=1000, reserve_bytes=150)
CALM = 1000


def lent(used_bytes: int, lent_bytes: int, calm_steps: int = CALM) -> int:
    return LENDING.lent_bytes(used_bytes=used_bytes, lent_bytes=lent_bytes, calm_steps=calm_steps)


def test_what_pages_do_not_use_is_lent_but_for_a_reserve() -> None:
    assert lent(used_bytes=300, lent_bytes=0) == 1000 - 300 - 150


def test_nothing_is_lent_while_pages_use_everything() -> None:
    assert lent(used_bytes=1000, lent_bytes=0) == 0


def test_what_pages_need_is_called_back_with_the_reserve() -> None:
    assert lent(used_bytes=500, lent_bytes=600) == 1000 - 500 - 150


def test_it_is_called_back_however_short_ago_it_was_lent() -> None:
    assert lent(used_bytes=500, lent_bytes=600, calm_steps=0) == 350


def test_nothing_moves_while_there_is_enough_for_both() -> None:
    assert lent(used_bytes=450, lent_bytes=500) == 500


def test_less_than_two_spans_are_not_worth_a_move() -> None:
    assert lent(used_bytes=500, lent_bytes=200) == 200


def test_more_is_lent_only_after_calm() -> None:
    assert lent(used_bytes=300, lent_bytes=0, calm_steps=3) == 0


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 100))
def test_pages_and_what_is_lent_never_take_more_than_there_is(used: int, lent_before: int, calm: int) -> None:
    assert used + lent(used, lent_before, calm) <= 1000


@pytest.mark.parametrize("num_bytes", range(0, 1200, 70))
def test_what_is_lent_is_used_by_whole_spans(num_bytes: int) -> None:
    gained = LENDING.with_lent(num_bytes).resident_bytes - PLANNED.resident_bytes
    assert min(num_bytes, 900) - 100 < gained <= num_bytes


def test_more_memory_moves_only_the_difference() -> None:
    streamed = [set(LENDING.with_lent(num_bytes).streamed) for num_bytes in range(0, 1100, 100)]
    assert all(more > less for more, less in pairwise(streamed[:10]))


def test_something_always_streams() -> None:
    assert len(LENDING.with_lent(10**9).streamed) == 1


def test_what_the_plan_keeps_stays_whatever_is_lent() -> None:
    assert all(set(LENDING.with_lent(each).streamed) <= set(PLANNED.streamed) for each in range(0, 1200, 100))


def test_a_page_s_patience_costs_what_computing_its_tokens_anew_would() -> None:
    steps = LENDING.patience_steps(page_bytes=1, chunk_share=0.25)
    assert steps * 1 == 0.25 * PLANNED.streamed_bytes
