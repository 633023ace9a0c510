from dataclasses import replace
from pathlib import Path

import pytest

from residency.planner import MemoryBytes, Plan, SpeedForecast, explain
from residency.planner.explain import speed

MIB = 1024**2
FORECAST = SpeedForecast(
    decode_tokens_per_second=310.2,
    prefill_tokens_per_second=1500.0,
    time_to_first_token_seconds=0.7,
    bound="memory",
    read_bytes_per_token=98_100_000,
    read_bytes_per_second=36.5e9,
    operations_per_token=270_000_000,
    operations_per_second=200e9,
    step_overhead_seconds=3e-4,
    assumed=(),
)
PLAN = Plan(
    model_path=Path("smol.gguf"),
    model_fingerprint="abc",
    model_name="SmolLM2-135M-Instruct",
    architecture="llama",
    format_label="Q4_1",
    budget_bytes=400 * MIB,
    context_tokens=2048,
    max_sequences=1,
    chunk_tokens=128,
    page_tokens=16,
    threads=2,
    kv_format="F16",
    buffers=(),
    kv_groups=(),
    memory=MemoryBytes(weights=97_936_998, kv_cache=45 * MIB, activations=2_202_010, runtime=118 * MIB),
    forecast=FORECAST,
)


def test_a_plan_is_explained_in_three_lines() -> None:
    assert explain(PLAN).splitlines() == [
        "plan   SmolLM2-135M-Instruct · llama · Q4_1 · context 2048 · RAM budget 400 MiB",
        "       weights 93.4 MiB · KV cache 45.0 MiB · activations 2.1 MiB · runtime 118 MiB · free 142 MiB",
        "       forecast 310 tokens/s, memory-bound: 98.1 MB a token at 36.5 GB/s",
    ]


def test_a_compute_bound_forecast_shows_its_operations() -> None:
    plan = replace(PLAN, forecast=replace(FORECAST, bound="compute"))
    assert explain(plan).endswith("compute-bound: 270 Mop a token at 200 Gop/s")


def test_assumed_rates_are_owned_up_to() -> None:
    plan = replace(PLAN, forecast=replace(FORECAST, assumed=("read_efficiency",)))
    assert explain(plan).splitlines()[-1] == "       1 of the forecast's figures are assumed, not yet measured here"


def test_several_sequences_are_said() -> None:
    assert "context 2048 · 4 sequences ·" in explain(replace(PLAN, max_sequences=4))


@pytest.mark.parametrize(("tokens", "text"), [(310.2, "310"), (26.44, "26.4"), (0.519, "0.52")])
def test_a_speed_has_three_digits(tokens: float, text: str) -> None:
    assert speed(tokens) == text
