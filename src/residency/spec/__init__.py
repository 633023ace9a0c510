"""What a model is, in bytes: shapes, formats, state and layout, read from the headers of its files."""

from residency.spec.checkpoint import Checkpoint
from residency.spec.layout import StoreEntry, StoreLayout, read_bytes_per_token, store_layout, tiled_bytes
from residency.spec.model import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    Rearrange,
    RopeSpec,
    SourceTensor,
    StateSpec,
    TensorSpec,
)
from residency.spec.opening import open_checkpoint

__all__ = [
    "AttentionSpec",
    "Checkpoint",
    "LayerSpec",
    "MlpSpec",
    "ModelSpec",
    "Rearrange",
    "RopeSpec",
    "SourceTensor",
    "StateSpec",
    "StoreEntry",
    "StoreLayout",
    "TensorSpec",
    "open_checkpoint",
    "read_bytes_per_token",
    "store_layout",
    "tiled_bytes",
]
