"""Qwen3: configuration to ModelSpec."""

from residency.models.configuration import configuration
from residency.models.decoder import qwen_decoder
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import ModelSpec


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The model in `checkpoint`. FileError if it contradicts itself, UnsupportedError for a variant not handled."""
    config = configuration(checkpoint).with_defaults(head_dim=128)
    config.refuse_unhandled()
    return qwen_decoder(checkpoint, config, qk_norm=True)
