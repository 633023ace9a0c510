import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from residency.errors import FileError
from residency.planner.plan import Buffer, KvGroup, MemoryBytes, Plan, SpeedForecast

PLAN = Plan(
    model_path=Path("/models/tiny.gguf"),
    model_fingerprint="abc",
    model_name="Tiny",
    architecture="llama",
    format_label="Q4_1",
    budget_bytes=10_000,
    context_tokens=32,
    max_sequences=1,
    chunk_tokens=16,
    page_tokens=16,
    threads=2,
    kv_format="F16",
    buffers=(Buffer(name="hidden", shape=(16, 8), dtype="float32"),),
    kv_groups=(
        KvGroup(layers=(0, 2), window_tokens=None, num_pages=2, page_bytes=100),
        KvGroup(layers=(1,), window_tokens=8, num_pages=3, page_bytes=100),
    ),
    memory=MemoryBytes(weights=5000, kv_cache=700, activations=512, runtime=1000),
    forecast=SpeedForecast(
        decode_tokens_per_second=310.5,
        prefill_tokens_per_second=1000.0,
        time_to_first_token_seconds=0.016,
        bound="memory",
        read_bytes_per_token=5350,
        read_bytes_per_second=36.5e9,
        operations_per_token=10_000,
        operations_per_second=4e11,
        step_overhead_seconds=1e-5,
        assumed=("matrix_int8_operations_per_second",),
    ),
)


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(PLAN.to_json())
    change(data)
    return json.dumps(data)


def test_a_plan_survives_its_json() -> None:
    assert Plan.from_json(PLAN.to_json()) == PLAN


def test_a_plan_s_peak_and_rest_are_its_budget() -> None:
    assert PLAN.memory.peak + PLAN.free_bytes == PLAN.budget_bytes


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(contxt_tokens=3), "'contxt_tokens' is not a field that this version knows"),
        (lambda d: d["memory"].update(spare=3), "'memory.spare' is not a field that this version knows"),
        (lambda d: d.pop("threads"), "'threads' is missing"),
        (lambda d: d.update(threads="2"), "'threads' is a text, not a whole number"),
        (lambda d: d.update(threads=True), "'threads' is true or false, not a whole number"),
        (lambda d: d.update(threads=2.5), "'threads' is a fraction, not a whole number"),
        (lambda d: d.update(threads=-1), "'threads' is -1, which is out of range"),
        (lambda d: d.update(threads=10**30), "'threads' is 1000000.*out of range"),
        (lambda d: d.update(threads=0), "'threads' is 0"),
        (lambda d: d.update(model_path=None), "'model_path' is null, not a path"),
        (lambda d: d["buffers"][0].update(shape=8), "'buffers\\[0\\].shape' is a whole number, not a list"),
        (lambda d: d["buffers"][0].update(dtype="object"), "buffer 'hidden' is of 'object'"),
        (lambda d: d["kv_groups"].append(7), "'kv_groups\\[2\\]' is a whole number, not an object"),
        (lambda d: d["forecast"].update(bound="luck"), "'forecast.bound' is 'luck', not one of"),
        (lambda d: d["forecast"].update(read_bytes_per_second=float("nan")), "is nan, which is out of range"),
        (lambda d: d["memory"].update(kv_cache=699), "its kv_cache add up to 700 bytes and it says 699"),
        (lambda d: d["memory"].update(activations=1), "its activations add up to 512 bytes and it says 1"),
        (lambda d: d.update(budget_bytes=7211), "more than its budget"),
        (lambda d: d.update(plan_version=2), "it has version 2 and this residency reads 1"),
        (lambda d: d.pop("plan_version"), "has no 'plan_version'"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(change: Callable[[dict[str, Any]], object], sentence: str) -> None:
    with pytest.raises(FileError, match=sentence):
        Plan.from_json(changed(change))


@pytest.mark.parametrize("text", ["", "GGUF\x00", "[" * 100_000, "{"])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(FileError, match="is not JSON"):
        Plan.from_json(text)


@pytest.mark.parametrize("text", ["[]", "3", '"plan"', "null"])
def test_json_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(FileError, match="it is not a plan"):
        Plan.from_json(text)
