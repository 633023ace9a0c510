"""A configuration alone says which tensors the checkpoint holds: compared with what `transformers` writes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from residency.errors import FileError, UnsupportedError
from residency.models.planned import ARCHITECTURES as PLANNED
from residency.models.planned import MULTIMODAL as SEEING
from residency.models.planned import planned_spec
from residency.models.planned.headers import parts_of
from residency.models.specs import model_spec, named_spec
from residency.spec import ModelSpec, open_checkpoint
from residency.spec.safetensors import read_safetensors
from support.folders import write_folder
from support.gguf_files import write_gguf
from support.models import ARCHITECTURES, small_model

torch = pytest.importorskip("torch", reason="the reference is built by transformers on torch")
transformers = pytest.importorskip("transformers", reason="the reference is built by transformers")

HEADS = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
SMALL = {**HEADS, "vocab_size": 96, "intermediate_size": 80, "max_position_embeddings": 64}
WITHOUT_MLP = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
FALCON = {key: value for key, value in WITHOUT_MLP.items() if key != "num_key_value_heads"}
LATENT = {"kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 20, "num_key_value_heads": 4}
FULL = "full_attention"
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SMALL),
    "llama, tied, with biases": (
        "llama",
        {**SMALL, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": ("mistral", SMALL),
    "mixtral": ("mixtral", {**SMALL, "num_local_experts": 3}),
    "qwen2": ("qwen2", SMALL),
    "qwen2_moe": ("qwen2_moe", {**SMALL, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 48}),
    "qwen2_moe, some layers dense": (
        "qwen2_moe",
        {**SMALL, **EXPERTS, "num_experts": 4, "decoder_sparse_step": 2, "mlp_only_layers": [1]},
    ),
    "qwen3": ("qwen3", {**SMALL, "head_dim": 24}),
    "qwen3_moe": ("qwen3_moe", {**SMALL, **EXPERTS, "num_experts": 4, "head_dim": 24}),
    "qwen3_next": (
        "qwen3_next",
        {**SMALL, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 48, "num_hidden_layers": 4},
    ),
    "phi": ("phi", SMALL),
    "phi3": ("phi3", {**SMALL, "pad_token_id": 0}),
    "gemma": ("gemma", {**SMALL, "head_dim": 24}),
    "gemma2": ("gemma2", {**SMALL, "head_dim": 24}),
    "gemma3_text": ("gemma3_text", {**SMALL, "head_dim": 24}),
    "gemma3n_text": (
        "gemma3n_text",
        {
            **SMALL,
            "num_hidden_layers": 6,
            "head_dim": 16,
            "vocab_size_per_layer_input": 90,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "laurel_rank": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma4_text, small": (
        "gemma4_text",
        {
            **SMALL,
            "num_hidden_layers": 6,
            "head_dim": 16,
            "global_head_dim": 32,
            "layer_types": ["sliding_attention", FULL] * 3,
            "vocab_size_per_layer_input": 90,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
        },
    ),
    "gemma4_text, with experts": (
        "gemma4_text",
        {
            **SMALL,
            "num_hidden_layers": 2,
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "layer_types": ["sliding_attention", FULL],
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "num_experts": 4,
            "moe_intermediate_size": 24,
            "top_k_experts": 2,
        },
    ),
    "granite": ("granite", SMALL),
    "granitemoe": ("granitemoe", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "helium": ("helium", {**SMALL, "head_dim": 16}),
    "arcee": ("arcee", SMALL),
    "cwm": ("cwm", {**SMALL, "head_dim": 24}),
    "ernie4_5": ("ernie4_5", SMALL),
    "glm": ("glm", {**SMALL, "head_dim": 24, "pad_token_id": 0}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {**SMALL, "head_dim": 24}),
    "ministral": ("ministral", {**SMALL, "head_dim": 24}),
    "ministral3": ("ministral3", SMALL),
    "nemotron": ("nemotron", SMALL),
    "stablelm": ("stablelm", {**SMALL, "use_qkv_bias": True}),
    "smollm3": ("smollm3", {**SMALL, "pad_token_id": 0}),
    "glm4": ("glm4", {**SMALL, "head_dim": 16, "pad_token_id": 0}),
    "glm4_moe": (
        "glm4_moe",
        {**SMALL, **EXPERTS, "n_routed_experts": 4, "head_dim": 16, "use_qk_norm": True, "n_group": 1, "topk_group": 1},
    ),
    "olmo2": ("olmo2", {**SMALL, "pad_token_id": 0}),
    "olmo3": ("olmo3", {**SMALL, "pad_token_id": 0}),
    "exaone4": ("exaone4", SMALL),
    "cohere": ("cohere", {**SMALL, "pad_token_id": 0}),
    "cohere2": ("cohere2", {**SMALL, "pad_token_id": 0}),
    "seed_oss": ("seed_oss", {**SMALL, "head_dim": 16}),
    "llama4_text": (
        "llama4_text",
        {**SMALL, "intermediate_size_mlp": 48, "num_local_experts": 4, "interleave_moe_layer_step": 2, "head_dim": 16},
    ),
    "granitemoeshared": (
        "granitemoeshared",
        {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 48},
    ),
    "phimoe": ("phimoe", {**SMALL, "num_local_experts": 4, "lm_head_bias": True}),
    "minimax_m2": ("minimax_m2", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 24}),
    "ernie4_5_moe": ("ernie4_5_moe", {**SMALL, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}),
    "dots1": (
        "dots1",
        {**SMALL, **EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    ),
    "olmoe": ("olmoe", {**SMALL, "num_experts": 4, "num_experts_per_tok": 2}),
    "nemotron_h": (
        "nemotron_h",
        {
            **{key: value for key, value in SMALL.items() if key != "num_hidden_layers"},
            **EXPERTS,
            "layers_block_type": ["mamba", "moe", "attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "n_routed_experts": 3,
            "moe_shared_expert_intermediate_size": 40,
            "head_dim": 16,
        },
    ),
    "starcoder2": ("starcoder2", SMALL),
    "olmo": ("olmo", {**SMALL, "pad_token_id": 0}),
    "apertus": ("apertus", {**SMALL, "pad_token_id": 0}),
    "vaultgemma": ("vaultgemma", {**SMALL, "head_dim": 24}),
    "afmoe": ("afmoe", {**SMALL, **EXPERTS, "num_experts": 4, "head_dim": 24, "num_shared_experts": 2}),
    "exaone_moe": (
        "exaone_moe",
        {**SMALL, **EXPERTS, "num_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    ),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {**SMALL, "num_experts": 4, "moe_topk": 2, "head_dim": 24}),
    "flex_olmo": ("flex_olmo", {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0}),
    "dbrx": (
        "dbrx",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "vocab_size": 96,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 500000.0},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": 64,
            "num_layers": 4,
            "num_heads": 4,
            "vocab_size": 96,
            "attention_types": [[["global", "local"], 2]],
        },
    ),
    "codegen": ("codegen", {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 96, "rotary_dim": 8}),
    "recurrent_gemma": ("recurrent_gemma", {**SMALL, "num_key_value_heads": 1, "lru_width": 96}),
    "gpt_oss": ("gpt_oss", {**SMALL, "num_local_experts": 4, "head_dim": 24}),
    "deepseek_v2": (
        "deepseek_v2",
        {**SMALL, **LATENT, **EXPERTS, "n_routed_experts": 4, "q_lora_rank": None, "first_k_dense_replace": 1},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **SMALL,
            **LATENT,
            **EXPERTS,
            "n_routed_experts": 4,
            "q_lora_rank": 12,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "deepseek_v32, with an index": (
        "deepseek_v32",
        {
            **SMALL,
            **LATENT,
            **EXPERTS,
            "n_routed_experts": 4,
            "q_lora_rank": 12,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "index_head_dim": 16,
            "index_n_heads": 4,
        },
    ),
    "glm4_moe_lite": (
        "glm4_moe_lite",
        {**SMALL, **LATENT, **EXPERTS, "n_routed_experts": 4, "q_lora_rank": 12, "n_group": 1, "topk_group": 1},
    ),
    "minicpm3": ("minicpm3", {**SMALL, **LATENT, "q_lora_rank": 12}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 96, "n_positions": 32}),
    "gpt_neox": ("gpt_neox", SMALL),
    "opt": ("opt", {**WITHOUT_MLP, "ffn_dim": 80, "word_embed_proj_dim": 64}),
    "opt, narrow, without a final norm": (
        "opt",
        {**WITHOUT_MLP, "ffn_dim": 80, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
    "bloom": ("bloom", {"hidden_size": 64, "n_head": 4, "n_layer": 3, "vocab_size": 96}),
    "mpt": ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 3, "vocab_size": 96, "max_seq_len": 64}),
    "gptj": ("gptj", {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 96, "rotary_dim": 8}),
    "gpt_bigcode": ("gpt_bigcode", {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 96}),
    "falcon, one key-value head": ("falcon", {**FALCON, "multi_query": True, "new_decoder_architecture": False}),
    "falcon, the newer decoder": ("falcon", {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "mamba": ("mamba", {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 96, "state_size": 8}),
    "mamba2": (
        "mamba2",
        {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 96, "num_heads": 8, "head_dim": 16, "n_groups": 2},
    ),
    "falcon_mamba": ("falcon_mamba", {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 96}),
    "rwkv": ("rwkv", {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 96}),
    "jamba": (
        "jamba",
        {**SMALL, "num_hidden_layers": 8, "num_experts": 3, "attn_layer_period": 4, "attn_layer_offset": 2},
    ),
    "bamba": ("bamba", {**SMALL, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": "auto"}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **SMALL,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 48,
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "layer_types": ["mamba", "attention", "mamba"],
        },
    ),
    "falcon_h1": ("falcon_h1", {**SMALL, "mamba_n_heads": 8, "mamba_d_ssm": 128, "mamba_d_head": 16}),
    "lfm2_moe": (
        "lfm2_moe",
        {
            **SMALL,
            **EXPERTS,
            "num_experts": 4,
            "num_dense_layers": 1,
            "layer_types": ["conv", FULL, "conv"],
        },
    ),
    "qwen3_5_text": ("qwen3_5_text", {**SMALL, "num_hidden_layers": 4, "head_dim": 24}),
    "qwen3_5_moe_text": (
        "qwen3_5_moe_text",
        {**SMALL, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 48, "num_hidden_layers": 4},
    ),
    "persimmon": ("persimmon", {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}),
    "bitnet": ("bitnet", SMALL),
    "olmo_hybrid": (
        "olmo_hybrid",  # of equal widths, as transformers cuts its joint convolution in three when it writes
        {**SMALL, "num_hidden_layers": 4, "pad_token_id": 0, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    ),
    "kimi_linear": (
        "kimi_linear",
        {
            **SMALL,
            **LATENT,
            **EXPERTS,
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention"] * 3 + [FULL],
            "mlp_layer_types": ["sparse"] * 4,  # transformers writes a dense network under the experts' name
            "pad_token_id": 0,
        },
    ),
    "longcat_flash": (
        "longcat_flash",
        {
            **{key: value for key, value in SMALL.items() if key not in ("intermediate_size", "num_hidden_layers")},
            **LATENT,
            "num_layers": 2,
            "ffn_hidden_size": 80,
            "expert_ffn_hidden_size": 24,
            "n_routed_experts": 4,
            "zero_expert_num": 0,  # transformers writes matrices for those that do nothing
            "moe_topk": 2,
            "q_lora_rank": 12,
        },
    ),
    "mimo_v2_flash": (
        "mimo_v2_flash",
        {**SMALL, **EXPERTS, "n_routed_experts": 4, "head_dim": 24, "v_head_dim": 16, "num_key_value_heads": 1},
    ),
    "minimax": ("minimax", {**SMALL, "num_local_experts": 4, "head_dim": 16, "block_size": 32}),
    "zamba2, two blocks in turn": (
        "zamba2",
        {
            **SMALL,
            "num_key_value_heads": 4,
            "num_hidden_layers": 6,
            "layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid", "mamba"],
            "hybrid_layer_ids": [1, 2, 4],
            "num_mem_blocks": 2,
            "use_shared_attention_adapter": True,
            "n_mamba_heads": 8,
            "mamba_headdim": 16,
        },
    ),
    "lfm2": ("lfm2", {**SMALL, "full_attn_idxs": [2], "block_multiple_of": 32}),
}


def saved(name: str, folder: Path) -> dict[str, Any]:
    """A random model, as `transformers` saves it in `folder`; its config.json."""
    model_type, changes = MODELS[name]
    config = transformers.AutoConfig.for_model(model_type, **changes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return values


def names_and_shapes(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, each expert by its own name."""
    return dict(part for tensor in model.tensors for part in parts_of(tensor))


