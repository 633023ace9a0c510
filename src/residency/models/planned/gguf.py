"""Any GGUF file as a model to be planned: tensors by their blocks, the state by the metadata (ggml's docs/gguf.md).

Nothing is checked against an architecture's shapes: the header is what will be loaded.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from residency.errors import FileError, UnsupportedError
from residency.formats import F32
from residency.models.configuration import LARGEST_INTEGER
from residency.models.planned.parts import MAX_LAYERS
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import (
    AttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    RecurrentSpec,
    Role,
    SourceTensor,
    Split,
    TensorSpec,
)

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_AROUND: Mapping[str, Role] = {
    "token_embd.weight": "embedding",
    "position_embd.weight": "position",
    "output.weight": "head",
}
# Every so many layers sees the whole context, where the file does not say which (llama.cpp's set_swa_pattern; it gives
# Phi-3 no windows).
_WINDOW_PERIODS = {
    "phi3": 1,
    "gemma2": 2,
    "gpt-oss": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "cohere2": 4,
    "olmo2": 4,
    "exaone4": 4,
}
_ROWS = ("attn_q", "attn_qkv", "attn_q_b", "attn_kv_b", "attn_k_b", "attn_v_b", "ffn_gate", "ffn_up", "ssm_in")
_COLUMNS = ("attn_output", "ffn_down", "ssm_out", "time_mix_output")


def gguf_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model in a GGUF file. FileError if it contradicts itself, UnsupportedError if its layers are not known."""
    metadata = _Metadata(checkpoint)
    layers: list[list[TensorSpec]] = [[] for _ in range(metadata.layers)]
    around: dict[Role, TensorSpec] = {}
    others: list[TensorSpec] = []
    for name, source in checkpoint.tensors.items():
        match = _BLOCK.fullmatch(name)
        if match is not None and int(match[1]) < len(layers):
            layers[int(match[1])].append(_in_block(source, match[2]))
            continue
        role = _AROUND.get(name, "norm" if "norm" in name else "other")
        tensor = _tensor(source, role, "vocabulary" if role in ("embedding", "head") else "replicated")
        if name in ("token_embd.weight", "output.weight", "output_norm.weight"):
            around[role] = tensor
        else:
            others.append(tensor)
    if "embedding" not in around or "norm" not in around:
        raise UnsupportedError(f"{checkpoint.path} has no token_embd.weight or output_norm.weight: no decoder.")
    return ModelSpec(
        name=checkpoint.name,
        architecture=checkpoint.architecture,
        vocabulary=around["embedding"].shape[0],
        hidden=around["embedding"].shape[-1],
        max_context_tokens=metadata.number("context_length", 1 << 20),
        norm_epsilon=1e-6,
        embedding_scale=1.0,
        embedding=around["embedding"],
        layers=tuple(_layer(metadata, number, tensors) for number, tensors in enumerate(layers)),
        final_norm=around["norm"],
        head=around.get("head"),
        others=tuple(others),
    )


