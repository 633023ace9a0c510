"""When a forecast holds."""

from dataclasses import replace
from pathlib import Path

import pytest

from residency.engine.report import Bandwidth, Report, Seconds
from residency.planner.plan import Buffer, KvGroup, MemoryBytes, Plan, SpeedForecast
from residency.verifier.forecast import Decoded, Runs, Tolerances, compare

MIB = 1 << 20
EXACT = Tolerances(memory=0.1, peak=0.05, speed=0.25, least_bytes=0)


def both(report: Report) -> Runs:
    return Runs(speed=Decoded(plan=report.plan, token_seconds=(0.01,) * 10), memory=report)


def test_a_run_as_forecast_holds_everywhere() -> None:
    assert [each.name for each in compare(both(REPORT), EXACT) if not each.holds] == []


@pytest.mark.parametrize("name", ["weights", "kv_cache", "activations", "runtime"])
def test_a_class_that_takes_more_does_not_hold(name: str) -> None:
    taken = replace(REPORT.memory, **{name: int(getattr(REPORT.memory, name) * 1.2)})
    assert name in [each.name for each in compare(both(replace(REPORT, memory=taken)), EXACT) if not each.holds]


def test_a_class_that_takes_less_does_not_hold_either() -> None:
    taken = replace(REPORT.memory, weights=REPORT.memory.weights // 2)
    assert "weights" in [each.name for each in compare(both(replace(REPORT, memory=taken)), EXACT) if not each.holds]


def test_small_differences_of_memory_hold() -> None:
    taken = replace(REPORT.memory, activations=2 * REPORT.memory.activations)
    generous = replace(EXACT, least_bytes=100 * MIB)
    assert all(each.holds for each in compare(both(replace(REPORT, memory=taken)), generous))


def test_the_cache_is_held_to_the_pages_that_the_tokens_take() -> None:
    kv = next(each for each in compare(both(REPORT), EXACT) if each.name == "kv_cache")
    assert kv.forecast == 3 * 4096 * 2  # 33 cached tokens, 3 pages in each of 2 layers


def decoded(*token_seconds: float) -> list[str]:
    runs = Runs(speed=Decoded(plan=PLAN, token_seconds=token_seconds), memory=REPORT)
    return [each.name for each in compare(runs, EXACT) if not each.holds]


def test_a_slower_run_does_not_hold() -> None:
    assert decoded(0.02, 0.02, 0.02) == ["decode"]


def test_a_processor_that_was_away_for_a_token_does_not_count() -> None:
    assert decoded(0.01, 0.01, 0.08) == []


def test_one_token_has_no_speed() -> None:
    runs = Runs(speed=Decoded(plan=PLAN, token_seconds=()), memory=REPORT)
    assert "decode" not in [each.name for each in compare(runs, EXACT)]


PLAN = Plan(
    model_path=Path("model.gguf"),
    model_fingerprint="0",
    model_name="a model",
    architecture="llama",
    format_label="Q4_1",
    budget_bytes=400 * MIB,
    context_tokens=64,
    max_sequences=1,
    chunk_tokens=16,
    page_tokens=16,
    kv_format="F16",
    threads=1,
    buffers=(Buffer(name="hidden", shape=(MIB,), dtype="int8"),),
    kv_groups=(KvGroup(layers=(0, 1), window_tokens=None, num_pages=4, page_bytes=4096),),
    memory=MemoryBytes(weights=100 * MIB, kv_cache=4 * 4096 * 2, activations=MIB, runtime=50 * MIB),
    forecast=SpeedForecast(
        decode_tokens_per_second=100.0,
        prefill_tokens_per_second=1000.0,
        time_to_first_token_seconds=0.1,
        bound="memory",
        read_bytes_per_token=100 * MIB,
        read_bytes_per_second=1e10,
        operations_per_token=10,
        operations_per_second=1e10,
        step_overhead_seconds=0.0,
        assumed=(),
    ),
)
REPORT = Report(
    plan=PLAN,
    text="an answer",
    prompt_tokens=23,
    completion_tokens=11,
    finish_reason="length",
    seconds=Seconds(load=0.1, first_token=0.1, decode=0.1, total=0.2),
    memory=MemoryBytes(weights=100 * MIB, kv_cache=3 * 4096 * 2, activations=MIB, runtime=50 * MIB),
    bandwidth=Bandwidth(measured_bytes_per_second=1e10, achieved_bytes_per_second=1e10),
)
