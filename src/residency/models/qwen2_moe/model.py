"""The forward pass of Qwen2's mixtures: Llama's, with biases on q, k and v, and a shared network beside the experts."""

from residency.models.llama.model import record

__all__ = ["record"]
