"""Another format converts what its tools convert, and leaves the rest as they leave it."""

import pytest

from residency.errors import UsageError
from residency.models.specs import named_spec
from residency.spec import LABELS, ModelSpec, requantized

SERVING = ("int8", "fp8", "fp8-block", "int4-g128", "w8a16", "awq", "gptq", "gptq-8bit", "nf4", "nf4-double", "nvfp4")


def formats(model: ModelSpec, *roles: str) -> set[str]:
    return {tensor.format.name for tensor in model.tensors if tensor.role in roles}


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", ["llama-3.2-1b", "gpt-oss-20b", "deepseek-v2-lite", "mamba-130m", "gpt2"])
def test_every_format_keeps_the_parameters_of_every_kind_of_model(name: str, label: str) -> None:
    model = named_spec(name)
    assert requantized(model, label).parameters == model.parameters


@pytest.mark.parametrize("label", SERVING)
def test_a_serving_format_leaves_embedding_head_router_and_norms_in_16_bits(label: str) -> None:
    model = requantized(named_spec("Qwen3-30B-A3B"), label)
    assert formats(model, "embedding", "head", "router", "norm") == {"BF16"}
    assert formats(model, "matrix", "expert").isdisjoint({"BF16"})


@pytest.mark.parametrize("label", ["Q8_0", "q4_k_m", "Q2_K"])
def test_a_ggml_format_leaves_vectors_and_routers_in_float32(label: str) -> None:
    assert formats(requantized(named_spec("Qwen3-30B-A3B"), label), "norm", "router") == {"F32"}


def test_a_tied_embedding_is_kept_as_well_as_a_head() -> None:
    tied, untied = (requantized(named_spec(name), "Q4_K_M") for name in ("llama-3.2-1b", "llama-3.1-8b"))
    assert (tied.embedding.format.name, untied.embedding.format.name) == ("Q6_K", "Q4_K")


def test_rows_that_are_not_whole_blocks_get_a_smaller_block() -> None:
    model = requantized(named_spec("qwen2.5-0.5b"), "Q4_K_M")  # rows of 896 values
    assert model.layers[0].tensor("self_attn.q_proj.weight").format.name == "Q5_0"


def test_a_published_format_can_be_undone() -> None:
    model = requantized(named_spec("deepseek-v3"), "bf16")
    assert model.weight_bytes == 2 * model.parameters


def test_an_unknown_format_names_the_known() -> None:
    with pytest.raises(UsageError, match="'int5' is no format that weights can be planned in; choose one of f32, f16"):
        requantized(named_spec("gpt2"), "int5")


@pytest.mark.parametrize(("label", "has_tower"), [("q4_k_m", False), ("int4-g128", True)])
def test_a_vision_tower_is_left_to_a_file_of_its_own_in_ggml_s_types(label: str, has_tower: bool) -> None:
    model = requantized(named_spec("gemma-3-4b-it"), label)
    assert any(tensor.role == "vision" for tensor in model.tensors) is has_tower