class _Metadata:
    """The numbers of an architecture; lists hold one for each layer."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.layers = self.number("block_count")
        if self.layers > MAX_LAYERS:
            raise FileError(f"{checkpoint.path} claims {self.layers} layers; more than {MAX_LAYERS} cannot be right.")

    def number(self, key: str, default: int | None = None, *, layer: int = 0) -> int:
        name = f"{self.checkpoint.architecture}.{key}"
        value: Any = self.checkpoint.config.get(name, default)
        if hasattr(value, "__len__") and not isinstance(value, str) and len(value) > layer:
            value = value[layer]
        if value is None:
            raise FileError(f"{self.checkpoint.path} does not say {name}; fetch the model again.")
        if isinstance(value, bool | str) or not hasattr(value, "__int__") or not 0 <= int(value) <= LARGEST_INTEGER:
            raise FileError(f"{self.checkpoint.path} says {name} is {str(value)[:40]!r}, no number of that kind.")
        return int(value)

    def slides(self, layer: int) -> bool:
        """Whether a layer has the window: by a pattern of flags, or by a period."""
        pattern: Any = self.checkpoint.config.get(f"{self.checkpoint.architecture}.attention.sliding_window_pattern")
        if hasattr(pattern, "__len__") and not isinstance(pattern, str):
            return bool(pattern[layer]) if layer < len(pattern) else False
        period = _WINDOW_PERIODS.get(self.checkpoint.architecture, 0)
        if pattern is not None:
            period = self.number("attention.sliding_window_pattern")
        return period == 0 or (layer + 1) % period != 0


def _in_block(source: SourceTensor, part: str) -> TensorSpec:
    stem, _, kind = part.rpartition(".")
    split: Split = "rows" if stem in _ROWS else "columns" if stem in _COLUMNS else "replicated"
    if stem in ("attn_k", "attn_v"):
        split = "kv_heads"
    if stem.endswith("_exps"):
        return _tensor(source, "expert", "rows")
    if "norm" in stem:
        return _tensor(source, "norm", "replicated")
    if kind == "bias":
        return _tensor(source, "bias", "replicated" if split == "columns" else split)
    role: Role = "router" if stem == "ffn_gate_inp" else "matrix" if len(source.shape) == 2 else "other"
    return _tensor(source, role, split)


def _tensor(source: SourceTensor, role: Role, split: Split) -> TensorSpec:
    return TensorSpec(name=source.name, shape=source.shape, format=source.format, source=source, role=role, split=split)


def _layer(metadata: _Metadata, number: int, tensors: Sequence[TensorSpec]) -> LayerSpec:
    shapes = {tensor.name.split(".", 2)[2]: tensor.shape for tensor in tensors}
    return LayerSpec(
        attention=_attention(metadata, number, shapes),
        mixer=_mixer(metadata, number, shapes),
        mlp=_mlp(metadata, number, shapes),
        tensors=tuple(tensors),
    )


def _attention(
    metadata: _Metadata, number: int, shapes: Mapping[str, tuple[int, ...]]
) -> AttentionSpec | LatentAttentionSpec | None:
    if "attn_kv_a_mqa.weight" in shapes:
        rope_dim = metadata.number("rope.dimension_count")
        return LatentAttentionSpec(
            num_heads=metadata.number("attention.head_count", layer=number),
            kv_rank=metadata.number("attention.kv_lora_rank"),
            rope_dim=rope_dim,
            nope_dim=metadata.number("attention.key_length_mla", metadata.number("attention.key_length")) - rope_dim,
            value_dim=metadata.number("attention.value_length_mla", metadata.number("attention.value_length")),
            query_rank=metadata.number("attention.q_lora_rank", 0) or None,
        )
    if not {"attn_k.weight", "attn_qkv.weight"} & shapes.keys() or "ssm_beta_alpha.weight" in shapes:
        return None
    num_heads = metadata.number("attention.head_count", layer=number)
    num_kv_heads = metadata.number("attention.head_count_kv", num_heads, layer=number)
    if not num_heads or not num_kv_heads:
        return None
    head_dim = metadata.number("attention.key_length", metadata.number("embedding_length") // num_heads)
    window = metadata.number("attention.sliding_window", 0)
    sees_all = not window or window >= metadata.number("context_length", 1 << 20) or not metadata.slides(number)
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        window_tokens=None if sees_all else window,
    )


def _mixer(metadata: _Metadata, number: int, shapes: Mapping[str, tuple[int, ...]]) -> RecurrentSpec | None:
    """States as llama.cpp keeps them: in float32, of the short convolution one input less than its width."""
    if "ssm_conv1d.weight" in shapes:
        channels, width = _extents(metadata, shapes, "ssm_conv1d.weight", 2)
        state = metadata.number("ssm.state_size") * metadata.number("ssm.inner_size")
        kind = "mamba2" if len(shapes.get("ssm_a", ())) == 1 or "ssm_norm.weight" in shapes else "mamba"
        return _recurrent(kind, channels * (width - 1), state)
    if "shortconv.conv.weight" in shapes:
        channels, width = _extents(metadata, shapes, "shortconv.conv.weight", 2)
        return _recurrent("convolution", channels * (width - 1), 0)
    if any(name.startswith("time_mix_") for name in shapes):
        hidden, head = metadata.number("embedding_length"), metadata.number("wkv.head_size")
        return _recurrent("rwkv", 2 * hidden, hidden * head)
    return None


def _recurrent(kind: Any, recent_values: int, state_values: int) -> RecurrentSpec:
    return RecurrentSpec(
        kind=kind, recent_values=recent_values, state_values=state_values, recent_format=F32, state_format=F32
    )


def _mlp(metadata: _Metadata, number: int, shapes: Mapping[str, tuple[int, ...]]) -> MlpSpec | MoeSpec | None:
    gated = bool({"ffn_gate.weight", "ffn_gate_exps.weight"} & shapes.keys())
    if "ffn_up_exps.weight" in shapes:
        num_experts, intermediate, _ = _extents(metadata, shapes, "ffn_up_exps.weight", 3)
        shared = shapes.get("ffn_up_shexp.weight", (0,))[0]
        return MoeSpec(
            num_experts=num_experts,
            experts_per_token=min(num_experts, metadata.number("expert_used_count")),
            intermediate=intermediate,
            activation="silu",
            shared_intermediate=shared,
            gated=gated,
        )
    if "ffn_down.weight" not in shapes:
        return None
    return MlpSpec(intermediate=shapes["ffn_down.weight"][-1], activation="silu", gated=gated)


def _extents(metadata: _Metadata, shapes: Mapping[str, tuple[int, ...]], name: str, count: int) -> tuple[int, ...]:
    if len(shapes[name]) != count:
        raise FileError(
            f"{metadata.checkpoint.path} holds {name} of shape {shapes[name]}, which has not {count} dimensions."
        )
    return shapes[name]
