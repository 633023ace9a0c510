"""Gemma 3 (its text model): configuration to ModelSpec.

Layers with a sliding window rotate with their own base; every sixth layer sees the whole context.
"""

import math

from residency.errors import FileError
from residency.models.configuration import Configuration, configuration
from residency.models.decoder import (
    Dimensions,
    build_layer,
    build_model,
    check_activation,
    dimensions,
    layer_kinds,
    window_or_none,
)
from residency.models.rope import rope_spec
from residency.models.tensors import GGUF_LAYER_NAMES, TensorFinder
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import AttentionSpec, ModelSpec, Rearrange, RopeSpec

# What `transformers` assumes where config.json is silent; multimodal Gemma configurations leave most of it out.
DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GGUF_NAMES = GGUF_LAYER_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
LAYERS_OF_27B = 62
FULL, SLIDING = "full_attention", "sliding_attention"


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model in `checkpoint`. FileError if it contradicts itself, UnsupportedError for a variant not handled."""
    config = _text_configuration(checkpoint)
    config.refuse_unhandled()
    check_activation(config, "hidden_activation", "gelu_pytorch_tanh", {"gelu_pytorch_tanh"})
    extents = dimensions(config)
    finder = TensorFinder(checkpoint, GGUF_NAMES)
    norm = Rearrange.ADD_ONE if checkpoint.kind == "safetensors" else Rearrange.NONE
    window = window_or_none(config.integer("sliding_window"), extents)
    scalar = config.number("query_pre_attn_scalar", _gguf_scalar(extents))
    ropes = {kind: _rope(config, extents, kind) for kind in (FULL, SLIDING)}
    layers = []
    for layer, kind in enumerate(_kinds(config, extents)):
        attention = AttentionSpec(
            num_heads=extents.num_heads,
            num_kv_heads=extents.num_kv_heads,
            head_dim=extents.head_dim,
            scale=scalar**-0.5,
            rope=ropes[kind],
            window_tokens=window if kind == SLIDING else None,
            qk_norm=True,
        )
        layers.append(
            build_layer(finder, extents, layer, attention, activation="gelu_tanh", norm=norm, norms_after=True)
        )
    return build_model(
        checkpoint,
        config,
        extents,
        finder,
        layers,
        norm=norm,
        embedding_scale=math.sqrt(extents.hidden),
        tied_by_default=True,
    )


def _text_configuration(checkpoint: Checkpoint) -> Configuration:
    config = configuration(checkpoint)
    if checkpoint.kind == "gguf":
        return config
    return (config.section("text_config") if config.has("text_config") else config).with_defaults(**DEFAULTS)


def _gguf_scalar(extents: Dimensions) -> float:
    """GGUF does not keep query_pre_attn_scalar: it is the head's width, but in the 27B model hidden / heads."""
    return extents.hidden / extents.num_heads if extents.num_layers == LAYERS_OF_27B else extents.head_dim


def _kinds(config: Configuration, extents: Dimensions) -> list[str]:
    if config.has("layer_types"):
        return layer_kinds(config, extents)
    flags = config.flags("sliding_window_pattern", extents.num_layers)
    if flags is not None:
        return [SLIDING if flag else FULL for flag in flags]
    pattern = config.integer("sliding_window_pattern", 6)
    return [SLIDING if (layer + 1) % pattern else FULL for layer in range(extents.num_layers)]


def _rope(config: Configuration, extents: Dimensions, kind: str) -> RopeSpec:
    """Scaling belongs to the layers that see everything; windows rotate plainly, with their own base."""
    nested = config.section("rope_parameters")
    theta = config.number("rope_theta", 1e6) if kind == FULL else config.number("rope_local_base_freq", 1e4)
    if nested.has(FULL) or nested.has(SLIDING):
        parameters = nested.section(kind)
    elif config.has("rope_parameters"):
        raise FileError(f"{config.source} has rope_parameters without {FULL}; save it again with transformers.")
    else:
        parameters = config.section("rope_scaling" if kind == FULL else "no_scaling")
    return rope_spec(
        parameters,
        rope_theta=theta,
        head_dim=extents.head_dim,
        max_context_tokens=extents.max_context_tokens,
    )
