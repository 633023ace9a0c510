"""What a model is, in bytes: shapes, formats, state and layout, read from the headers of its files."""

from residency.spec.checkpoint import Checkpoint
from residency.spec.layout import StoreEntry, StoreLayout, read_bytes_per_token, store_layout, tiled_bytes
from residency.spec.model import (
    AttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    Rearrange,
    RecurrentSpec,
    RopeSpec,
    SourceTensor,
    TensorSpec,
)
from residency.spec.opening import open_checkpoint
from residency.spec.ranks import check_tensor_parallel, layer_rank_bytes, rank_bytes, rank_states
from residency.spec.requantize import LABELS, requantized
from residency.spec.state import KV_F16, KV_FORMATS, PAGE_TOKENS, KvFormat, StateSpec, kv_format_named

__all__ = [
    "KV_F16",
    "KV_FORMATS",
    "LABELS",
    "PAGE_TOKENS",
    "AttentionSpec",
    "Checkpoint",
    "KvFormat",
    "LatentAttentionSpec",
    "LayerSpec",
    "MlpSpec",
    "ModelSpec",
    "MoeSpec",
    "Rearrange",
    "RecurrentSpec",
    "RopeSpec",
    "SourceTensor",
    "StateSpec",
    "StoreEntry",
    "StoreLayout",
    "TensorSpec",
    "check_tensor_parallel",
    "kv_format_named",
    "layer_rank_bytes",
    "rank_bytes",
    "rank_states",
    "requantized",
    "open_checkpoint",
    "read_bytes_per_token",
    "store_layout",
    "tiled_bytes",
]
