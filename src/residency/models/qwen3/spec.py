"""Qwen3: configuration to ModelSpec."""

from residency.models.configuration import configuration
from residency.models.decoder import (
    build_layer,
    build_model,
    check_activation,
    dimensions,
    global_rope,
    optional_windows,
)
from residency.models.tensors import TensorFinder
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import AttentionSpec, ModelSpec


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model in `checkpoint`. FileError if it contradicts itself, UnsupportedError for a variant not handled."""
    config = configuration(checkpoint).with_defaults(head_dim=128)
    config.refuse_unhandled()
    check_activation(config, "hidden_act", "silu", {"silu", "swish"})
    extents = dimensions(config)
    finder = TensorFinder(checkpoint)
    rope = global_rope(checkpoint, config, extents)
    layers = []
    for layer, window_tokens in enumerate(optional_windows(config, extents)):
        attention = AttentionSpec(
            num_heads=extents.num_heads,
            num_kv_heads=extents.num_kv_heads,
            head_dim=extents.head_dim,
            scale=extents.head_dim**-0.5,
            rope=rope,
            window_tokens=window_tokens,
            qk_norm=True,
        )
        layers.append(build_layer(finder, extents, layer, attention))
    return build_model(checkpoint, config, extents, finder, layers)
