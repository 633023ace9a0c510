"""Which weights stay, which stream, and how fast that is."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from residency.errors import BudgetError, FileError
from residency.planner import Plan, plan_run
from residency.planner.check import check_plan
from residency.planner.streaming import READING_BYTES, Streaming, best_streaming, least_streaming, placed
from residency.spec.model import ModelSpec
from support.machines import machine_with_disk

MakeModel = Callable[..., ModelSpec]
TEN = Streaming(slots=2, slot_bytes=100, span_bytes=(100,) * 10, streamed=tuple(range(10)), disk_bytes_per_second=100)


def hits_of_lru(cycle: Iterable[int], cached: int) -> int:
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for span in cycle:
        hits += span in cache
        cache[span] = None
        cache.move_to_end(span)
        if len(cache) > cached:
            cache.popitem(last=False)
    return hits


def test_of_a_cycle_lru_keeps_nothing_and_a_fixed_set_what_it_holds() -> None:
    steps = 20
    fixed = placed(TEN, room_bytes=200 + 600)
    fixed_hits = steps * (10 - len(fixed.streamed))
    assert (hits_of_lru([*range(10)] * steps, cached=6), fixed_hits) == (0, 6 * steps)


def test_without_room_everything_streams() -> None:
    assert placed(TEN, room_bytes=0) == TEN


@pytest.mark.parametrize("room_bytes", range(300, 1100, 50))
def test_what_stays_and_the_buffers_take_the_room_but_less_than_a_span(room_bytes: int) -> None:
    assert room_bytes - 100 < placed(TEN, room_bytes).memory_bytes <= room_bytes


@pytest.mark.parametrize("room_bytes", range(300, 900, 50))
def test_of_spans_that_differ_as_much_stays_as_fits(room_bytes: int) -> None:
    uneven = replace(TEN, span_bytes=(100, 40) * 5)
    made = placed(uneven, room_bytes)
    smallest = min(made.span_bytes[span] for span in made.streamed[:-1]) if len(made.streamed) > 1 else 100
    assert room_bytes - smallest < made.memory_bytes <= room_bytes


def test_what_streams_lies_evenly_among_what_stays() -> None:
    assert placed(TEN, room_bytes=200 + 500).streamed == (1, 3, 5, 7, 9)


def test_a_disk_that_is_slower_than_computing_sets_the_pace() -> None:
    assert TEN.step_seconds(resident_seconds=0.1) == pytest.approx(TEN.disk_seconds)


def test_computing_that_is_slower_than_the_disk_hides_it() -> None:
    assert replace(TEN, streamed=(4, 9)).step_seconds(resident_seconds=20.0) == pytest.approx(20.0)


def test_one_buffer_reads_and_computes_in_turns() -> None:
    assert replace(TEN, slots=1).step_seconds(resident_seconds=10.0) == pytest.approx(TEN.disk_seconds + 10.0)


@pytest.mark.parametrize("room_bytes", [200, 400, 800, 1100])
def test_no_other_number_of_buffers_is_quicker_than_the_best(room_bytes: int) -> None:
    best = best_streaming(TEN, room_bytes=room_bytes, resident_seconds=8.0).step_seconds(8.0)
    others = [placed(replace(TEN, slots=slots), room_bytes) for slots in range(2, 9)]
    assert best <= min(each.step_seconds(8.0) for each in others if each.memory_bytes <= room_bytes) * 1.001


def plan(model: ModelSpec, memory_bytes: int, *, sequences: int = 1) -> Plan:
    return plan_run(
        model,
        machine=machine_with_disk(),
        runtime_bytes=1 << 20,
        budget_bytes=memory_bytes,
        context_tokens=64,
        chunk_tokens=32,
        max_sequences=sequences,
        oversubscribe=sequences > 1,
        model_path=Path("m"),
        fingerprint="f",
    )


@pytest.fixture
def model(make_model: MakeModel) -> ModelSpec:
    return make_model(*[None] * 12, vocabulary=3000)


def test_weights_that_fit_do_not_stream(model: ModelSpec) -> None:
    assert plan(model, 64 << 20).streaming is None


def test_weights_stream_where_the_budget_is_a_byte_too_small(model: ModelSpec) -> None:
    needed = plan(model, 64 << 20).memory.peak
    assert plan(model, needed - 1).streaming is not None


def test_a_plan_that_streams_keeps_to_its_budget(model: ModelSpec) -> None:
    whole = plan(model, 64 << 20).memory
    budget = whole.peak - whole.weights // 2
    made = plan(model, budget)
    assert made.streaming is not None
    assert 0 <= budget - made.memory.peak < made.streaming.slot_bytes


def test_a_budget_below_two_buffers_is_refused_with_what_is_missing(model: ModelSpec) -> None:
    whole = plan(model, 64 << 20).memory
    least = whole.peak - whole.weights + READING_BYTES + least_streaming(model, 1e9).memory_bytes
    assert plan(model, least).memory.peak == least
    with pytest.raises(BudgetError, match=r"streamed through 2 buffers.*\(1 bytes\) too little"):
        plan(model, least - 1)


def test_a_plan_that_streams_is_read_back_as_it_was(model: ModelSpec) -> None:
    made = plan(model, plan(model, 64 << 20).memory.peak - 1)
    assert Plan.from_json(made.to_json()) == made


def test_more_sequences_mean_more_pages_and_fewer_weights_that_stay(model: ModelSpec) -> None:
    budget = plan(model, 64 << 20).memory.peak
    one, eight = (plan(model, budget - 1, sequences=number) for number in (1, 8))
    assert one.streaming and eight.streaming
    assert eight.memory.kv_cache > one.memory.kv_cache
    assert eight.streaming.resident_bytes < one.streaming.resident_bytes


@pytest.mark.parametrize(
    "changed",
    [
        {"slots": 1},
        {"slot_bytes": 4096},
        {"span_bytes": (4096,)},
        {"streamed": (3, 2)},
        {"streamed": (999,)},
        {"streamed": ()},
        {"disk_bytes_per_second": 0.0},
    ],
)
def test_a_plan_whose_spans_are_not_the_model_s_is_refused(model: ModelSpec, changed: dict[str, object]) -> None:
    made = plan(model, plan(model, 64 << 20).memory.peak - 1)
    assert made.streaming is not None
    streaming = replace(made.streaming, **changed)  # type: ignore[arg-type]
    with pytest.raises(FileError, match="does not fit its model"):
        check_plan(replace(made, streaming=streaming), model)
