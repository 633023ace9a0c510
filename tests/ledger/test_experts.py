"""Experts that stay are those that are used most; what hindsight would keep is never beaten."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from residency.ledger.experts import (
    BesideNearer,
    ExpertSlots,
    Hindsight,
    LeastFrequent,
    LeastRecent,
    Trace,
    hit_rate,
    layers_of,
)

EXPERTS, LAYERS = 8, 6


def skewed_trace(steps: int = 400, *, exponent: float = 1.2, seed: int = 0) -> Trace:
    """Two of eight experts in each of six layers, drawn by Zipf's law, each layer with favourites of its own."""
    rng = np.random.default_rng(seed)
    shares = (1.0 + np.arange(EXPERTS)) ** -exponent
    favourites = np.stack([rng.permutation(EXPERTS) for _ in range(LAYERS)])
    drawn = np.log(shares) + rng.gumbel(size=(steps, LAYERS, EXPERTS))
    ranks = np.argsort(-drawn, axis=2)[:, :, :2]
    trace: Trace = np.take_along_axis(np.broadcast_to(favourites, drawn.shape), ranks, axis=2)
    return trace


def rates(trace: Trace, num_slots: int) -> tuple[float, float, float]:
    """Hit rates by frequency, by recency and with hindsight."""
    policies = (LeastFrequent(EXPERTS * LAYERS), LeastRecent(EXPERTS * LAYERS), Hindsight(trace, EXPERTS))
    frequent, recent, best = (hit_rate(trace, EXPERTS, num_slots, policy) for policy in policies)
    return frequent, recent, best


def test_with_skewed_routes_frequency_beats_recency() -> None:
    frequent, recent, _ = rates(skewed_trace(), EXPERTS * LAYERS // 4)
    assert frequent > recent + 0.05


def test_frequency_is_near_to_what_hindsight_gives() -> None:
    frequent, _, best = rates(skewed_trace(), EXPERTS * LAYERS // 2)
    assert frequent > 0.75 * best


def test_when_favourites_change_frequency_follows() -> None:
    trace = np.concatenate([skewed_trace(seed=1), skewed_trace(seed=2)])
    policy = LeastFrequent(EXPERTS * LAYERS)
    whole = hit_rate(trace, EXPERTS, 12, policy)
    assert whole > 0.9 * hit_rate(skewed_trace(), EXPERTS, 12, LeastFrequent(EXPERTS * LAYERS))


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=30), st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_nothing_beats_hindsight(steps: list[list[int]], num_slots: int) -> None:
    trace = np.array(steps)[:, :, None]  # three layers of four experts, one a token
    best = hit_rate(trace, 4, num_slots, Hindsight(trace, 4))
    assert best >= hit_rate(trace, 4, num_slots, LeastFrequent(12)) - 1e-12
    assert best >= hit_rate(trace, 4, num_slots, LeastRecent(12)) - 1e-12


def test_with_room_for_all_only_first_uses_miss() -> None:
    trace = skewed_trace(50)
    first_uses = len({(layer, e) for step in trace for layer, chosen in enumerate(step) for e in chosen.tolist()})
    everything = hit_rate(trace, EXPERTS, EXPERTS * LAYERS, LeastRecent(EXPERTS * LAYERS))
    assert everything == pytest.approx(1 - first_uses / trace.size)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(3, 9))
@settings(deadline=None, max_examples=60)
def test_no_two_experts_share_a_slot(used: list[int], num_slots: int) -> None:
    slots = ExpertSlots(num_slots, 10, LeastFrequent(10))
    held: dict[int, int] = {}
    for expert in used:
        for missing in slots.use([expert]):
            brought = slots.bring(missing, kept=[expert])
            assert brought is not None
            held.pop(brought.evicted if brought.evicted is not None else -1, None)
            assert brought.slot not in held.values()
            held[missing] = brought.slot
        slots.end_step()
    assert len(held) <= num_slots


def test_what_is_kept_does_not_leave() -> None:
    slots = ExpertSlots(2, 4, LeastFrequent(4))
    for expert in (0, 1):
        slots.bring(expert, kept=())
    assert slots.bring(2, kept=(0, 1)) is None


def test_on_suspicion_nothing_leaves_that_is_used_more() -> None:
    slots = ExpertSlots(1, 2, LeastFrequent(2))
    slots.use([0])
    slots.bring(0, kept=())
    assert slots.bring(1, kept=(), on_suspicion=True) is None


def test_slots_are_filled_from_the_empty_ones_on_and_then_by_worth() -> None:
    slots = ExpertSlots(4, 8, LeastFrequent(8))
    for expert in (5, 2, 7):
        slots.bring(expert, kept=())
    slots.use([2, 2, 7])
    slots.use([2])
    empty, *filled = slots.order()
    assert empty == 3 and filled == [0, 2, 1]  # who is in no slot, then 5, 7 and 2


def test_what_stays_is_what_the_first_slots_of_the_order_do_not_hold() -> None:
    slots = ExpertSlots(4, 8, LeastFrequent(8))
    for expert in (5, 2, 7):
        slots.bring(expert, kept=())
    slots.use([2, 2, 7])
    assert [slots.staying(filled) for filled in (0, 1, 2, 3, 4)] == [[5, 2, 7], [5, 2, 7], [2, 7], [7], []]


def test_what_a_nearer_tier_keeps_makes_room_before_what_is_worth_least() -> None:
    used = LeastFrequent(6)
    used.use([0, 0, 1])
    beside = BesideNearer(used)
    homes = ExpertSlots(3, 6, beside)
    for expert in (0, 1, 2):
        homes.bring(expert, kept=())
    beside.nearer = [0]
    gone = [brought.evicted for expert in (3, 4) if (brought := homes.bring(expert, kept=[3])) is not None]
    assert gone == [0, 2]


def from_the_farthest(trace: Trace, *, num_slots: int, num_homes: int, spares: bool) -> float:
    """Of the experts that steps need, the share that is in neither of two tiers. With `spares`, the farther one makes
    room first with what stays in the nearer.
    """
    used = LeastFrequent(EXPERTS * LAYERS)
    beside = BesideNearer(used)
    near = ExpertSlots(num_slots, EXPERTS * LAYERS, used)
    far = ExpertSlots(num_homes, EXPERTS * LAYERS, beside)
    needed = read = 0
    for turn, experts in enumerate(layers_of(trace, EXPERTS)):
        if spares and turn % LAYERS == 0:
            beside.nearer = near.staying(2 * EXPERTS)
        missing = near.use(experts)
        needed += len(experts)
        for expert in missing:
            near.bring(expert, kept=experts)
            if expert not in far:
                far.bring(expert, kept=missing)
                read += 1
        if turn % LAYERS == LAYERS - 1:
            near.end_step()
    return read / needed


def test_tiers_that_hold_different_experts_read_less_than_tiers_that_hold_the_same() -> None:
    trace = skewed_trace(exponent=0.5)
    sparing, plain = (
        from_the_farthest(trace, num_slots=EXPERTS * LAYERS // 2, num_homes=EXPERTS * LAYERS // 3, spares=spares)
        for spares in (True, False)
    )
    assert sparing < 0.9 * plain


def test_what_somebody_else_has_decided_is_followed() -> None:
    slots = ExpertSlots(3, 8, LeastFrequent(8))
    slots.bring(5, kept=())
    slots.follow(np.array([6, -1, 4]))
    assert [expert for expert in range(8) if expert in slots] == [4, 6]
    brought = slots.bring(1, kept=())
    assert brought is not None and (brought.slot, brought.evicted) == (1, None)
