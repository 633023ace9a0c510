"""Mixtral: configuration to ModelSpec. GGUF files call it llama."""

from residency.models.configuration import configuration
from residency.models.decoder import build_layer, build_model, check_activation, dimensions, global_rope, window_or_none
from residency.models.mixture import Mixture, check_routes
from residency.models.tensors import TensorFinder
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import AttentionSpec, ModelSpec, MoeSpec, Rearrange


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model in `checkpoint`. FileError if it contradicts itself, UnsupportedError for a variant not handled."""
    config = configuration(checkpoint)
    experts = "num_experts" if checkpoint.kind == "gguf" else "num_local_experts"
    config.refuse_unhandled(but=(experts,))
    check_activation(config, "hidden_act", "silu", {"silu", "swish"})
    extents = dimensions(config)
    finder = TensorFinder(checkpoint)
    window_tokens = config.integer("sliding_window") if config.has("sliding_window") else None
    attention = AttentionSpec(
        num_heads=extents.num_heads,
        num_kv_heads=extents.num_kv_heads,
        head_dim=extents.head_dim,
        scale=extents.head_dim**-0.5,
        rope=global_rope(checkpoint, config, extents),
        window_tokens=window_or_none(window_tokens, extents),
    )
    moe = MoeSpec(
        num_experts=config.integer(experts),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=extents.intermediate,
        activation="silu",
    )
    mixture = Mixture(spec=check_routes(config, moe), prefix="block_sparse_moe", names=("w1", "w3", "w2"))
    qk = Rearrange.UNPERMUTE_ROPE if checkpoint.kind == "gguf" else Rearrange.NONE
    layers = [
        build_layer(finder, extents, layer, attention, qk=qk, mixture=mixture) for layer in range(extents.num_layers)
    ]
    return build_model(checkpoint, config, extents, finder, layers)
