"""A whole forward pass in float64 NumPy from a ModelSpec alone: shows that a spec says all that a model needs.

Shape suffixes: T tokens, H heads, G key-value heads, D values of a head, C channels, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.formats import unpack_rows
from residency.kernels.experts.reference import routes
from residency.kernels.matmul import groups_together
from residency.kernels.matmul.reference import quantize_rows, rounded_to_bf16
from residency.spec import AttentionSpec, LayerSpec, ModelSpec, Rearrange, TensorSpec
from residency.spec.model import MoeSpec

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rounding:
    """Rounds where the engine does: keys and values to float16, and what meets a matrix in blocks to int8 in groups.

    The first `bf16_tokens` meet matrices in tile registers: the matrix and they are rounded to bfloat16.
    """

    bf16_tokens: int

    def product(self, x_TC: Array, weights_RC: Array, together: int) -> Array:
        """x · matrixᵀ, so many of x's groups quantized as one."""
        n = self.bf16_tokens
        rounded = [rounded_to_bf16(each.astype(np.float32)).astype(np.float64) for each in (x_TC[:n], weights_RC)]
        rest_TC = x_TC[n:]
        if len(rest_TC):
            rest_TC = quantize_rows(rest_TC.astype(np.float32), together).values_TC
        return np.concatenate([rounded[0] @ rounded[1].T, rest_TC @ weights_RC.T])


def plain_logits(model: ModelSpec, tokens: list[int], *, rounding: Rounding | None = None) -> Array:
    """Logits (tokens, vocabulary) after each of `tokens`."""
    x_TC = read_tensor(model.embedding)[tokens] * model.embedding_scale
    for layer in model.layers:
        x_TC = _layer(model, layer, x_TC, rounding)
    x_TC = _norm(model, x_TC, read_tensor(model.final_norm))
    return _product(x_TC, model.head or model.embedding, rounding and Rounding(0))


def read_tensor(tensor: TensorSpec) -> Array:
    """The values of a tensor, rearranged as its spec asks."""
    source = tensor.source
    assert source is not None
    with open(source.path, "rb") as file:
        file.seek(source.offset)
        data = np.frombuffer(file.read(source.num_bytes), np.uint8)
    rows = math.prod(source.shape[:-1])
    values = unpack_rows(source.format, data.reshape(rows, -1)).reshape(source.shape).astype(np.float64)
    if tensor.rearrange is Rearrange.ADD_ONE:
        return values + 1
    return values


def _product(x_TC: Array, tensor: TensorSpec, rounding: Rounding | None) -> Array:
    """x · matrixᵀ."""
    rows_RC = _head_rows(tensor)
    if rounding and not tensor.format.is_float:
        return rounding.product(x_TC, rows_RC, groups_together(tensor.format))
    out_TR: Array = x_TC @ rows_RC.T
    return out_TR


def _layer(model: ModelSpec, layer: LayerSpec, x_TC: Array, rounding: Rounding | None) -> Array:
    part = {tensor.name.split(".", 3)[3]: tensor for tensor in layer.tensors}
    sandwiched = "pre_feedforward_layernorm.weight" in part

    def norm(name: str, values: Array) -> Array:
        return _norm(model, values, read_tensor(part[name]))

    attended_TC = _attention(model, layer.grouped_attention, part, norm("input_layernorm.weight", x_TC), rounding)
    if sandwiched:
        attended_TC = norm("post_attention_layernorm.weight", attended_TC)
    x_TC = x_TC + attended_TC
    before = "pre_feedforward_layernorm.weight" if sandwiched else "post_attention_layernorm.weight"
    h_TC = norm(before, x_TC)
    if isinstance(layer.mlp, MoeSpec):
        fed_TC = _mixture(layer, layer.mlp, h_TC, rounding)
    else:
        fed_TC = _gated(layer, layer.gated_matrices, h_TC, rounding)
    return x_TC + (norm("post_feedforward_layernorm.weight", fed_TC) if sandwiched else fed_TC)


def _gated(layer: LayerSpec, matrices: Sequence[TensorSpec], x_TC: Array, rounding: Rounding | None) -> Array:
    gate, up = (_product(x_TC, matrix, rounding) for matrix in matrices[:2])
    if layer.gated_network.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return _product(gate * up, matrices[2], rounding)


