"""The forward pass of Qwen3: Llama's, with norms on the heads of queries and keys (AttentionSpec.qk_norm)."""

from residency.models.llama.model import record

__all__ = ["record"]
