"""Specs from headers: names, order, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from residency.errors import FileError, ModelError, UnsupportedError
from residency.models.specs import model_spec
from residency.spec import Checkpoint, ModelSpec, Rearrange, open_checkpoint
from support.folders import write_folder
from support.gguf_files import write_gguf
from support.models import ARCHITECTURES, random_weights, small_model


def gguf_spec(path: Path, architecture: str, edit: Any = None, **changes: Any) -> ModelSpec:
    return model_spec(open_checkpoint(write_gguf(path / "m.gguf", small_model(architecture, **changes), edit=edit)))


def folder_spec(path: Path, architecture: str, weights: Any = None, **changes: Any) -> ModelSpec:
    folder = write_folder(path / "m", small_model(architecture), weights=weights, changes=changes)
    return model_spec(open_checkpoint(folder))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gguf_file_and_a_folder_of_one_model_have_the_same_shapes(architecture: str, tmp_path: Path) -> None:
    from_gguf, from_folder = gguf_spec(tmp_path, architecture), folder_spec(tmp_path, architecture)
    assert [(t.name, t.shape) for t in from_gguf.tensors] == [(t.name, t.shape) for t in from_folder.tensors]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gguf_file_and_a_folder_of_one_model_attend_alike(architecture: str, tmp_path: Path) -> None:
    from_gguf, from_folder = gguf_spec(tmp_path, architecture), folder_spec(tmp_path, architecture)
    assert [layer.attention for layer in from_gguf.layers] == [layer.attention for layer in from_folder.layers]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_of_the_file_is_used(architecture: str, tmp_path: Path) -> None:
    model = gguf_spec(tmp_path, architecture)
    assert {t.source.name for t in model.tensors if t.source} == set(open_checkpoint(tmp_path / "m.gguf").tensors)


def test_only_the_queries_and_keys_of_a_llama_gguf_are_unpermuted(tmp_path: Path) -> None:
    unpermuted = {t.name for t in gguf_spec(tmp_path, "llama").tensors if t.rearrange is Rearrange.UNPERMUTE_ROPE}
    assert unpermuted == {f"model.layers.{n}.self_attn.{p}_proj.weight" for n in range(3) for p in "qk"}


def test_the_rows_of_a_llama_gguf_are_unpermuted_head_by_head(tmp_path: Path) -> None:
    layer = gguf_spec(tmp_path, "llama").layers[0]
    assert [layer.tensor(f"self_attn.{p}_proj.weight").heads for p in "qkv"] == [4, 2, None]


def test_one_is_added_to_the_norms_of_a_gemma_folder_and_to_nothing_else(tmp_path: Path) -> None:
    model = folder_spec(tmp_path, "gemma3")
    assert all((t.rearrange is Rearrange.ADD_ONE) == t.name.endswith("norm.weight") for t in model.tensors)


def test_nothing_is_added_to_the_norms_of_a_gemma_gguf(tmp_path: Path) -> None:
    assert all(t.rearrange is Rearrange.NONE for t in gguf_spec(tmp_path, "gemma3").tensors)


def test_a_tied_model_has_no_head(tmp_path: Path) -> None:
    assert gguf_spec(tmp_path, "qwen3", tied=True).head is None


def test_an_untied_model_has_a_head(tmp_path: Path) -> None:
    assert gguf_spec(tmp_path, "qwen3", tied=False).head is not None


def test_heads_share_the_hidden_width_where_no_head_dim_is_given(tmp_path: Path) -> None:
    assert folder_spec(tmp_path, "llama", head_dim=None).layers[0].grouped_attention.head_dim == 64


def test_gemma_scales_its_embedding_by_the_root_of_its_width(tmp_path: Path) -> None:
    assert gguf_spec(tmp_path, "gemma3").embedding_scale == 16.0


def test_a_window_that_the_context_cannot_outgrow_is_none(tmp_path: Path) -> None:
    assert gguf_spec(tmp_path, "gemma3", window_tokens=512).layers[0].grouped_attention.window_tokens is None


def test_rope_freqs_divide_the_frequencies(tmp_path: Path) -> None:
    divisors = np.linspace(1, 8, 32, dtype=np.float32)
    plain = gguf_spec(tmp_path, "llama").layers[0].grouped_attention.rope.inverse_frequencies
    scaled = gguf_spec(tmp_path, "llama", lambda w: w.add_tensor("rope_freqs.weight", divisors))
    expected = np.array(plain) / divisors
    np.testing.assert_allclose(scaled.layers[0].grouped_attention.rope.inverse_frequencies, expected, rtol=1e-12)


def test_yarn_in_a_gguf_file_is_yarn_in_a_folder(tmp_path: Path) -> None:
    def add_yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(128)

    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    from_folder = folder_spec(tmp_path, "qwen2", rope_scaling=scaling)
    assert (
        gguf_spec(tmp_path, "qwen2", add_yarn).layers[0].grouped_attention.rope
        == from_folder.layers[0].grouped_attention.rope
    )


def test_a_multimodal_gemma_folder_gives_its_text_model(tmp_path: Path) -> None:
    model = small_model("gemma3")
    weights = {"language_model." + name: values for name, values in random_weights(model).items()}
    weights["vision_tower.patch.weight"] = np.zeros((2, 2), np.float32)
    folder = write_folder(tmp_path / "text", model)
    text_config = dict(open_checkpoint(folder).config)
    spec = folder_spec(tmp_path, "gemma3", weights, model_type="gemma3", text_config=text_config)
    assert spec.embedding.shape == (320, 256)


def test_an_unknown_architecture_is_refused_with_the_supported_ones(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="'t5' is not supported; supported are llama, mistral, qwen2"):
        folder_spec(tmp_path, "llama", model_type="t5")


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"mlp_bias": True}),
        ("llama", {"attention_bias": True}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"quantization_config": {"quant_method": "aqlm"}}),
        ("llama", {"partial_rotary_factor": 0.5}),
        ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}),
        ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
        ("gemma3", {"final_logit_softcapping": 30.0}),
        ("gemma3", {"attn_logit_softcapping": 50.0}),
        ("gemma3", {"use_bidirectional_attention": True}),
        ("gemma3", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}),
    ],
)
def test_a_setting_that_would_change_the_result_is_refused(
    architecture: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError):
        folder_spec(tmp_path, architecture, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 512},
        {"num_hidden_layers": 4},
        {"num_hidden_layers": 2**40},
        {"vocab_size": 321},
        {"head_dim": 32},
        {"head_dim": None, "hidden_size": 255},
        {"num_attention_heads": 5},
        {"num_key_value_heads": 3},
        {"intermediate_size": "512"},
        {"hidden_size": None},
        {"hidden_size": True},
        {"rms_norm_eps": -1.0},
        {"rope_theta": 0.5},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": ["linear"]},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
        {"max_position_embeddings": 0},
    ],
    ids=str,
)
def test_a_configuration_that_contradicts_the_tensors_or_itself_is_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ModelError):
        folder_spec(tmp_path, "llama", **changes)


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    weights = random_weights(small_model("llama"))
    del weights[name]
    with pytest.raises(FileError, match=f"lacks the tensor {name}"):
        folder_spec(tmp_path, "llama", weights)


def test_a_tensor_that_the_architecture_has_no_use_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"'blk\.0\.attn_q\.bias'"):
        gguf_spec(tmp_path, "llama", lambda w: w.add_tensor("blk.0.attn_q.bias", np.zeros(256, np.float32)))


def test_experts_that_a_gguf_file_lacks_are_missed(tmp_path: Path) -> None:
    def add_experts(writer: gguf.GGUFWriter) -> None:
        writer.add_expert_count(8)
        writer.add_expert_used_count(2)

    with pytest.raises(FileError, match="lacks the tensor blk"):
        gguf_spec(tmp_path, "llama", add_experts)


def test_a_token_cannot_be_sent_to_more_experts_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="7 of 6 experts"):
        gguf_spec(tmp_path, "mixtral", experts_per_token=7)


def test_experts_that_lie_one_by_one_in_a_gguf_file_are_found(tmp_path: Path) -> None:
    model = small_model("mixtral")
    merged = gguf_spec(tmp_path, "mixtral").layers[1].experts
    parts = write_gguf(tmp_path / "split.gguf", model, stacked=False)
    assert [t.shape for t in model_spec(open_checkpoint(parts)).layers[1].experts] == [t.shape for t in merged]


def test_heads_whose_values_have_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="v_head_dim"):
        folder_spec(tmp_path, "llama", v_head_dim=32)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([0, 1, 2**31, 10**400, "", "yarn", "silu"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor"]), inner),
    max_leaves=4,
)
SCALINGS = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["linear", "llama3", "yarn"]), "factor": st.floats()},
    optional={
        name: st.floats() | st.integers() | JSON
        for name in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor")
    },
)


@pytest.fixture(scope="module", params=[(a, kind) for a in ARCHITECTURES for kind in ("gguf", "folder")], ids=str)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    (architecture, kind), path = request.param, tmp_path_factory.mktemp("fuzz") / "m"
    write = write_gguf if kind == "gguf" else write_folder
    return open_checkpoint(write(path, small_model(architecture)))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_value_of_a_configuration_is_used_or_refused(data: st.DataObject, checkpoint: Checkpoint) -> None:
    keys = [key for key in checkpoint.config if not key.startswith("tokenizer.")]
    keys += ["rope_scaling", "rope_parameters", "layer_types", "sliding_window_pattern", "sliding_window"]
    changes = data.draw(st.dictionaries(st.sampled_from(keys), JSON, max_size=2))
    if data.draw(st.booleans()):
        changes["rope_scaling"] = data.draw(SCALINGS)
    try:
        model_spec(replace(checkpoint, config={**checkpoint.config, **changes}))
    except ModelError:
        pass
