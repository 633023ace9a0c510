"""Llama, SmolLM and Mistral: configuration to ModelSpec."""

from residency.models.configuration import Configuration, configuration
from residency.models.decoder import (
    Dimensions,
    build_layer,
    build_model,
    check_activation,
    dimensions,
    global_rope,
    window_or_none,
)
from residency.models.tensors import TensorFinder
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import AttentionSpec, ModelSpec, Rearrange


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model in `checkpoint`. FileError if it contradicts itself, UnsupportedError for a variant not handled."""
    config = configuration(checkpoint)
    config.refuse_unhandled()
    check_activation(config, "hidden_act", "silu", {"silu", "swish"})
    extents = dimensions(config)
    finder = TensorFinder(checkpoint)
    attention = AttentionSpec(
        num_heads=extents.num_heads,
        num_kv_heads=extents.num_kv_heads,
        head_dim=extents.head_dim,
        scale=extents.head_dim**-0.5,
        rope=global_rope(checkpoint, config, extents),
        window_tokens=_window(checkpoint, config, extents),
    )
    qk = Rearrange.UNPERMUTE_ROPE if checkpoint.kind == "gguf" else Rearrange.NONE
    layers = [build_layer(finder, extents, layer, attention, qk=qk) for layer in range(extents.num_layers)]
    return build_model(checkpoint, config, extents, finder, layers)


def _window(checkpoint: Checkpoint, config: Configuration, extents: Dimensions) -> int | None:
    """Mistral's sliding window, 4096 where config.json does not name it. Llama has none."""
    if checkpoint.kind == "safetensors" and checkpoint.architecture != "mistral":
        return None
    if not config.has("sliding_window") and (checkpoint.kind == "gguf" or config.names("sliding_window")):
        return None
    return window_or_none(config.integer("sliding_window", 4096), extents)