def own_name(name: str) -> str:
    """GPT-2 is published without the prefix that transformers saves, and OLMo Hybrid's layers that attend without the
    name that it gives a norm of the others."""
    return name.removeprefix("transformer.").replace("feedforward_layer_norm", "post_attention_layernorm")


@pytest.mark.parametrize("name", MODELS)
def test_a_configuration_gives_the_names_and_shapes_that_transformers_writes(name: str, tmp_path: Path) -> None:
    ours = names_and_shapes(planned_spec(name, "config.json", saved(name, tmp_path)))
    written = {name: t.shape for name, t in read_safetensors(tmp_path / "model.safetensors").items()}
    assert {own_name(n): s for n, s in ours.items()} == {own_name(n): s for n, s in written.items()}


VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
MULTIMODAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({**SMALL, "head_dim": 24}, {**VISION, "image_size": 28, "patch_size": 14}),
    "mistral3": ({**SMALL, "head_dim": 24, "model_type": "mistral"}, {**VISION, "head_dim": 16, "patch_size": 14}),
    "llama4": (
        {**SMALL, "intermediate_size_mlp": 48, "num_local_experts": 4, "head_dim": 16},
        {**VISION, "image_size": 28, "vision_output_dim": 40, "projector_input_dim": 40, "projector_output_dim": 40},
    ),
}


