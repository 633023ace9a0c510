"""The tables that introductions to the field repeat, and where they are loose."""

import pytest

from residency.models.specs import named_spec
from residency.planner.graph import score_bytes
from residency.planner.training import TrainingOptions, plan_training
from support.deployments import forecast, told

GB = 10**9


# Introductions multiply a rounded number of parameters by two; checkpoints have a few percent more or less.
@pytest.mark.parametrize(
    ("model", "gigabytes"),
    [
        ("Llama-2-7b", 14),
        ("Llama-3.1-8B", 16),
        ("Llama-2-13b", 26),
        ("CodeLlama-34b", 68),
        ("Llama-3.1-70B", 140),
        ("Mistral-Large-Instruct-2407", 246),
        ("Llama-3.1-405B", 810),
    ],
)
def test_two_bytes_a_parameter(model: str, gigabytes: int) -> None:
    assert named_spec(model).weight_bytes / GB == pytest.approx(gigabytes, rel=0.04)


def test_a_70b_keeps_327_680_bytes_a_token() -> None:
    (state,) = named_spec("Llama-3.1-70B").states()
    assert state.bytes_per_token == 80 * 8 * 128 * 2 * 2 == 327_680


def test_32_sequences_of_4096_keep_43_gigabytes() -> None:
    answer = told("Llama-3.1-70B", "4xH100-80GB", context=4096, concurrency=32)
    assert sum(device.kv_cache for device in answer.devices) == 32 * 4096 * 327_680
    assert sum(device.kv_cache for device in answer.devices) / GB == pytest.approx(43, abs=0.1)


def test_a_7b_takes_84_gigabytes_to_train_with_adam() -> None:
    """12 bytes a parameter: weights and gradients in 16 bits, two float32 states. That is loose: mixed precision also
    keeps float32 master weights, which makes 16, and activations come on top. Llama-2-7b has 6.74e9 parameters."""
    memory = plan_training(named_spec("Llama-2-7b"), TrainingOptions(precision="bf16-fp32-states"))
    per_parameter = (memory.weights + memory.gradients + memory.optimizer) / memory.trainable_parameters
    assert per_parameter == pytest.approx(12)
    assert per_parameter * 7 == pytest.approx(84)


def test_attention_scores_of_32_sequences_take_34_gigabytes() -> None:
    """In 16 bits, all sequences at once, in one layer; nobody who uses flash attention ever writes them."""
    assert score_bytes(heads=32, query_tokens=4096, key_tokens=4096, sequences=32) / GB == pytest.approx(34.4, abs=0.05)


def test_140_gigabytes_at_3_35_terabytes_a_second_take_42_milliseconds() -> None:
    """One H100 does not hold them, and eight that do are slower than the division says: see the forecast beside it."""
    plain = forecast("Llama-3.1-70B", "H100-80GB", context=2).plain_roofline_tokens_per_second
    assert plain == pytest.approx(24, rel=0.02)
    assert 1000 / plain == pytest.approx(42, rel=0.02)


def test_a_70b_with_32_contexts_of_4096_fits_on_four_h100() -> None:
    assert told("Llama-3.1-70B", "4xH100-80GB", context=4096, concurrency=32).fits


def test_it_does_not_fit_on_two() -> None:
    assert not told("Llama-3.1-70B", "2xH100-80GB", context=4096, concurrency=32).fits


def test_with_4_bit_weights_and_8_bit_keys_and_values_it_fits_on_two() -> None:
    answer = told("Llama-3.1-70B", "2xH100-80GB", context=4096, concurrency=32, quant="int4-g128", kv="INT8")
    assert answer.fits
    # 35 GB, say introductions; scales, and an embedding and a head that stay in 16 bits, make 40.
    assert answer.model.weight_bytes / GB == pytest.approx(39.5, abs=0.5)
