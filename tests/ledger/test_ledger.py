import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from residency.errors import BudgetError
from residency.ledger import Ledger, MemoryClass


def test_bytes_that_do_not_fit_are_refused_with_what_is_missing() -> None:
    ledger = Ledger(1000)
    ledger.reserve(MemoryClass.WEIGHTS, owner="model", num_bytes=900)
    with pytest.raises(BudgetError, match="50 bytes are missing"):
        ledger.reserve(MemoryClass.KV_CACHE, owner="pages", num_bytes=150)


def test_a_refused_reservation_changes_nothing() -> None:
    ledger = Ledger(10)
    with pytest.raises(BudgetError):
        ledger.reserve(MemoryClass.RUNTIME, owner="python", num_bytes=11)
    assert (ledger.free_bytes, ledger.total_peak_bytes, dict(ledger.owners(MemoryClass.RUNTIME))) == (10, 0, {})


def test_the_last_byte_of_a_budget_can_be_reserved() -> None:
    ledger = Ledger(10)
    ledger.reserve(MemoryClass.WEIGHTS, owner="model", num_bytes=10)
    assert ledger.free_bytes == 0


def test_the_peak_of_all_is_of_one_time_not_the_sum_of_the_classes_peaks() -> None:
    ledger = Ledger(10)
    ledger.reserve(MemoryClass.WEIGHTS, owner="a", num_bytes=6)
    ledger.release(MemoryClass.WEIGHTS, owner="a")
    ledger.reserve(MemoryClass.KV_CACHE, owner="b", num_bytes=7)
    assert ledger.total_peak_bytes == 7


def test_an_owner_is_known_once_per_class() -> None:
    ledger = Ledger(10)
    ledger.reserve(MemoryClass.WEIGHTS, owner="a", num_bytes=1)
    with pytest.raises(ValueError, match="already holds weights"):
        ledger.reserve(MemoryClass.WEIGHTS, owner="a", num_bytes=1)


def test_what_is_not_held_cannot_be_released() -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        Ledger(10).release(MemoryClass.WEIGHTS, owner="a")


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(100)
        self.model: dict[tuple[MemoryClass, str], int] = {}
        self.peak_bytes = 0

    @rule(memory=st.sampled_from(MemoryClass), owner=st.sampled_from("abc"), num_bytes=st.integers(-1, 120))
    def reserve(self, memory: MemoryClass, owner: str, num_bytes: int) -> None:
        if num_bytes < 0 or (memory, owner) in self.model:
            expected: type[Exception] | None = ValueError
        else:
            expected = BudgetError if sum(self.model.values()) + num_bytes > 100 else None
        if expected is not None:
            with pytest.raises(expected):
                self.ledger.reserve(memory, owner=owner, num_bytes=num_bytes)
            return
        self.ledger.reserve(memory, owner=owner, num_bytes=num_bytes)
        self.model[memory, owner] = num_bytes
        self.peak_bytes = max(self.peak_bytes, sum(self.model.values()))

    @rule(memory=st.sampled_from(MemoryClass), owner=st.sampled_from("abc"))
    def release(self, memory: MemoryClass, owner: str) -> None:
        if (memory, owner) in self.model:
            assert self.ledger.release(memory, owner=owner) == self.model.pop((memory, owner))

    @invariant()
    def every_byte_counts_once(self) -> None:
        held = {(memory, owner): n for memory in MemoryClass for owner, n in self.ledger.owners(memory).items()}
        assert held == self.model
        assert sum(self.ledger.current_bytes(memory) for memory in MemoryClass) == sum(held.values())
        assert self.ledger.free_bytes + self.ledger.total_bytes == 100
        assert self.ledger.total_peak_bytes == self.peak_bytes


TestLedgerByRandomOperations = LedgerMachine.TestCase
