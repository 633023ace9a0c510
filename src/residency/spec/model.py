"""What a model is, in bytes: shapes, formats and the state it keeps. No tensors, no arithmetic on them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Literal

from residency.errors import UnsupportedError
from residency.formats import Format
from residency.formats.schemes import Packing
from residency.spec.state import KV_F16, KvFormat, StateKind, StateSpec, grouped

# What a tensor is for. "matrix" is read by every token, "expert" by the tokens that are routed to it, one row of
# "embedding" and "position" by each token; "vision" by none while text is decoded.
Role = Literal["embedding", "position", "head", "matrix", "expert", "router", "norm", "bias", "vision", "other"]

# How tensor parallelism shares a tensor among ranks: its rows (outputs), its columns (inputs), the rows of key-value
# heads (of which each rank has at least one), or the padded vocabulary. "replicated": every rank holds all of it.
Split = Literal["replicated", "rows", "columns", "kv_heads", "vocabulary"]

Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2", "xielu"]


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
class PackedSource:
    """Where the tensors are that together are a matrix of integers; the codes are the first."""

    packing: Packing
    parts: tuple[SourceTensor, ...]
    order: str | None = None  # the tensor that says which column each one is, where they are taken in another order

    def part(self, suffix: str) -> SourceTensor:
        """The tensor whose name ends so."""
        return next(part for part in self.parts if part.name.endswith(suffix))

    @property
    def group_index(self) -> SourceTensor | None:
        """The tensor that tells each column's group, if there is one."""
        return next((part for part in self.parts if part.name.endswith("g_idx")), None)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A tensor of the model under the name that the published checkpoint gives it.

    Experts that are alike are one TensorSpec with `copies`; "{}" in the name stands for the number of the copy.
    """

    name: str  # "model.layers.0.self_attn.q_proj.weight"
    shape: tuple[int, ...]  # outermost first: (rows, columns) of a matrix
    format: Format
    rearrange: Rearrange = Rearrange.NONE
    source: SourceTensor | None = None  # None: planned from a configuration alone, or in several tensors
    packed: PackedSource | None = None
    heads: int | None = None  # among which UNPERMUTE_ROPE shares the rows
    role: Role = "matrix"
    split: Split = "replicated"
    copies: int = 1  # 0: the model has none
    copy_sources: tuple[SourceTensor | PackedSource, ...] = ()  # of each copy, where there are several

    @property
    def each_copy(self) -> Iterator["TensorSpec"]:
        """The copies one by one, under their own names; of what there is once, the tensor itself."""
        if self.copies == 1:
            yield self
            return
        for number in range(self.copies):
            name, found = self.name.replace("{}", str(number)), self.copy_sources[number] if self.copy_sources else None
            source, packed = (None, found) if isinstance(found, PackedSource) else (found, None)
            yield replace(self, name=name, copies=1, source=source, packed=packed, copy_sources=())

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the tensor, all copies, in its format, without padding."""
        return self.copies * self.format.bytes_of(self.shape)

    @property
    def num_values(self) -> int:
        """Values of the tensor, all copies."""
        return self.copies * math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary position embedding: the frequencies, and the factor on cosine and sine (YaRN's attention factor).

    `inverse_frequencies` has rotary_dim / 2 values, scaling (linear, Llama 3, YaRN) already applied.
    """

    inverse_frequencies: tuple[float, ...]
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RotationTable:
    """Cosines and sines that serving engines keep for all positions, one table for each way of rotating."""

    width: int  # values of a head that are rotated
    positions: int  # where scaling lengthens the context, more than the model was trained for


NO_ROPE = RopeSpec(inverse_frequencies=())  # where nothing is rotated, or only bytes are counted


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Grouped-query attention of one layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float  # multiplies q·k
    rope: RopeSpec = NO_ROPE
    window_tokens: int | None = None  # sliding window: a token sees itself and window_tokens - 1 before it
    bias: bool = False  # on q, k and v
    qk_norm: bool = False  # RMS norm of each head of q and k before the rotation
    shares_kv: bool = False  # reads the keys and values of an earlier layer and keeps none
    value_dim: int | None = None  # of a value; None: head_dim

    def state(self, kv: KvFormat = KV_F16) -> StateSpec:
        """Keys and values of one token: num_kv_heads x head_dim values of each, or x value_dim of the latter."""
        each = kv.head_bytes(self.head_dim) + kv.head_bytes(self.value_dim or self.head_dim)
        per_token = 0 if self.shares_kv else self.num_kv_heads * each
        kind: StateKind = "paged" if self.window_tokens is None else "window"
        return StateSpec(kind=kind, bytes_per_token=per_token, max_tokens=self.window_tokens)


@dataclass(frozen=True, kw_only=True)
class LatentAttentionSpec:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the cache holds one latent vector for all heads,
    from which keys and values are computed, and one rotated key that all heads share.
    """

    num_heads: int
    kv_rank: int  # kv_lora_rank
    rope_dim: int  # qk_rope_head_dim
    nope_dim: int  # qk_nope_head_dim
    value_dim: int  # v_head_dim
    query_rank: int | None = None  # q_lora_rank; None: queries are projected directly
    index_dim: int = 0  # of the key by which a token is found, where attention is sparse: FP8, a float32 for each 128

    def state(self, kv: KvFormat = KV_F16) -> StateSpec:
        """The latent vector and the rotated key of one token, and its key in the index."""
        index_bytes = self.index_dim + 4 * -(-self.index_dim // 128)
        per_token = kv.head_bytes(self.kv_rank + self.rope_dim) + index_bytes
        return StateSpec(kind="latent", bytes_per_token=per_token, max_tokens=None)


@dataclass(frozen=True, kw_only=True)
class RecurrentSpec:
    """A layer whose memory does not grow: a state-space model, a linear attention, a short convolution, attention to a
    picture.
    """

    kind: Literal["mamba", "mamba2", "rwkv", "delta", "linear", "convolution", "cross"]
    recent_values: int  # inputs kept for the short convolution or the token shift
    state_values: int  # the recurrent state proper
    recent_format: Format
    state_format: Format

    def state(self) -> StateSpec:
        """Bytes of one sequence, however long."""
        recent_bytes = self.recent_format.bytes_of((self.recent_values,))
        fixed_bytes = recent_bytes + self.state_format.bytes_of((self.state_values,))
        return StateSpec(kind="recurrent", bytes_per_token=0, max_tokens=None, fixed_bytes=fixed_bytes)


@dataclass(frozen=True, kw_only=True)
class MlpSpec:
    """Feed-forward network, gated: down(activation(gate(x)) * up(x)), or plain: down(activation(up(x)))."""

    intermediate: int
    activation: Activation
    gated: bool = True


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """Mixture of experts: a router sends each token to `experts_per_token` of `num_experts` networks."""

    num_experts: int
    experts_per_token: int
    intermediate: int  # of one expert
    activation: Activation
    shared_intermediate: int = 0  # of the network that every token passes, 0: none
    gated: bool = True
    renormalized: bool = True  # the chosen experts' probabilities add up to 1 again (norm_topk_prob)


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One block of the model. Attention and mixer are both there where a block runs them side by side."""

    attention: AttentionSpec | LatentAttentionSpec | None = None
    mixer: RecurrentSpec | None = None
    mlp: MlpSpec | MoeSpec | None = None
    tensors: tuple[TensorSpec, ...]

    def tensor(self, suffix: str) -> TensorSpec:
        """The layer's tensor whose name ends with `suffix` ("self_attn.q_proj.weight")."""
        return next(t for t in self.tensors if t.name.endswith("." + suffix))

    @property
    def grouped_attention(self) -> AttentionSpec:
        """The attention of a layer that the engine runs. UnsupportedError for another kind of layer."""
        if not isinstance(self.attention, AttentionSpec) or self.mixer is not None:
            raise UnsupportedError("layers without grouped-query attention can be planned and not yet run.")
        return self.attention

    @property
    def gated_network(self) -> MlpSpec | MoeSpec:
        """The feed-forward network of a layer that the engine runs. UnsupportedError for another kind."""
        if self.mlp is None or not self.mlp.gated:
            raise UnsupportedError("layers without a gated feed-forward network can be planned and not yet run.")
        return self.mlp

    @property
    def gated_mlp(self) -> MlpSpec:
        """The gated feed-forward network of a layer that is no mixture. UnsupportedError for another kind."""
        if isinstance(self.mlp, MoeSpec):
            raise UnsupportedError("mixtures of experts run on the processor and in their own bits, not yet otherwise.")
        if self.mlp is None or not self.mlp.gated:
            raise UnsupportedError("layers without a gated feed-forward network can be planned and not yet run.")
        return self.mlp

    @property
    def gated_matrices(self) -> tuple[TensorSpec, ...]:
        """Gate, up and down of the gated network that every token passes; empty where there is none."""
        names = (".gate_proj.weight", ".up_proj.weight", ".down_proj.weight")
        return tuple(tensor for tensor in self.tensors if tensor.role == "matrix" and tensor.name.endswith(names))

    @property
    def experts(self) -> tuple[TensorSpec, ...]:
        """The tensors of which each expert has a copy: gate, up and down in layers that the engine runs."""
        return tuple(tensor for tensor in self.tensors if tensor.role == "expert")

    def state(self, kv: KvFormat = KV_F16) -> StateSpec:
        """Keys and values of one token in a layer that the engine runs, in the format `kv`."""
        return self.grouped_attention.state(kv)

    def states(self, kv: KvFormat = KV_F16) -> tuple[StateSpec, ...]:
        """All that the layer remembers of one sequence, keys and values in the format `kv`."""
        attended = () if self.attention is None else (self.attention.state(kv),)
        kept = attended if self.mixer is None else (*attended, self.mixer.state())
        return tuple(state for state in kept if state.bytes_per_token or state.fixed_bytes)

    @cached_property
    def likeness(self) -> tuple[object, ...]:
        """What layers with equal bytes and equal work have in common: all but the names of their tensors."""
        tensors = tuple((t.shape, t.format.name, t.role, t.split, t.copies) for t in self.tensors)
        return self.attention, self.mixer, self.mlp, tensors

    @property
    def routed_share(self) -> float:
        """The share of the expert tensors that one token passes."""
        return self.mlp.experts_per_token / self.mlp.num_experts if isinstance(self.mlp, MoeSpec) else 1.0


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
    others: tuple[TensorSpec, ...] = ()  # positions, the final norm's bias, the vision tower
    unused: tuple[TensorSpec, ...] = ()  # what the published checkpoint holds and nothing loads: masks, drafts
    rotations: tuple[RotationTable, ...] = ()  # empty where nothing is rotated, or nothing says how
    notes: tuple[str, ...] = ()  # what a reader of the figures should know

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """All tensors, in the order in which a token meets them; those beside the layers last."""
        last = (self.final_norm,) if self.head is None else (self.final_norm, self.head)
        return (self.embedding, *(t for layer in self.layers for t in layer.tensors), *last, *self.others)

    @cached_property
    def alike(self) -> tuple[tuple[LayerSpec, int], ...]:
        """A layer of each kind, and how many layers are like it."""
        found: dict[tuple[object, ...], list[LayerSpec]] = {}
        for layer in self.layers:
            found.setdefault(layer.likeness, []).append(layer)
        return tuple((layers[0], len(layers)) for layers in found.values())

    @property
    def tied(self) -> bool:
        """Whether the embedding is also the output head."""
        return self.head is None

    @cached_property
    def parameters(self) -> int:
        """Number of values, each tensor counted once."""
        return sum(tensor.num_values for tensor in self.tensors)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all tensors in their formats: what is loaded."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @cached_property
    def checkpoint_bytes(self) -> int:
        """Bytes of all tensors of the published checkpoint, also of those that nothing loads."""
        return self.weight_bytes + sum(tensor.num_bytes for tensor in self.unused)

    @cached_property
    def active_parameters(self) -> int:
        """Values that take part in one token: of the experts, those that the token is sent to."""
        beside = (t.num_values for t in self.beside_layers if t.role != "vision")
        return sum(beside) + sum(_routed(layer, lambda tensor: tensor.num_values) for layer in self.layers)

    @cached_property
    def read_bytes_per_token(self) -> int:
        """Weights that decoding one token reads, in their formats: the layers, the head, a row of each table."""
        head_bytes = (self.head or self.embedding).num_bytes
        tables = (t for t in self.beside_layers if t.role in ("embedding", "position") and t.copies == 1)
        rows = sum(t.format.bytes_of(t.shape[1:]) for t in tables if not (self.tied and t is self.embedding))
        rest = sum(t.num_bytes for t in self.beside_layers if t.role in ("norm", "bias", "matrix", "other"))
        layers = sum(_routed(layer, lambda tensor: tensor.num_bytes) for layer in self.layers)
        return head_bytes + rows + rest + layers

    def states(self, kv: KvFormat = KV_F16) -> tuple[StateSpec, ...]:
        """What the model remembers of one sequence: layers that remember alike together, bytes summed over them."""
        return grouped(state for layer in self.layers for state in layer.states(kv))

    @property
    def beside_layers(self) -> tuple[TensorSpec, ...]:
        """The tensors that belong to no layer."""
        last = (self.final_norm,) if self.head is None else (self.final_norm, self.head)
        return (self.embedding, *last, *self.others)

    @property
    def format_label(self) -> str:
        """The format that holds most bytes of the matrices ("Q4_K")."""
        by_format: dict[str, int] = {}
        for tensor in self.tensors:
            if len(tensor.shape) >= 2:
                by_format[tensor.format.name] = by_format.get(tensor.format.name, 0) + tensor.num_bytes
        return max(by_format, key=lambda name: by_format[name])


def _routed(layer: LayerSpec, amount: Callable[[TensorSpec], int]) -> int:
    """The sum of `amount` over the layer's tensors, of experts the share that one token passes."""
    experts = sum(amount(t) for t in layer.tensors if t.role == "expert")
    return round(experts * layer.routed_share) + sum(amount(t) for t in layer.tensors if t.role != "expert")
