"""The forward pass of Gemma 3: norms before and after attention and the feed-forward network.

Windows, the two ways of rotating and the norms on queries and keys come from each layer's AttentionSpec.
"""

from residency.kernels.matmul import linear
from residency.kernels.norm import rms_norm, rms_norm_add
from residency.kernels.recorder import Recorder
from residency.models.layers import Parts, gated_mlp, self_attention


def record(step: Recorder, parts: Parts) -> None:
    """Record one step: from the embeddings in "hidden" (tokens, hidden) to "logits" (rows asked for, vocabulary)."""
    hidden, projected = step.buffers["hidden"], step.buffers["normed"]
    epsilon = parts.spec.norm_epsilon
    for index in range(len(parts.spec.layers)):
        x = rms_norm(step, hidden, parts.vector(index, "input_layernorm.weight"), epsilon, into="normed")
        attended = self_attention(step, parts, index, x)
        linear(step, attended, parts.matrix(index, "self_attn.o_proj"), projected)
        rms_norm_add(step, projected, parts.vector(index, "post_attention_layernorm.weight"), epsilon, hidden)
        x = rms_norm(step, hidden, parts.vector(index, "pre_feedforward_layernorm.weight"), epsilon, into="normed")
        product = gated_mlp(step, parts, index, x)
        linear(step, product, parts.matrix(index, "mlp.down_proj"), projected)
        rms_norm_add(step, projected, parts.vector(index, "post_feedforward_layernorm.weight"), epsilon, hidden)
    norm = parts.weights.vector(parts.spec.final_norm.name)
    x = rms_norm(step, hidden, norm, epsilon, into="normed", of_logits=True)
    linear(step, x, parts.weights.head, step.buffers["logits"], of_logits=True)
