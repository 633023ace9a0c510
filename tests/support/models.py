"""Small random models of each architecture: their extents, and weights under the names of `transformers`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = dict[str, npt.NDArray[np.float32]]
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")


@dataclass(frozen=True, kw_only=True)
class SmallModel:
    """A model small enough for a test. Widths are multiples of 256, so that every block format fits."""

    architecture: str
    hidden: int = 256
    intermediate: int = 512
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    vocabulary: int = 320
    context_tokens: int = 512
    norm_epsilon: float = 1e-6
    rope_theta: float = 10000.0
    window_tokens: int = 8  # gemma3
    window_pattern: int = 2  # gemma3: every second layer sees everything
    tied: bool = True
    num_experts: int = 6  # of mixtures
    experts_per_token: int = 2
    expert_intermediate: int = 256  # qwen's; mixtral's experts have `intermediate`
    shared_intermediate: int = 512  # qwen2_moe
    dense_layers: tuple[int, ...] = ()  # qwen's layers that are no mixtures
    renormalized: bool = False  # qwen's norm_topk_prob

    def is_mixture(self, layer: int) -> bool:
        """Whether the layer sends its tokens to experts."""
        return self.architecture in MIXTURES and layer not in self.dense_layers


def small_model(architecture: str, **changes: Any) -> SmallModel:
    """The usual small model of `architecture`: gemma3's global rope base is its own, llama's head is not tied."""
    usual: dict[str, dict[str, Any]] = {
        "gemma3": {"rope_theta": 1e6},
        "llama": {"tied": False},
        "qwen3_moe": {"renormalized": True},
    }
    return SmallModel(architecture=architecture, **{**usual.get(architecture, {}), **changes})


def random_weights(model: SmallModel, seed: int = 0) -> Weights:
    """Weights in the form of a `transformers` checkpoint (Gemma's norms hold w of 1 + w)."""
    rng = np.random.default_rng(seed)
    gemma = model.architecture == "gemma3"

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        return values * np.float32(columns**-0.5)

    def norm(width: int) -> npt.NDArray[np.float32]:
        values = rng.standard_normal(width).astype(np.float32)
        return values * np.float32(0.1) + np.float32(0 if gemma else 1)

    q_rows, kv_rows = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    weights: Weights = {"model.embed_tokens.weight": matrix(model.vocabulary, model.hidden)}
    for layer in range(model.num_layers):
        name = f"model.layers.{layer}."
        weights[name + "input_layernorm.weight"] = norm(model.hidden)
        for part, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
            weights[f"{name}self_attn.{part}_proj.weight"] = matrix(rows, model.hidden)
            if model.architecture in ("qwen2", "qwen2_moe"):
                weights[f"{name}self_attn.{part}_proj.bias"] = matrix(rows, 1)[:, 0]
        if model.architecture in ("qwen3", "qwen3_moe", "gemma3"):
            weights[name + "self_attn.q_norm.weight"] = norm(model.head_dim)
            weights[name + "self_attn.k_norm.weight"] = norm(model.head_dim)
        weights[name + "self_attn.o_proj.weight"] = matrix(model.hidden, q_rows)
        weights[name + "post_attention_layernorm.weight"] = norm(model.hidden)
        if gemma:
            weights[name + "pre_feedforward_layernorm.weight"] = norm(model.hidden)
            weights[name + "post_feedforward_layernorm.weight"] = norm(model.hidden)
        for part, rows, columns in _feed_forward(model, layer):
            weights[f"{name}{part}.weight"] = matrix(rows, columns)
    weights["model.norm.weight"] = norm(model.hidden)
    if not model.tied:
        weights["lm_head.weight"] = matrix(model.vocabulary, model.hidden)
    return weights


def _feed_forward(model: SmallModel, layer: int) -> Iterator[tuple[str, int, int]]:
    """The matrices of a layer's feed-forward network: name, rows, columns."""

    def gated(prefix: str, names: tuple[str, str, str], intermediate: int) -> Iterator[tuple[str, int, int]]:
        for name, rows, columns in zip(
            names,
            (intermediate, intermediate, model.hidden),
            (model.hidden, model.hidden, intermediate),
            strict=True,
        ):
            yield prefix + name, rows, columns

    qwen = ("gate_proj", "up_proj", "down_proj")
    if not model.is_mixture(layer):
        yield from gated("mlp.", qwen, model.intermediate)
        return
    mixtral = model.architecture == "mixtral"
    prefix = "block_sparse_moe." if mixtral else "mlp."
    names, intermediate = (("w1", "w3", "w2"), model.intermediate) if mixtral else (qwen, model.expert_intermediate)
    yield prefix + "gate", model.num_experts, model.hidden
    for expert in range(model.num_experts):
        yield from gated(f"{prefix}experts.{expert}.", names, intermediate)
    if model.architecture == "qwen2_moe":
        yield from gated("mlp.shared_expert.", qwen, model.shared_intermediate)
        yield "mlp.shared_expert_gate", 1, model.hidden
