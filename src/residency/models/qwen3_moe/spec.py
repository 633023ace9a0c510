"""Qwen3's mixtures: configuration to ModelSpec."""

from residency.models.configuration import configuration
from residency.models.qwen2_moe.spec import qwen_mixture
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import ModelSpec


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model in `checkpoint`. FileError if it contradicts itself, UnsupportedError for a variant not handled."""
    config = configuration(checkpoint).with_defaults(head_dim=128)
    renormalized = checkpoint.kind == "gguf" or config.flag("norm_topk_prob", False)
    return qwen_mixture(checkpoint, config, shared=0, renormalized=renormalized, bias=False, qk_norm=True)
