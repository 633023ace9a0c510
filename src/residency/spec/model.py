"""What a model is, in bytes: shapes, formats and the state it keeps. No tensors, no arithmetic on them."""

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Literal

from residency.formats import Format


class Rearrange(Enum):
    """What is done to a tensor's rows or values when a checkpoint is converted to the store."""

    NONE = "none"
    UNPERMUTE_ROPE = "unpermute-rope"  # GGUF's llama files interleave each head's rotary halves; undo it
    ADD_ONE = "add-one"  # safetensors Gemma norms hold w and multiply by (1 + w)


@dataclass(frozen=True, kw_only=True)
class SourceTensor:
    """Where a tensor's bytes are in a checkpoint."""

    name: str  # as the file calls it
    path: Path
    offset: int  # bytes from the start of the file
    shape: tuple[int, ...]  # outermost first: (rows, columns) of a matrix
    format: Format

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor in its file."""
        return self.format.bytes_of(self.shape)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A tensor of the model, under the name that `transformers` gives it."""

    name: str  # "model.layers.0.self_attn.q_proj.weight"
    shape: tuple[int, ...]  # outermost first: (rows, columns) of a matrix
    format: Format
    rearrange: Rearrange = Rearrange.NONE
    source: SourceTensor | None = None  # None: planned from a configuration alone
    heads: int | None = None  # among which UNPERMUTE_ROPE shares the rows

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor in its format, without padding."""
        return self.format.bytes_of(self.shape)


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary position embedding: the frequencies, and the factor on cosine and sine (YaRN's attention factor).

    `inverse_frequencies` has rotary_dim / 2 values, scaling (linear, Llama 3, YaRN) already applied.
    """

    inverse_frequencies: tuple[float, ...]
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Grouped-query attention of one layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float  # multiplies q·k
    rope: RopeSpec
    window_tokens: int | None = None  # sliding window: a token sees itself and window_tokens - 1 before it
    bias: bool = False  # on q, k and v
    qk_norm: bool = False  # RMS norm of each head of q and k before the rotation


@dataclass(frozen=True, kw_only=True)
class MlpSpec:
    """Gated feed-forward network: down(activation(gate(x)) * up(x))."""

    intermediate: int
    activation: Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """What a layer remembers of one sequence."""

    kind: Literal["paged", "window"]
    bytes_per_token: int
    max_tokens: int | None  # None: as many as the context; a window keeps only its last max_tokens
    fixed_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One block of the model."""

    attention: AttentionSpec
    mlp: MlpSpec
    tensors: tuple[TensorSpec, ...]

    def tensor(self, suffix: str) -> TensorSpec:
        """The layer's tensor whose name ends with `suffix` ("self_attn.q_proj.weight")."""
        return next(t for t in self.tensors if t.name.endswith("." + suffix))

    def state(self, value_bytes: int = 2) -> StateSpec:
        """Keys and values of one token, each of num_kv_heads x head_dim values of `value_bytes`."""
        a = self.attention
        per_token = 2 * a.num_kv_heads * a.head_dim * value_bytes
        kind: Literal["paged", "window"] = "paged" if a.window_tokens is None else "window"
        return StateSpec(kind=kind, bytes_per_token=per_token, max_tokens=a.window_tokens)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder-only language model: everything that planning needs and no tensor."""

    name: str
    architecture: str
    vocabulary: int
    hidden: int
    max_context_tokens: int
    norm_epsilon: float
    embedding_scale: float  # multiplies the embedding (Gemma: sqrt(hidden)); 1.0 elsewhere
    embedding: TensorSpec
    layers: tuple[LayerSpec, ...]
    final_norm: TensorSpec
    head: TensorSpec | None  # None: tied to the embedding

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors, in the order in which a token meets them."""
        last = (self.final_norm,) if self.head is None else (self.final_norm, self.head)
        return (self.embedding, *(t for layer in self.layers for t in layer.tensors), *last)

    @property
    def tied(self) -> bool:
        """Whether the embedding is also the output head."""
        return self.head is None

    @property
    def parameters(self) -> int:
        """Number of values, each tensor counted once."""
        total = 0
        for tensor in self.tensors:
            count = 1
            for extent in tensor.shape:
                count *= extent
            total += count
        return total

    @property
    def format_label(self) -> str:
        """The format that holds most bytes of the matrices ("Q4_K")."""
        by_format: dict[str, int] = {}
        for tensor in self.tensors:
            if len(tensor.shape) == 2:
                by_format[tensor.format.name] = by_format.get(tensor.format.name, 0) + tensor.num_bytes
        return max(by_format, key=lambda name: by_format[name])
