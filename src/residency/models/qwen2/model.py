"""The forward pass of Qwen2 and Qwen2.5: Llama's, with biases on queries, keys and values (AttentionSpec.bias)."""

from residency.models.llama.model import record

__all__ = ["record"]
