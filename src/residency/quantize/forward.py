"""The forward pass of one layer in float32, part by part, so that what lies between two matrices can be looked at.

From a LayerSpec alone, as the engine computes it, without rounding and without a cache: every sample begins anew.
Shape suffixes: S samples, T tokens of a sample, N tokens in all, H heads, G key-value heads, D values of a head,
C channels.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.spec.model import LayerSpec

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One block's tensors, by their names within it: "self_attn.q_proj.weight". They may be replaced."""

    spec: LayerSpec
    norm_epsilon: float
    tensors: dict[str, Floats]

    def attention_input(self, x_NC: Floats) -> Floats:
        """What queries, keys and values are projected from."""
        return self._norm(x_NC, "input_layernorm.weight")

    def attend(self, h_STC: Floats) -> Floats:
        """Attention of inputs as `attention_input` makes them, before the output projection."""
        spec = self.spec.grouped_attention
        tokens = h_STC.shape[1]
        q_SHTD, k_SGTD, v_SGTD = (self._heads(h_STC, letter) for letter in "qkv")
        shared = spec.num_heads // spec.num_kv_heads
        mask_TT = _visible(tokens, spec.window_tokens)
        out_STHD = np.empty((len(h_STC), tokens, spec.num_heads, spec.head_dim), np.float32)
        for sample in range(len(h_STC)):
            for group in range(spec.num_kv_heads):
                heads = slice(group * shared, (group + 1) * shared)
                scores_HTT = q_SHTD[sample, heads] @ (k_SGTD[sample, group].T * np.float32(spec.scale))
                scores_HTT += mask_TT
                scores_HTT -= scores_HTT.max(axis=-1, keepdims=True)
                np.exp(scores_HTT, out=scores_HTT)
                scores_HTT /= scores_HTT.sum(axis=-1, keepdims=True)
                out_STHD[sample, :, heads] = (scores_HTT @ v_SGTD[sample, group]).swapaxes(0, 1)
        return out_STHD.reshape(len(h_STC), tokens, -1)

    def after_attention(self, x_NC: Floats, attended_NC: Floats) -> Floats:
        """x with the attention's projected output added."""
        out_NC = attended_NC @ self.tensors["self_attn.o_proj.weight"].T
        return x_NC + (self._norm(out_NC, "post_attention_layernorm.weight") if self._norms_after else out_NC)

    def mlp_input(self, x_NC: Floats) -> Floats:
        """What gate and up are projected from."""
        return self._norm(x_NC, self.mlp_norm)

    def gate(self, h_NC: Floats) -> Floats:
        """activation(gate) * up of inputs as `mlp_input` makes them: what the down projection meets."""
        gate_NC = h_NC @ self.tensors["mlp.gate_proj.weight"].T
        if self.spec.gated_mlp.activation == "silu":
            with np.errstate(over="ignore"):
                gate_NC /= 1 + np.exp(-gate_NC)
        else:
            cube_NC = gate_NC + np.float32(0.044715) * gate_NC**3
            gate_NC *= np.float32(0.5) * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * cube_NC))
        gate_NC *= h_NC @ self.tensors["mlp.up_proj.weight"].T
        return gate_NC

    def after_mlp(self, x_NC: Floats, gated_NC: Floats) -> Floats:
        """x with the feed-forward network's projected output added."""
        out_NC = gated_NC @ self.tensors["mlp.down_proj.weight"].T
        return x_NC + (self._norm(out_NC, "post_feedforward_layernorm.weight") if self._norms_after else out_NC)

    def forward(self, x_STC: Floats) -> Floats:
        """The whole layer."""
        attended_STC = self.attend(self.attention_input(x_STC))
        x_STC = self.after_attention(x_STC, attended_STC)
        return self.after_mlp(x_STC, self.gate(self.mlp_input(x_STC)))

    @property
    def mlp_norm(self) -> str:
        """The norm before the feed-forward network."""
        return "pre_feedforward_layernorm.weight" if self._norms_after else "post_attention_layernorm.weight"

    @property
    def _norms_after(self) -> bool:
        return "pre_feedforward_layernorm.weight" in self.tensors

    def _norm(self, x: Floats, name: str) -> Floats:
        return rms_norm(x, self.tensors[name], self.norm_epsilon)

    def _heads(self, h_STC: Floats, letter: str) -> Floats:
        """Queries, keys or values: normed and rotated where the layer asks for it."""
        spec = self.spec.grouped_attention
        values = h_STC @ self.tensors[f"self_attn.{letter}_proj.weight"].T
        if spec.bias:
            values += self.tensors[f"self_attn.{letter}_proj.bias"]
        heads_SHTD = values.reshape(*h_STC.shape[:2], -1, spec.head_dim).swapaxes(1, 2)
        if letter == "v":
            return heads_SHTD
        if spec.qk_norm:
            heads_SHTD = self._norm(heads_SHTD, f"self_attn.{letter}_norm.weight")
        angles_TF = np.outer(np.arange(h_STC.shape[1]), spec.rope.inverse_frequencies)
        cos, sin = ((f(angles_TF) * spec.rope.factor).astype(np.float32) for f in (np.cos, np.sin))
        first, second = np.split(heads_SHTD, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rms_norm(x: Floats, weight_C: Floats, epsilon: float) -> Floats:
    """x / sqrt(mean(x²) + epsilon) * weight, along the last axis."""
    mean = np.einsum("...c,...c->...", x, x)[..., None] / np.float32(x.shape[-1])
    normed: Floats = x / np.sqrt(mean + np.float32(epsilon)) * weight_C
    return normed


def _visible(tokens: int, window_tokens: int | None) -> Floats:
    """0 where a token (row) sees another, minus infinity elsewhere."""
    distance_TT = np.arange(tokens)[:, None] - np.arange(tokens)
    hidden_TT = (distance_TT < 0) | (distance_TT >= (window_tokens or tokens))
    return np.where(hidden_TT, np.float32(-np.inf), np.float32(0))
