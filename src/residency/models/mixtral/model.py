"""The forward pass of Mixtral: Llama's, with a mixture of experts as feed-forward network (MoeSpec)."""

from residency.models.llama.model import record

__all__ = ["record"]
