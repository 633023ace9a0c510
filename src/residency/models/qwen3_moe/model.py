"""The forward pass of Qwen3's mixtures: Llama's, with norms on the heads of queries and keys, and experts."""

from residency.models.llama.model import record

__all__ = ["record"]
