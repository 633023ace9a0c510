"""Activation bytes by the published formula: Korthikanti et al., "Reducing Activation Recomputation in Large
Transformer Models" (arXiv 2205.05198), table 2.

The formula is of GPT-3's layer: LayerNorm, as many key-value heads as heads, a feed-forward network of four times the
width with GELU, dropout, 16-bit activations. Other layers are counted tensor by tensor (saved.py); with such a layer
both agree.
"""

from fractions import Fraction

from residency.planner.training.options import TrainingOptions
from residency.spec.model import AttentionSpec, ModelSpec


def published_layer_bytes(
    *,
    sequence: int,
    batch: int,
    hidden: int,
    heads: int,
    tensor_parallel: int = 1,
    sequence_parallel: bool = False,
    recomputation: str = "none",
    scores: bool = True,
) -> int:
    """Bytes that one layer keeps for its backward pass; without `scores` attention never stores its matrix."""
    s, b, h, t = sequence, batch, hidden, tensor_parallel
    if recomputation == "full":
        return 2 * s * b * h
    quadratic = Fraction(5 * heads * s, h * t) if scores and recomputation == "none" else Fraction(0)
    linear = Fraction(34, t) if sequence_parallel else 10 + Fraction(24, t)
    return int(s * b * h * (linear + quadratic))


def published_activation_bytes(model: ModelSpec, training: TrainingOptions) -> int | None:
    """The formula over all layers of `model`, for comparison; None where a layer has no such attention."""
    attentions = [layer.attention for layer in model.layers]
    if not all(isinstance(attention, AttentionSpec) for attention in attentions):
        return None
    return sum(
        published_layer_bytes(
            sequence=training.context_tokens,
            batch=training.batch_sequences,
            hidden=model.hidden,
            heads=attention.num_heads,
            tensor_parallel=training.tensor_parallel,
            sequence_parallel=training.sequence_parallel,
            recomputation=training.recomputation,
            scores=training.attention == "naive",
        )
        for attention in attentions
        if attention is not None
    )
