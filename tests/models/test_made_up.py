"""Models that are made up from a published configuration are those that would be run with their weights."""

from pathlib import Path

import pytest

from residency.models.made_up import made_up_spec
from residency.models.registry import forward_of
from residency.planner.device_needs import DeviceRequest
from residency.planner.on_device import plan_on_device
from residency.spec.model import ModelSpec
from support.device_plans import some_device

GB = 10**9
NAMES = [
    *("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf", "meta-llama/Llama-3.1-70B"),
    *("mistralai/Mixtral-8x7B-v0.1", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen2.5-7B"),
]


def weight_bytes(spec: ModelSpec) -> int:
    """Of the plan of a run on a large device."""
    plan = plan_on_device(
        spec,
        DeviceRequest(context_tokens=128),
        device=some_device(200 * GB),
        multiprocessors=132,
        runtime_bytes=0,
        model_path=Path(spec.name),
        fingerprint="",
    )
    return plan.memory.weights


@pytest.mark.parametrize("name", NAMES)
def test_a_published_model_can_be_run_without_its_weights(name: str) -> None:
    forward_of(made_up_spec(name, "source"))


@pytest.mark.parametrize(
    ("name", "parameters"), [("meta-llama/Llama-2-7b-hf", 6_738_415_616), ("mistralai/Mixtral-8x7B-v0.1", 46.7e9)]
)
def test_four_bits_take_little_more_than_half_a_byte_of_each_value(name: str, parameters: float) -> None:
    bits = 8 * weight_bytes(made_up_spec(name, "int4")) / parameters
    assert 4.125 <= bits <= 4.7  # embedding and head have 16


def test_biases_are_there_where_their_tensors_are() -> None:
    attention = made_up_spec("Qwen/Qwen2.5-7B", "int8").layers[0].grouped_attention
    assert attention.bias and attention.rope.inverse_frequencies
