"""The arrays that a step of any model writes, by shape: what activations are counted from where no engine's own rule
is known better.

Shapes are those of one rank of tensor parallelism: projections are shared by rows, what passes between layers is not.
"""

from dataclasses import dataclass
from typing import Literal

from residency.planner.plan import DTYPE_BYTES, Buffer
from residency.spec.model import AttentionSpec, LayerSpec, ModelSpec, MoeSpec

AttentionKind = Literal["flash", "naive"]


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """The largest step that an engine prepares for."""

    tokens: int
    sequences: int
    context_tokens: int
    tensor_parallel: int = 1
    attention: AttentionKind = "flash"
    has_head: bool = True  # the last pipeline stage computes logits
    is_stage: bool = False  # of several, which hand arrays on
    dtype: str = "float16"


def layer_arrays(model: ModelSpec, layer: LayerSpec, shape: StepShape) -> dict[str, tuple[Buffer, ...]]:
    """What a layer writes while attending (or recurring) and while feeding forward: one of both is live at a time."""
    return {"attention": _attention_arrays(layer, shape), "feed-forward": _feed_forward_arrays(model, layer, shape)}


def carried_arrays(model: ModelSpec, shape: StepShape) -> tuple[Buffer, ...]:
    """What lives through all layers: the residual stream, and its normed copy that the next product reads."""
    return tuple(_array(name, shape, shape.tokens, model.hidden) for name in ("residual", "normed"))


def logit_array(model: ModelSpec, shape: StepShape) -> Buffer:
    """The logits of one token of each sequence, gathered on every rank, in float32 as samplers take them."""
    return Buffer(name="logits", shape=(shape.sequences, model.vocabulary), dtype="float32")


def peak_bytes(model: ModelSpec, shape: StepShape) -> int:
    """Bytes that live at once at most: the carried arrays with the largest layer's, or with the logits."""
    carried = sum(buffer.num_bytes for buffer in carried_arrays(model, shape))
    logits = logit_array(model, shape).num_bytes if shape.has_head else 0
    in_layers = max(
        sum(buffer.num_bytes for buffer in part)
        for layer, _ in model.alike
        for part in layer_arrays(model, layer, shape).values()
    )
    return carried + max(in_layers, logits)


def score_bytes(*, heads: int, query_tokens: int, key_tokens: int, sequences: int = 1, dtype: str = "float16") -> int:
    """Attention scores that are written whole: one for each head and pair of tokens."""
    return sequences * heads * query_tokens * key_tokens * DTYPE_BYTES[dtype]


def _attention_arrays(layer: LayerSpec, shape: StepShape) -> tuple[Buffer, ...]:
    arrays: list[Buffer] = []
    attention, ranks, tokens = layer.attention, shape.tensor_parallel, shape.tokens
    if attention is not None:
        heads = -(-attention.num_heads // ranks)
        if isinstance(attention, AttentionSpec):
            kv_heads = -(-attention.num_kv_heads // ranks)
            arrays.append(_array("qkv", shape, tokens, (heads + 2 * kv_heads) * attention.head_dim))
            arrays.append(_array("attended", shape, tokens, heads * attention.head_dim))
        else:
            arrays.append(_array("q", shape, tokens, heads * (attention.nope_dim + attention.rope_dim)))
            arrays.append(_array("kv", shape, tokens, heads * (attention.nope_dim + attention.value_dim)))
            arrays.append(_array("latent", shape, tokens, attention.kv_rank + attention.rope_dim))
            arrays.append(_array("attended", shape, tokens, heads * attention.value_dim))
        if shape.attention == "naive":
            arrays.append(Buffer(name="scores", shape=(heads, tokens, shape.context_tokens), dtype=shape.dtype))
    if layer.mixer is not None:
        rows = max(t.shape[0] for t in layer.tensors if t.role == "matrix" and len(t.shape) >= 2)
        arrays.append(_array("mixed", shape, tokens, -(-rows // ranks)))
        arrays.append(_array("recurred", shape, tokens, -(-rows // ranks)))
    return tuple(arrays)


def _feed_forward_arrays(model: ModelSpec, layer: LayerSpec, shape: StepShape) -> tuple[Buffer, ...]:
    mlp, ranks = layer.mlp, shape.tensor_parallel
    if mlp is None:
        return ()
    gates = 2 if mlp.gated else 1
    if not isinstance(mlp, MoeSpec):
        inner = -(-mlp.intermediate // ranks)
        return _array("gate_up", shape, shape.tokens, gates * inner), _array("gated", shape, shape.tokens, inner)
    routed = shape.tokens * mlp.experts_per_token  # each token once for each expert that it is sent to
    inner = -(-mlp.intermediate // ranks)
    return (
        _array("router", shape, shape.tokens, mlp.num_experts),
        _array("gate_up", shape, routed, gates * inner),
        _array("gated", shape, routed, inner),
        _array("expert_output", shape, routed, model.hidden),
        _array("shared_gate_up", shape, shape.tokens, gates * -(-mlp.shared_intermediate // ranks)),
    )


def _array(name: str, shape: StepShape, rows: int, columns: int) -> Buffer:
    return Buffer(name=name, shape=(rows, columns), dtype=shape.dtype)
