"""Writes small GGUF models through the gguf package, tokenizer included."""

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from residency.formats import F32, Format, format_named, pack_rows, unpack_rows
from support.models import MIXTURES, SmallModel, Weights, random_weights

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
MIXTURE_NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps",
}
GGUF_ARCHITECTURES = {"mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "i n", "e r", "Ġ a", "o n"]


def write_gguf(
    path: Path,
    model: SmallModel,
    number_format: str = "F32",
    *,
    weights: Weights | None = None,
    edit: Callable[[gguf.GGUFWriter], None] | None = None,
    stacked: bool = True,
) -> Path:
    """Writes `model` with its matrices in `number_format`; `edit` may add metadata or tensors before it is written.

    `weights` are those of a `transformers` checkpoint (default: random); they are rearranged as llama.cpp's
    converter does, a layer's experts `stacked` as one tensor or, as in older files, one by one. A tokenizer
    of the 256 bytes, a few merges and three special tokens comes with it.
    """
    writer = gguf.GGUFWriter(path, GGUF_ARCHITECTURES.get(model.architecture, model.architecture))
    _add_metadata(writer, model)
    _add_tokenizer(writer, model.vocabulary)
    matrix_format = format_named(number_format)
    tensors = weights or random_weights(model)
    for name, values in (_stacked(tensors) if stacked else tensors).items():
        stored = as_gguf_holds(model, name, values)
        as_floats = stored.ndim == 1 or name.endswith("gate.weight")
        _add_tensor(writer, gguf_name(model, name), stored, F32 if as_floats else matrix_format)
    if edit is not None:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rounded(weights: Weights, number_format: str) -> Weights:
    """The weights as they are after a round trip through `number_format`: what a reference must compute with."""
    chosen = format_named(number_format)
    return {
        name: unpack_rows(chosen, pack_rows(chosen, values)) if values.ndim == 2 else values
        for name, values in weights.items()
    }


def _stacked(weights: Weights) -> Weights:
    """The weights with a layer's experts as one tensor, the first axis the expert."""
    found: dict[str, list[npt.NDArray[np.float32]]] = {}
    for name, values in weights.items():
        found.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.", name), []).append(values)
    return {name: np.stack(parts) if ".experts." in name else parts[0] for name, parts in found.items()}


def gguf_name(model: SmallModel, name: str) -> str:
    """GGUF's name of the tensor that `transformers` calls `name`."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTER_NAMES:
        return f"{OUTER_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    if expert := re.search(r"experts\.(\d+)\.", part):
        merged = MIXTURE_NAMES[part.replace(expert[0], "experts.")]
        return f"blk.{layer}.{merged.removesuffix('_exps')}.{expert[1]}.{kind}"
    names = LAYER_NAMES | MIXTURE_NAMES | (GEMMA_NAMES if model.architecture == "gemma3" else {})
    return f"blk.{layer}.{names[part]}.{kind}"


def as_gguf_holds(model: SmallModel, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rotary halves interleaved in llama's q and k; one added to Gemma's norms."""
    if name.endswith("shared_expert_gate.weight"):
        return values.reshape(-1)
    if model.architecture in ("llama", "mixtral") and name.endswith(("q_proj.weight", "k_proj.weight")):
        halves = values.reshape(-1, 2, model.head_dim // 2, values.shape[1])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    if model.architecture == "gemma3" and name.endswith("norm.weight"):
        return values + 1
    return values


def byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte (GPT-2): itself if printable, else from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(256)]


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: npt.NDArray[np.float32], chosen: Format) -> None:
    packed = pack_rows(chosen, values.reshape(-1, values.shape[-1]))
    if chosen.name == "F32":
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(
            name, packed.reshape(*values.shape[:-1], -1), raw_dtype=gguf.GGMLQuantizationType[chosen.name]
        )


def _add_metadata(writer: gguf.GGUFWriter, model: SmallModel) -> None:
    writer.add_name(f"small {model.architecture}")
    writer.add_context_length(model.context_tokens)
    writer.add_embedding_length(model.hidden)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.intermediate)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(model.norm_epsilon)
    writer.add_rope_freq_base(model.rope_theta)
    if model.architecture in MIXTURES:
        writer.add_expert_count(model.num_experts)
        writer.add_expert_used_count(model.experts_per_token)
    if model.architecture in ("qwen2_moe", "qwen3_moe"):
        writer.add_expert_feed_forward_length(model.expert_intermediate)
    if model.architecture == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(model.shared_intermediate)
    if model.architecture in ("llama", "mixtral"):
        writer.add_rope_dimension_count(model.head_dim)
        writer.add_vocab_size(model.vocabulary)
    if model.architecture == "gemma3":
        writer.add_sliding_window(model.window_tokens)
        writer.add_sliding_window_pattern(model.window_pattern)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    tokens = byte_characters() + [merge.replace(" ", "") for merge in MERGES] + SPECIAL_TOKENS
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL_TOKENS)) + [gguf.TokenType.CONTROL] * 3
    first_special = len(tokens) - len(SPECIAL_TOKENS)
    unused = max(0, vocabulary - len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + [f"[PAD{index}]" for index in range(unused)])
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * unused)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(first_special)
    writer.add_eos_token_id(first_special + 2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
