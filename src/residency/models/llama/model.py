"""The forward pass of Llama, SmolLM and Mistral: norms before attention and before the feed-forward network."""

from residency.kernels.matmul import linear
from residency.kernels.norm import rms_norm
from residency.kernels.recorder import Recorder
from residency.models.layers import Parts, feed_forward, self_attention


def record(step: Recorder, parts: Parts) -> None:
    """Record one step: from the embeddings in "hidden" (tokens, hidden) to "logits" (rows asked for, vocabulary)."""
    hidden = step.buffers["hidden"]
    epsilon = parts.spec.norm_epsilon
    for index in range(len(parts.spec.layers)):
        x = rms_norm(step, hidden, parts.vector(index, "input_layernorm.weight"), epsilon, into="normed")
        attended = self_attention(step, parts, index, x)
        linear(step, attended, parts.matrix(index, "self_attn.o_proj"), hidden, accumulate=True)
        x = rms_norm(step, hidden, parts.vector(index, "post_attention_layernorm.weight"), epsilon, into="normed")
        feed_forward(step, parts, index, x, hidden)
    norm = parts.weights.vector(parts.spec.final_norm.name)
    x = rms_norm(step, hidden, norm, epsilon, into="normed", of_logits=True)
    linear(step, x, parts.weights.head, step.buffers["logits"], of_logits=True)
