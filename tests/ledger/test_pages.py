from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from residency.errors import BudgetError
from residency.ledger import PagePool, SequencePages


def test_a_freed_page_is_the_next_one_reused() -> None:
    pool = PagePool(4)
    taken = pool.take(3)
    pool.release(taken[1])
    assert pool.take() == [taken[1]]


def test_pages_are_first_taken_in_order() -> None:
    assert PagePool(4).take(3) == [0, 1, 2]


def test_a_free_page_cannot_be_freed_again() -> None:
    pool = PagePool(2)
    (page,) = pool.take()
    pool.release(page)
    with pytest.raises(ValueError, match="is free"):
        pool.release(page)


def test_a_shared_page_is_free_only_after_its_last_holder() -> None:
    pool = PagePool(1)
    (page,) = pool.take()
    pool.share(page)
    pool.release(page)
    assert (pool.num_free, pool.holders(page)) == (0, 1)


def test_too_many_pages_are_refused_and_none_is_taken() -> None:
    pool = PagePool(2)
    with pytest.raises(BudgetError, match="1 are missing"):
        pool.take(3)
    assert pool.num_free == 2


def test_a_sequence_holds_the_pages_of_its_tokens_and_no_more() -> None:
    pages = SequencePages(PagePool(8), page_tokens=16)
    pages.grow(33)
    assert (len(pages.pages), pages.capacity_tokens) == (3, 48)


def test_growing_within_the_last_page_takes_nothing() -> None:
    pages = SequencePages(PagePool(8), page_tokens=16)
    pages.grow(17)
    assert pages.grow(32) == []


def test_a_page_slides_out_when_its_last_token_leaves_the_window() -> None:
    pages = SequencePages(PagePool(8), page_tokens=4, window_tokens=6)
    pages.grow(12)
    # Token 8 sees tokens 3 to 8 and needs page 0; token 9 sees 4 to 9 and does not.
    assert (pages.slide(8), pages.slide(9), pages.first_page) == (0, 1, 1)


def test_without_a_window_nothing_slides_out() -> None:
    pages = SequencePages(PagePool(8), page_tokens=4)
    pages.grow(32)
    assert pages.slide(32) == 0


def test_a_twin_takes_no_page() -> None:
    pool = PagePool(4)
    pages = SequencePages(pool, page_tokens=4)
    pages.grow(10)
    twin = pages.twin()
    assert (list(twin.pages), pool.num_used, pool.num_shared) == ([0, 1, 2], 3, 3)


def test_a_page_that_is_made_one_s_own_is_no_longer_the_twin_s() -> None:
    pages = SequencePages(PagePool(4), page_tokens=4)
    pages.grow(10)
    twin = pages.twin()
    assert pages.make_own(9) == (2, 3)
    assert (pages.shares(9), twin.shares(9), pages.shares(7)) == (False, False, True)


def test_a_remembered_page_is_cached_when_its_last_holder_leaves() -> None:
    pool = PagePool(2)
    (page,) = pool.take()
    pool.remember(page)
    pool.release(page)
    assert (pool.num_free, pool.num_cached, pool.num_used) == (2, 1, 0)


def test_cached_pages_are_taken_last_and_the_longest_unused_first() -> None:
    forgotten: list[int] = []
    pool = PagePool(3, forgotten=forgotten.append)
    first, second, _ = pages = pool.take(3)
    for page in pages[:2]:
        pool.remember(page)
    for page in reversed(pages):
        pool.release(page)
    assert (pool.take(3), forgotten) == ([2, second, first], [second, first])


def test_a_cached_page_can_be_held_again() -> None:
    pool = PagePool(1)
    (page,) = pool.take()
    pool.remember(page)
    pool.release(page)
    pool.share(page)
    assert (pool.num_free, pool.num_cached, pool.holders(page)) == (0, 0, 1)


class PagesMachine(RuleBasedStateMachine):
    """Sequences that grow, slide, share and end; counted afterwards."""

    @initialize(num_pages=st.integers(0, 12), page_tokens=st.integers(1, 5), window=st.none() | st.integers(1, 12))
    def begin(self, num_pages: int, page_tokens: int, window: int | None) -> None:
        self.pool = PagePool(num_pages)
        self.page_tokens = page_tokens
        self.window = window
        self.tables: list[SequencePages] = []
        self.lengths: list[int] = []
        self.peak_used = 0

    @rule()
    def start(self) -> None:
        table = SequencePages(self.pool, page_tokens=self.page_tokens, window_tokens=self.window)
        self.tables.append(table)
        self.lengths.append(0)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), more=st.integers(1, 20))
    def grow(self, data: st.DataObject, more: int) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        table, length = self.tables[index], self.lengths[index] + more
        before, needed = list(table.pages), table.pages_to_grow(length)
        if needed > self.pool.num_free:
            with pytest.raises(BudgetError):
                table.grow(length)
            assert list(table.pages) == before
            return
        assert len(table.grow(length)) == needed
        assert table.capacity_tokens >= length
        self.lengths[index] = length

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def slide(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        table, length = self.tables[index], self.lengths[index]
        table.slide(length)
        first_visible = 0 if self.window is None else max(0, length - self.window + 1)
        assert table.first_page * self.page_tokens <= first_visible

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.tables.append(self.tables[index].twin())
        self.lengths.append(self.lengths[index])

    @precondition(lambda self: any(self.lengths))
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from([place for place, length in enumerate(self.lengths) if length]))
        token = self.lengths[index] - 1
        if self.tables[index].shares(token) and self.pool.num_free:
            before, now = self.tables[index].make_own(token)
            assert self.pool.holders(now) == 1
            assert self.pool.holders(before) >= 1

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.tables.pop(index).free()
        self.lengths.pop(index)

    @invariant()
    def no_page_is_lost_and_none_is_held_unseen(self) -> None:
        if not hasattr(self, "pool"):
            return
        held = Counter(page for table in self.tables for page in table.pages)
        assert all(self.pool.holders(page) == held[page] for page in range(self.pool.num_pages))
        assert self.pool.num_used == len(held)
        assert self.pool.num_used + self.pool.num_free == self.pool.num_pages
        self.peak_used = max(self.peak_used, len(held))
        assert self.pool.peak_used == self.peak_used

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            for table in self.tables:
                table.free()
            assert sorted(self.pool.take(self.pool.num_pages)) == list(range(self.pool.num_pages))


TestPagesByRandomOperations = PagesMachine.TestCase


def cached_pool(pages: int) -> PagePool:
    pool = PagePool(4)
    for page in pool.take(pages):
        pool.remember(page)
        pool.release(page)
    return pool


def test_a_cached_page_is_given_up_after_the_turns_it_may_be_unused() -> None:
    pool, left = cached_pool(2), []
    for _ in range(4):
        pool.give_up(unused_turns=2)
        left.append(pool.num_cached)
    assert left == [2, 2, 0, 0]


def test_a_cached_page_that_was_held_again_stays_longer() -> None:
    pool = cached_pool(2)
    first = pool.cached[0]
    pool.give_up(unused_turns=2)
    pool.share(first)
    pool.release(first)
    pool.give_up(unused_turns=1)
    assert pool.cached == (first,)
