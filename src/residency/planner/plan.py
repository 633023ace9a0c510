"""The plan: everything the engine needs to know, decided beforehand. Frozen, and JSON on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MemoryBytes:
    """Bytes by class of memory; forecast and measurement share this shape."""

    weights: int
    kv_cache: int
    activations: int
    runtime: int

    @property
    def peak(self) -> int:
        """All classes together."""
        return self.weights + self.kv_cache + self.activations + self.runtime


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """One named activation array of a step; the engine allocates exactly these."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # a NumPy dtype name

    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class KvGroup:
    """Layers whose pages are handed out together: all full-attention layers, or all layers of one window."""

    layers: tuple[int, ...]
    window_tokens: int | None
    num_pages: int
    page_bytes: int  # of one page in one layer: keys and values


@dataclass(frozen=True, kw_only=True)
class SpeedForecast:
    """What the cost model expects."""

    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    time_to_first_token_seconds: float  # of a prompt as long as half the context
    bound: Literal["memory", "compute"]  # of decode
    read_bytes_per_token: int  # weights plus the keys and values of a half-full context
    read_bytes_per_second: float  # what the probe measured


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One model on one machine inside one budget."""

    model_path: Path
    model_fingerprint: str
    model_name: str
    architecture: str
    format_label: str
    budget_bytes: int
    context_tokens: int
    max_sequences: int
    chunk_tokens: int  # most tokens of one step
    page_tokens: int
    threads: int
    buffers: tuple[Buffer, ...]
    kv_groups: tuple[KvGroup, ...]
    memory: MemoryBytes
    forecast: SpeedForecast