QWEN = {"depth": 2, "num_heads": 2, "patch_size": 14}
MULTIMODAL |= {
    "llava": (
        {**SMALL, "model_type": "llama"},
        {**VISION, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14},
    ),
    "llava_next": (
        {**SMALL, "model_type": "llama"},
        {**VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14},
    ),
    "mllama": (
        {**SMALL, "num_hidden_layers": 4, "cross_attention_layers": [1, 3], "pad_token_id": 0},
        {
            **{key: value for key, value in VISION.items() if key != "num_attention_heads"},
            "attention_heads": 2,
            "num_global_layers": 1,
            "image_size": 28,
            "vision_output_dim": 192,
        },
    ),
    "qwen2_vl": (SMALL, {**QWEN, "embed_dim": 32, "hidden_size": 64}),
    "qwen2_5_vl": (SMALL, {**QWEN, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48}),
    "qwen3_vl": (
        {**SMALL, "head_dim": 24},
        {
            **QWEN,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 48,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [1],
        },
    ),
    "qwen3_vl_moe": (
        {**SMALL, **EXPERTS, "num_experts": 4, "head_dim": 24},
        {**QWEN, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "deepstack_visual_indexes": [1]},
    ),
    "idefics3": (
        {**SMALL, "model_type": "llama", "pad_token_id": 0},
        {**VISION, "image_size": 28, "patch_size": 14},
    ),
    "smolvlm": ({**SMALL, "model_type": "llama", "pad_token_id": 0}, {**VISION, "image_size": 28, "patch_size": 14}),
    "paligemma": (
        {**SMALL, "model_type": "gemma", "head_dim": 24},
        {**VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, "vision_use_head": False},
    ),
    "internvl": (
        {**SMALL, "model_type": "qwen2"},
        {**VISION, "model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [14, 14]},
    ),
    "glm4v": (
        {**SMALL, "head_dim": 16, "pad_token_id": 0},
        {
            "depth": 2,
            "num_heads": 2,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 48,
            "image_size": 28,
        },
    ),
    "glm4v_moe": (
        {**SMALL, **EXPERTS, "n_routed_experts": 4, "head_dim": 16, "n_group": 1, "topk_group": 1},
        {
            "depth": 2,
            "num_heads": 2,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 48,
            "image_size": 28,
        },
    ),
    "qwen3_5": (
        {**SMALL, "head_dim": 24, "num_hidden_layers": 4},
        {**QWEN, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "num_position_embeddings": 16},
    ),
}


@pytest.mark.parametrize("model_type", MULTIMODAL)
def test_a_multimodal_configuration_gives_the_towers_tensors_too(model_type: str, tmp_path: Path) -> None:
    text, vision = MULTIMODAL[model_type]
    config = transformers.AutoConfig.for_model(model_type, text_config=text, vision_config=vision)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    ours = names_and_shapes(planned_spec(model_type, "config.json", values))
    written = {name: t.shape for name, t in read_safetensors(tmp_path / "model.safetensors").items()}
    assert {n.replace("vision_tower.vision_model.", "vision_tower."): s for n, s in ours.items()} == written


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt2", "jamba", "gpt_oss", "falcon, the newer decoder"])
def test_a_folder_with_and_without_its_weights_is_the_same_model(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    with_weights = named_spec(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    alone = named_spec(tmp_path)
    assert names_and_shapes(alone) == names_and_shapes(with_weights)
    assert alone.weight_bytes == with_weights.weight_bytes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_planned_is_what_is_run(architecture: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", small_model(architecture))
    planned, run = named_spec(folder), model_spec(open_checkpoint(folder))
    told = [[(t.name, t.shape, t.format, t.role, t.split) for t in sorted(m.tensors, key=str)] for m in (planned, run)]
    assert sorted(told[0], key=str) == sorted(told[1], key=str)
    assert planned.states() == run.states()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gguf_file_is_planned_as_it_is_run(architecture: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", small_model(architecture), "Q4_K")
    planned, run = named_spec(path), model_spec(open_checkpoint(path))
    assert (planned.weight_bytes, planned.parameters) == (run.weight_bytes, run.parameters)
    assert planned.states() == run.states()


def config(**changes: Any) -> dict[str, Any]:
    return {"model_type": "llama", "dtype": "bfloat16", **SMALL, **changes}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_kv_shared_layers", 2),
        ("kv_lora_rank", 16),
        ("attention_kind", "latent"),
        ("cross_layer_sharing", True),
        ("num_experts", 8),
        ("layer_types", ["linear_attention"] * 3),
        ("mla", {"rank": 8}),
        ("state_size", 16),
    ],
)
def test_a_key_that_may_change_memory_is_named_and_refused(key: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=key):
        planned_spec("model", "config.json", config(**{key: value}))


def test_an_unknown_key_of_a_nested_object_is_named_and_refused() -> None:
    vision = {"num_hidden_layers": 2, "num_latent_queries": 64}
    values = {"model_type": "llava", "text_config": SMALL, "vision_config": vision}
    with pytest.raises(UnsupportedError, match=r"vision_config\.num_latent_queries"):
        planned_spec("model", "config.json", values)


@pytest.mark.parametrize(("key", "value"), [("lm_head", True), ("dynamic", {"-:.*down": {"bits": 8}})])
def test_a_quantization_that_spares_or_adds_modules_in_an_unknown_way_is_refused(key: str, value: Any) -> None:
    method = {"quant_method": "gptq", "bits": 4, key: value}
    with pytest.raises(UnsupportedError, match=key):
        planned_spec("model", "config.json", config(quantization_config=method))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_kv_shared_layers", 0),
        ("attention_dropout", 0.1),
        ("_name_or_path", "somewhere"),
        ("rope_scaling", {"rope_type": "whatever", "factor": 8.0}),
        ("pretraining_tp", 2),
        ("bos_token_id", 5),
    ],
)
def test_a_key_that_costs_no_memory_is_passed_over(key: str, value: Any) -> None:
    with_key, without = (planned_spec("model", "config.json", config(**more)) for more in ({key: value}, {}))
    assert with_key.weight_bytes == without.weight_bytes


def test_an_unknown_architecture_is_named_beside_the_nearest() -> None:
    with pytest.raises(UnsupportedError, match=r"'qwen9_moe' is not known; the nearest that are: qwen3_moe"):
        planned_spec("model", "config.json", config(model_type="qwen9_moe"))


def test_more_experts_a_token_than_there_are_is_refused() -> None:
    mixture = config(model_type="mixtral", num_local_experts=2, num_experts_per_tok=4)
    with pytest.raises(FileError, match="each token to 4 experts of 2"):
        planned_spec("model", "config.json", mixture)


def test_an_architecture_without_kernels_is_planned_and_not_run(tmp_path: Path) -> None:
    saved("olmoe", tmp_path)
    with pytest.raises(UnsupportedError, match="'olmoe' can be planned and not yet run"):
        model_spec(open_checkpoint(tmp_path))


def test_a_configuration_without_a_number_format_is_counted_in_float32_and_says_so() -> None:
    spec = planned_spec("model", "config.json", config(dtype=None))
    assert spec.weight_bytes == 4 * spec.parameters
    assert "float32" in spec.notes[-1]


def test_the_text_model_of_a_multimodal_one_is_counted_beside_its_tower() -> None:
    vision = {**VISION, "image_size": 28, "patch_size": 14, "vision_use_head": False}
    text = {**SMALL, "head_dim": 24, "model_type": "gemma3_text"}
    values = {"model_type": "gemma3", "dtype": "bfloat16", "text_config": text, "vision_config": vision}
    whole = planned_spec("model", "config.json", values)
    alone = planned_spec("model", "config.json", {**text, "dtype": "bfloat16"})
    assert whole.parameters - alone.parameters == sum(t.num_values for t in whole.others if t.role == "vision")
    assert whole.read_bytes_per_token == alone.read_bytes_per_token


def test_longcats_router_has_a_row_for_each_expert_that_does_nothing() -> None:
    _, changes = MODELS["longcat_flash"]
    values = {"model_type": "longcat_flash", "dtype": "bfloat16", **changes, "zero_expert_num": 2}
    shapes = names_and_shapes(planned_spec("model", "config.json", values))
    assert shapes["model.layers.1.mlp.router.classifier.weight"] == (4 + 2, 64)
    assert "model.layers.1.mlp.experts.4.up_proj.weight" not in shapes


def test_values_narrower_than_keys_are_kept_as_such() -> None:
    _, changes = MODELS["mimo_v2_flash"]
    values = {"model_type": "mimo_v2_flash", "dtype": "bfloat16", **changes}
    kept = {state.kind: state.bytes_per_token for state in planned_spec("model", "config.json", values).states()}
    assert kept == {"paged": 2 * (24 + 16), "window": 2 * 2 * 2 * (24 + 16)}


def test_kimi_linear_is_read_as_it_is_published() -> None:
    """moonshotai/Kimi-Linear-48B-A3B-Instruct: 7 of its 27 layers attend, 3B of its parameters meet a token."""
    layers = {"full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "kda_layers": [1, 2], "head_dim": 128, "num_heads": 32}
    values = {
        "model_type": "kimi_linear",
        "dtype": "bfloat16",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "moe_intermediate_size": 1024,
        "num_hidden_layers": 27,
        "num_attention_heads": 32,
        "num_experts": 256,
        "num_experts_per_token": 8,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 163840,
        "model_max_length": 1048576,
        "linear_attn_config": {**layers, "short_conv_kernel_size": 4},
    }
    model = planned_spec("model", "config.json", values)
    latent = [state for state in model.states() if state.kind == "latent"]
    assert (round(model.parameters / 1e9), round(model.read_bytes_per_token / 2e9)) == (49, 3)
    assert (model.max_context_tokens, sum(state.layers for state in latent)) == (1 << 20, 7)


def test_layers_that_share_keys_and_values_keep_none() -> None:
    _, changes = MODELS["gemma3n_text"]
    values = {"model_type": "gemma3n_text", "dtype": "bfloat16", **changes}
    assert sum(state.layers for state in planned_spec("model", "config.json", values).states()) == 6 - 2


def test_the_reference_lists_every_architecture() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    table = page.split("## Architectures")[1].split("##")[0]
    assert set(re.findall(r"`([a-z0-9_]+)`", table.replace("`model_type`", ""))) - {"num_kv_shared_layers"} == {
        *PLANNED,
        *SEEING,
    }