def _mixture(layer: LayerSpec, spec: MoeSpec, x_TC: Array, rounding: Rounding | None) -> Array:
    """Each token through its experts, one after another, and through the network that every token passes."""
    router, *shared_gate = (tensor for tensor in layer.tensors if tensor.role == "router")
    logits_TE = _product(x_TC, router, rounding).astype(np.float32)
    chosen = routes(logits_TE, spec.experts_per_token, renormalized=spec.renormalized)
    fed_TC = np.zeros_like(x_TC)
    for expert, matrices in enumerate(zip(*(tensor.each_copy for tensor in layer.experts), strict=True)):
        weight_T = np.where(chosen.experts_TK == expert, chosen.weights_TK, 0).sum(axis=1)
        fed_TC += weight_T[:, None] * _gated(layer, matrices, x_TC, rounding)
    for gate in shared_gate:
        fed_TC += _gated(layer, layer.gated_matrices, x_TC, rounding) / (1 + np.exp(-_product(x_TC, gate, rounding)))
    return fed_TC


def _attention(
    model: ModelSpec, spec: AttentionSpec, part: dict[str, TensorSpec], x_TC: Array, rounding: Rounding | None
) -> Array:
    def project(letter: str, num_heads: int) -> Array:
        values = _product(x_TC, part[f"self_attn.{letter}_proj.weight"], rounding)
        if spec.bias:
            values = values + read_tensor(part[f"self_attn.{letter}_proj.bias"])
        heads_THD = values.reshape(len(x_TC), num_heads, spec.head_dim)
        if letter == "v":
            return heads_THD
        if spec.qk_norm:
            heads_THD = _norm(model, heads_THD, read_tensor(part[f"self_attn.{letter}_norm.weight"]))
        return _rotate(spec, heads_THD)

    q_THD, k_TGD, v_TGD = (
        project("q", spec.num_heads),
        project("k", spec.num_kv_heads),
        project("v", spec.num_kv_heads),
    )
    if rounding:
        k_TGD, v_TGD = (x.astype(np.float32).astype(np.float16).astype(np.float64) for x in (k_TGD, v_TGD))
    k_THD, v_THD = (np.repeat(x, spec.num_heads // spec.num_kv_heads, axis=1) for x in (k_TGD, v_TGD))
    scores_HTS = np.einsum("thd,shd->hts", q_THD, k_THD) * spec.scale
    distance_TS = np.arange(len(x_TC))[:, None] - np.arange(len(x_TC))
    hidden_TS = (distance_TS < 0) | (distance_TS >= (spec.window_tokens or len(x_TC)))
    scores_HTS = np.where(hidden_TS, -np.inf, scores_HTS)
    weights_HTS = np.exp(scores_HTS - scores_HTS.max(axis=-1, keepdims=True))
    weights_HTS /= weights_HTS.sum(axis=-1, keepdims=True)
    mixed_THD = np.einsum("hts,shd->thd", weights_HTS, v_THD)
    return _product(mixed_THD.reshape(len(x_TC), -1), part["self_attn.o_proj.weight"], rounding)


def _head_rows(tensor: TensorSpec) -> Array:
    """The rows of a matrix; of q and k, each head's rotary halves one after the other."""
    values = read_tensor(tensor)
    if tensor.rearrange is Rearrange.UNPERMUTE_ROPE:
        assert tensor.heads is not None
        pairs = values.reshape(tensor.heads, -1, 2, values.shape[1])
        return pairs.swapaxes(1, 2).reshape(values.shape)
    return values


def _rotate(spec: AttentionSpec, x_THD: Array) -> Array:
    angles_TF = np.outer(np.arange(len(x_THD)), spec.rope.inverse_frequencies)
    cos, sin = (f(angles_TF)[:, None, :] * spec.rope.factor for f in (np.cos, np.sin))
    first, second = np.split(x_THD, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _norm(model: ModelSpec, x: Array, weight: Array) -> Array:
    normed: Array = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + model.norm_epsilon) * weight
    return normed
