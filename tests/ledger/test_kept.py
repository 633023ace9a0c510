"""Which pages the next tier keeps."""

import tracemalloc

import pytest

from residency.engine.kv_store import SLOT_RECORD_BYTES
from residency.ledger import KeptPage, KeptPages
from residency.ledger.kept import chained


def digests(count: int) -> list[bytes]:
    return [chained(b"", number.to_bytes(4)) for number in range(count)]


def test_the_longest_unused_page_gives_its_slot_to_the_next() -> None:
    a, b, c = digests(3)
    kept = KeptPages([2])
    slots = [kept.keep(0, a), kept.keep(0, b)]
    assert kept.use(0, a) == slots[0]
    assert kept.keep(0, c) == slots[1]
    assert (kept.holds(0, a), kept.holds(0, b)) == (True, False)


def test_what_is_kept_needs_no_other_slot() -> None:
    (a,) = digests(1)
    kept = KeptPages([2])
    assert kept.keep(0, a) is not None
    assert kept.keep(0, a) is None


def test_a_page_that_was_lost_leaves_its_slot_free() -> None:
    a, b = digests(2)
    kept = KeptPages([1])
    slot = kept.keep(0, a)
    kept.drop(0, a)
    assert (kept.holds(0, a), kept.keep(0, b)) == (False, slot)


def test_of_two_that_claim_one_slot_the_later_is_forgotten() -> None:
    a, b = digests(2)
    kept = KeptPages([2], [KeptPage(group=0, digest=a, slot=0), KeptPage(group=0, digest=b, slot=0)])
    assert (kept.holds(0, a), kept.holds(0, b)) == (True, False)


@pytest.mark.parametrize("slot", [-1, 2])
def test_a_slot_that_is_not_there_holds_nothing(slot: int) -> None:
    (a,) = digests(1)
    assert KeptPages([2], [KeptPage(group=0, digest=a, slot=slot)]).num_kept == 0


def test_groups_keep_pages_of_their_own() -> None:
    (a,) = digests(1)
    kept = KeptPages([1, 1])
    kept.keep(0, a)
    assert (kept.holds(0, a), kept.holds(1, a)) == (True, False)


def test_a_slot_is_remembered_in_the_bytes_that_plans_have_for_it() -> None:
    num_slots = 4096
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = KeptPages([num_slots])
        for digest in digests(num_slots):
            kept.keep(0, digest)
        del digest
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept.num_kept == num_slots
    assert after - before <= SLOT_RECORD_BYTES * num_slots
