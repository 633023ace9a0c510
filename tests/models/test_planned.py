"""A configuration alone says which tensors the checkpoint holds: compared with what `transformers` writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from residency.models.planned import planned_spec
from residency.spec import ModelSpec
from residency.spec.safetensors import read_safetensors

torch = pytest.importorskip("torch", reason="the reference is built by transformers on torch")
transformers = pytest.importorskip("transformers", reason="the reference is built by transformers")

HEADS = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
SMALL = {**HEADS, "vocab_size": 96, "intermediate_size": 80, "max_position_embeddings": 64}
WITHOUT_MLP = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
FALCON = {key: value for key, value in WITHOUT_MLP.items() if key != "num_key_value_heads"}
LATENT = {"kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 20, "num_key_value_heads": 4}
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
    "granite": ("granite", SMALL),
    "granitemoe": ("granitemoe", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("smollm3", {**SMALL, "pad_token_id": 0}),
    "glm4": ("glm4", {**SMALL, "head_dim": 16, "pad_token_id": 0}),
    "glm4_moe": (
        "glm4_moe",
        {**SMALL, **EXPERTS, "n_routed_experts": 4, "head_dim": 16, "use_qk_norm": True, "n_group": 1, "topk_group": 1},
    ),
    "olmo2": ("olmo2", {**SMALL, "pad_token_id": 0}),
    "starcoder2": ("starcoder2", SMALL),
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
    "gpt2": ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 96, "n_positions": 32}),
    "gpt_neox": ("gpt_neox", SMALL),
    "opt": ("opt", {**WITHOUT_MLP, "ffn_dim": 80, "word_embed_proj_dim": 64}),
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
    "falcon_h1": ("falcon_h1", {**SMALL, "mamba_n_heads": 8, "mamba_d_ssm": 128, "mamba_d_head": 16}),
    "lfm2": ("lfm2", {**SMALL, "full_attn_idxs": [2], "block_multiple_of": 32}),
}


def published_names(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """All tensors of a checkpoint that is not quantized, each expert by its own name."""
    return {t.name.replace("{}", str(n)): t.shape for t in model.tensors for n in range(t.copies)}


@pytest.mark.parametrize("name", MODELS)
def test_a_configuration_gives_the_names_and_shapes_that_transformers_writes(name: str, tmp_path: Path) -> None:
    model_type, changes = MODELS[name]
    config = transformers.AutoConfig.for_model(model_type, **changes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    written = {name: t.shape for name, t in read_safetensors(tmp_path / "model.safetensors").items()}
    ours = published_names(planned_spec(name, "config.json", values))
    assert {n.removeprefix("transformer.") for n in ours} == {n.removeprefix("transformer.") for n in written}
    assert sorted(ours.values()) == sorted(written.values())
