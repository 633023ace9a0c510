"""Qwen1.5-MoE and Qwen2-57B-A14B: configuration to ModelSpec, with what all of Qwen's mixtures share."""

from residency.models.configuration import Configuration, configuration
from residency.models.decoder import qwen_decoder
from residency.models.mixture import Mixture, check_routes
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import ModelSpec, MoeSpec


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
    moe = MoeSpec(
        num_experts=config.integer("num_experts"),
        experts_per_token=config.integer("num_experts_per_tok"),
        intermediate=config.integer("moe_intermediate_size"),
        activation="silu",
        shared_intermediate=shared,
        renormalized=renormalized,
    )
    dense, step = config.integers("mlp_only_layers"), config.integer("decoder_sparse_step", 1)

    def mixture_of(layer: int) -> Mixture | None:
        is_dense = layer in dense or (layer + 1) % step
        return None if is_dense else Mixture(spec=check_routes(config, moe))

    return qwen_decoder(checkpoint, config, bias=bias, qk_norm=qk_norm, mixture_of=mixture_of)
