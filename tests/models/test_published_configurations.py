"""config.json as authors have published it: keys that say again what others say are understood, not refused."""

from typing import Any

import pytest

from residency.errors import UnsupportedError
from residency.models.planned import planned_spec
from residency.spec import ModelSpec
from residency.spec.model import RotationTable

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 8,
    "vocab_size": 96,
    "intermediate_size": 80,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
WITHOUT_HEADS = {"num_attention_heads": None, "num_key_value_heads": None, "intermediate_size": None}
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


def planned(architecture: str, **changes: Any) -> ModelSpec:
    values = {"model_type": architecture, **SMALL, **changes}
    return planned_spec("model", "config.json", {key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize(
    ("architecture", "said_again", "another"),
    [
        ("jamba", {"mamba_inner_layernorms": True}, {"mamba_inner_layernorms": False}),
        ("gemma2", {"sliding_window_size": 4096}, {"sliding_window_size": 1024}),
        ("mamba2", {"intermediate_size": 128}, {"intermediate_size": 256}),
    ],
)
def test_what_is_said_twice_is_understood_and_a_contradiction_refused(
    architecture: str, said_again: dict[str, Any], another: dict[str, Any]
) -> None:
    extents = {**WITHOUT_HEADS, "num_heads": 8, "head_dim": 16, "n_groups": 1} if architecture == "mamba2" else {}
    assert planned(architecture, **{**extents, **said_again}).parameters > 0
    with pytest.raises(UnsupportedError, match=next(iter(another))):
        planned(architecture, **{**extents, **another})


def test_gpt_oss_names_no_number_format_and_has_16_bits() -> None:
    settings = {"num_local_experts": 4, "num_experts_per_tok": 2, "quantization_config": {"quant_method": "mxfp4"}}
    model = planned("gpt_oss", torch_dtype=None, **settings)
    assert {tensor.format.name for tensor in model.tensors} == {"BF16", "mxfp4"}


@pytest.mark.parametrize(
    ("architecture", "changes", "positions"),
    [
        ("llama", {}, [4096]),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, [8 * 4096]),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, [4096]),
        ("llama", {"rope_scaling": YARN, "max_position_embeddings": 8192}, [40 * 4096]),
        (
            "gemma3_text",
            {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 512},
            [4096, 8 * 4096],
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 512},
            [4096 + 512],
        ),
        ("mamba", WITHOUT_HEADS, []),
    ],
)
def test_rotations_reach_as_far_as_the_scaling_says(
    architecture: str, changes: dict[str, Any], positions: list[int]
) -> None:
    assert [table.positions for table in planned(architecture, **changes).rotations] == positions


def test_only_a_part_of_a_head_may_be_rotated() -> None:
    assert planned("phi", partial_rotary_factor=0.5).rotations == (RotationTable(width=8, positions=4096),)
