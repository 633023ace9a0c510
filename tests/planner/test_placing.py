from dataclasses import replace

import pytest

from residency.errors import UsageError
from residency.models.specs import named_spec
from residency.planner.placing import stage_models
from residency.spec.ranks import rank_bytes
from support.deployments import asked, device, told

ANSWERS = [
    ("Llama-3.1-8B", "H100-80GB", {}),
    ("Qwen3-30B-A3B", "rtx4090", {"may_spill": True, "concurrency": 4}),
    ("mamba-2.8b-hf", "L4", {}),
    ("DeepSeek-V2-Lite", "2xA100-40GB", {"kv": "INT8"}),
    ("gemma-3-27b-it", "4xL40S", {"pipeline_parallel": 4}),
    ("Jamba-v0.1", "2xH100-80GB", {"concurrency": 8}),
]


@pytest.mark.parametrize(("model", "on", "options"), ANSWERS)
def test_classes_and_what_is_free_are_the_budget(model: str, on: str, options: dict[str, object]) -> None:
    for found in told(model, on, **options).devices:
        classes = found.weights + found.kv_cache + found.activations + found.runtime
        assert classes + found.free - found.missing_bytes == found.budget_bytes


def test_ranks_hold_every_byte_that_one_device_would() -> None:
    spec = named_spec("Llama-3.1-8B")
    assert 4 * rank_bytes(spec, 4) >= spec.weight_bytes
    assert 4 * rank_bytes(spec, 4) == pytest.approx(spec.weight_bytes, rel=0.001)  # norms are held by each


def test_stages_together_hold_all_layers_once() -> None:
    spec = named_spec("Llama-3.1-8B")
    stages = stage_models(spec, 5)
    assert [len(stage.layers) for stage in stages] == [7, 6, 7, 6, 6]
    assert tuple(layer for stage in stages for layer in stage.layers) == spec.layers


def test_only_the_ends_of_a_pipeline_hold_the_tables() -> None:
    first, middle, last = (d.weights for d in told("Llama-3.1-70B", "4xH100-80GB", pipeline_parallel=4).devices[:3])
    end = told("Llama-3.1-70B", "4xH100-80GB", pipeline_parallel=4).devices[3].weights
    assert first == end > middle == last


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="has 32 layers, which cannot make 33 pipeline stages"):
        stage_models(named_spec("Llama-3.1-8B"), 33)


def test_what_is_spilled_lies_somewhere() -> None:
    whole = told("Qwen3-30B-A3B", "rtx4090")
    spilled = told("Qwen3-30B-A3B", "rtx4090", may_spill=True)
    assert whole.missing_bytes == spilled.placement.ram_bytes > 0
    assert spilled.devices[0].weights + spilled.placement.ram_bytes == whole.devices[0].weights


def test_what_ram_cannot_take_goes_to_disk() -> None:
    answer = told("Qwen3-30B-A3B", "rtx4090", may_spill=True, ram_bytes=16 * 10**9)
    assert answer.fits
    assert answer.placement.ram_bytes < 16 * 10**9
    assert answer.placement.disk_bytes > 0


def test_a_window_caps_what_a_long_context_keeps() -> None:
    short, long = (device("gpt-oss-20b", "H100-80GB", context=c).kv_cache for c in (16_384, 32_768))
    # Half of the layers see 128 tokens, so twice the context is less than twice the bytes.
    assert long < 2 * short


def test_a_recurrent_model_keeps_as_much_after_any_context() -> None:
    short, long = (device("mamba-2.8b-hf", "H100-80GB", context=c).kv_cache for c in (1024, 1_000_000))
    assert short == long


def test_a_draft_is_held_beside_the_model() -> None:
    draft = named_spec("Llama-3.2-1B")
    alone, beside = (device("Llama-3.1-8B", "H100-80GB", draft=each) for each in (None, draft))
    assert beside.weights - alone.weights == rank_bytes(draft)
    assert beside.kv_cache > alone.kv_cache


def test_naive_attention_writes_scores_that_grow_with_the_context() -> None:
    flash, naive = (
        device("Llama-3.1-8B", "H100-80GB", context=131_072, attention=each).activations for each in ("flash", "naive")
    )
    assert naive - flash > 32 * 8192 * 131_072  # a byte and more for each head, token of a chunk, and token seen


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="a budget of 0 bytes"):
        replace(asked("Llama-3.1-8B", "H100-80GB"), budget_bytes=0)


def test_only_the_last_stage_samples() -> None:
    first, last = told("Llama-3.1-8B", "2xH100-80GB", tensor_parallel=1, pipeline_parallel=2).devices
    assert first.activations < last.activations
