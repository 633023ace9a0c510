"""Saves small checkpoints as `transformers` does: config.json, safetensors (one file or shards), tokenizer.json.

Without torch: the files are written through the safetensors package, so that most tests need no more.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.formats import BF16, pack_rows, unpack_rows
from support.gguf_files import CHAT_TEMPLATE, MERGES, SPECIAL_TOKENS, byte_characters
from support.models import MIXTURES, SmallModel, Weights, random_weights

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def write_folder(
    folder: Path,
    model: SmallModel,
    *,
    dtype: str = "F32",
    num_shards: int = 1,
    weights: Weights | None = None,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Saves `model` with `weights` (default: random) of `dtype` F32, F16 or BF16; `changes` are made to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config_of(model), **(changes or {})}, indent=1))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(model.vocabulary)))
    (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config()))
    tensors = weights or random_weights(model)
    if num_shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, dtype))
        return folder
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        held = {name: tensors[name] for name in names[shard::num_shards]}
        (folder / file_name).write_bytes(safetensors_bytes(held, dtype))
        weight_map |= dict.fromkeys(held, file_name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def config_of(model: SmallModel) -> dict[str, Any]:
    """config.json of `model`."""
    config = {
        "architectures": [CLASSES[model.architecture]],
        "model_type": "gemma3_text" if model.architecture == "gemma3" else model.architecture,
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": model.context_tokens,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied,
        "bos_token_id": 256 + len(MERGES),
        "eos_token_id": 256 + len(MERGES) + 2,
        "pad_token_id": 256 + len(MERGES),
    }
    if model.architecture == "mixtral":
        config |= {"num_local_experts": model.num_experts, "num_experts_per_tok": model.experts_per_token}
    elif model.architecture in MIXTURES:
        config |= {
            "num_experts": model.num_experts,
            "num_experts_per_tok": model.experts_per_token,
            "moe_intermediate_size": model.expert_intermediate,
            "mlp_only_layers": list(model.dense_layers),
            "norm_topk_prob": model.renormalized,
        }
    if model.architecture == "qwen2_moe":
        config["shared_expert_intermediate_size"] = model.shared_intermediate
    if model.architecture == "gemma3":
        config |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": model.head_dim,
            "sliding_window": model.window_tokens,
            "sliding_window_pattern": model.window_pattern,
            "rope_local_base_freq": 10000.0,
        }
    else:
        config["hidden_act"] = "silu"
    return config


def in_bfloat16(weights: Weights) -> Weights:
    """The weights after a round trip through bfloat16."""
    return {
        name: unpack_rows(BF16, pack_rows(BF16, np.atleast_2d(values))).reshape(values.shape)
        for name, values in weights.items()
    }


def safetensors_bytes(tensors: Weights, dtype: str = "F32") -> bytes:
    """A safetensors file of `tensors`, written by the format's specification."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    end = 0
    for name, values in tensors.items():
        data = _encoded(values, dtype)
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [end, end + len(data)]}
        parts.append(data)
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def _encoded(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "BF16":
        return pack_rows(BF16, np.atleast_2d(values)).tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def _tokenizer(vocabulary: int) -> dict[str, Any]:
    tokens = byte_characters() + [merge.replace(" ", "") for merge in MERGES]
    first_special = len(tokens)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": first_special + index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[2],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
