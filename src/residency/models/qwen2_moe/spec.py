"""Qwen1.5-MoE and Qwen2-57B-A14B: configuration to ModelSpec, with what all of Qwen's mixtures share."""

from residency.models.configuration import Configuration, configuration
from residency.models.decoder import (
    Dimensions,
    build_layer,
    build_model,
    check_activation,
    dimensions,
    global_rope,
    optional_windows,
)
from residency.models.mixture import Mixture, check_routes
from residency.models.tensors import TensorFinder
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import AttentionSpec, ModelSpec, MoeSpec


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model in `checkpoint`. FileError if it contradicts itself, UnsupportedError for a variant not handled."""
    config = configuration(checkpoint)
    shared = config.integer("shared_expert_intermediate_size")
    renormalized = checkpoint.kind == "safetensors" and config.flag("norm_topk_prob", False)
    return qwen_mixture(
        checkpoint, config, shared=shared, renormalized=renormalized, bias=config.flag("qkv_bias", True), qk_norm=False
    )


def qwen_mixture(
    checkpoint: Checkpoint, config: Configuration, *, shared: int, renormalized: bool, bias: bool, qk_norm: bool
) -> ModelSpec:
    """A model whose layers are mixtures, but those that its configuration names, and all but each so-many-th.

    `shared`: the intermediate size of the network that every token passes, 0 for none.
    """
    config.refuse_unhandled(but=("num_experts",))
    check_activation(config, "hidden_act", "silu", {"silu", "swish"})
    extents = dimensions(config)
    finder = TensorFinder(checkpoint)
    moe = MoeSpec(
        num_experts=config.integer("num_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer("moe_intermediate_size"),
        activation="silu",
        shared_intermediate=shared,
        renormalized=renormalized,
    )
    dense = _dense_layers(config, extents)
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
            bias=bias,
            qk_norm=qk_norm,
        )
        mixture = None if layer in dense else Mixture(spec=check_routes(config, moe))
        layers.append(build_layer(finder, extents, layer, attention, mixture=mixture))
    return build_model(checkpoint, config, extents, finder, layers)


def _dense_layers(config: Configuration, extents: Dimensions) -> set[int]:
    """mlp_only_layers, and those between each decoder_sparse_step-th."""
    step = config.integer("decoder_sparse_step", 1)
    between = (layer for layer in range(extents.num_layers) if (layer + 1) % step)
    return {*config.integers("mlp_only_layers"), *between}
