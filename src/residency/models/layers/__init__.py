"""Parts that models are made of: attention and feed-forward networks, recorded operator by operator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from residency.kernels.attention import attention
from residency.kernels.experts import Experts, SharedProduct, combine, fetch, guess, multiply, route, send
from residency.kernels.gate import gated
from residency.kernels.gated_matmul import can_gate, gated_linear
from residency.kernels.matmul import Matrix, linear
from residency.kernels.recorder import FloatArray, Recorder, Rows
from residency.kernels.rotary import LayerPages, key_offset, rotate_and_store
from residency.spec.model import ModelSpec, MoeSpec, RopeSpec
from residency.store.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a model's forward pass is given, beside the step."""

    spec: ModelSpec
    weights: Weights
    caches: Sequence[LayerPages]  # one per layer
    angles: Mapping[RopeSpec, FloatArray]  # cosines | sines of the step's tokens, (tokens, head_dim)
    experts: Mapping[int, Experts] = field(default_factory=dict)  # of the layers that are mixtures

    def matrix(self, layer: int, part: str) -> Matrix:
        """A matrix of a layer: "self_attn.q_proj"."""
        return self.weights.matrix(f"model.layers.{layer}.{part}.weight")

    def vector(self, layer: int, part: str) -> FloatArray:
        """A vector of a layer: "input_layernorm.weight", "self_attn.q_proj.bias"."""
        return self.weights.vector(f"model.layers.{layer}.{part}")


def self_attention(step: Recorder, parts: Parts, index: int, x: Rows) -> Rows:
    """Grouped-query attention of x (tokens, hidden), before the output projection: (tokens, heads * head_dim)."""
    layer = parts.spec.layers[index]
    spec = layer.grouped_attention
    q, k, v = (step.buffers[name] for name in ("q", "k", "v"))
    for name, out in (("q", q), ("k", k), ("v", v)):
        bias = parts.vector(index, f"self_attn.{name}_proj.bias") if spec.bias else None
        matrix = parts.matrix(index, f"self_attn.{name}_proj")
        linear(step, x, matrix, out, bias=bias, meet=name == "v")
    offset = None
    if spec.bias and "key_offsets" in step.buffers:
        kept = step.buffers["key_offsets"][index, : spec.num_kv_heads * spec.head_dim]
        offset = key_offset(parts.vector(index, "self_attn.k_proj.bias"), spec.rope, spec.head_dim, kept)
    norms = [parts.vector(index, f"self_attn.{name}_norm.weight") if spec.qk_norm else None for name in ("q", "k")]
    cache = parts.caches[index]
    epsilon = parts.spec.norm_epsilon
    rotate_and_store(
        step,
        spec,
        q,
        k,
        v,
        parts.angles[spec.rope],
        cache,
        q_norm=norms[0],
        k_norm=norms[1],
        epsilon=epsilon,
        key_offset=offset,
    )
    return attention(step, spec, q, cache)


def gated_mlp(step: Recorder, parts: Parts, index: int, x: Rows) -> Rows:
    """activation(gate(x)) * up(x), before the down projection: (tokens, intermediate).

    Of prompts in one go where there are tile registers, so that neither product is ever written whole.
    """
    layer = parts.spec.layers[index]
    gate, up, down = (parts.weights.matrix(tensor.name) for tensor in layer.gated_matrices)
    activation, into = layer.gated_network.activation, "gated_q8"
    at_once = can_gate(gate, up) and not down.format.is_float and down.order is None
    if at_once:
        gated_linear(step, x, gate, up, activation, into)
    gate_rows = linear(step, x, gate, step.buffers["gate"], but_prompts=at_once, meet=False)
    up_rows = linear(step, x, up, step.buffers["up"], but_prompts=at_once)
    return gated(step, gate_rows, up_rows, activation, gate.rows, into, but_prompts=at_once)


def feed_forward(step: Recorder, parts: Parts, index: int, x: Rows, hidden: FloatArray) -> None:
    """hidden (tokens, hidden) += the layer's feed-forward network of x: a gated one, or a mixture of experts."""
    layer = parts.spec.layers[index]
    if isinstance(layer.mlp, MoeSpec):
        mixture(step, parts, index, x, hidden, layer.mlp)
    else:
        product = gated_mlp(step, parts, index, x)
        linear(step, product, parts.matrix(index, "mlp.down_proj"), hidden, accumulate=True)


def guess_next(step: Recorder, parts: Parts, index: int, x: Rows) -> None:
    """Let the next mixture's router look at this layer's input, so that experts may come before they are asked for.

    Not where weights stream: that router is not here yet, and the disk has enough to do.
    """
    later = next((layer for layer in sorted(parts.experts) if layer > index), None)
    if later is None or (paged := parts.experts[later].paged) is None or parts.weights.residents is not None:
        return
    router = next(tensor for tensor in parts.spec.layers[later].tensors if tensor.role == "router")
    logits = linear(step, x, parts.weights.matrix(router.name), step.buffers["router"], but_prompts=True)
    guess(step, logits, parts.experts[later], paged)


def mixture(step: Recorder, parts: Parts, index: int, x: Rows, hidden: FloatArray, spec: MoeSpec) -> None:
    """hidden += of each token's experts, and of the network that every token passes, what they make of x."""
    layer, columns, experts = parts.spec.layers[index], parts.spec.hidden, parts.experts[index]
    router, *shared_gate = (parts.weights.matrix(tensor.name) for tensor in layer.tensors if tensor.role == "router")
    logits = linear(step, x, router, step.buffers["router"])
    route(step, logits, spec, step.buffers["experts_used"][index], experts.given)
    if experts.paged is not None:
        fetch(step, experts, experts.paged)
        if experts.given is None:
            guess_next(step, parts, index, x)
    send(step, x, columns, experts)
    multiply(step, x, columns, experts)
    shared = None
    if shared_gate:
        shared = SharedProduct(rows=step.buffers["shared_out"], gate=step.buffers["shared_gate"])
        product = gated_mlp(step, parts, index, x)
        linear(step, product, parts.weights.matrix(layer.gated_matrices[2].name), shared.rows, meet=False)
        linear(step, x, shared_gate[0], shared.gate)
    combine(step, spec, columns, hidden, shared)
