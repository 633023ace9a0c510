"""Which rotations a configuration asks for: how many values of a head, and for how many positions."""

from collections.abc import Iterable

from residency.models.configuration import Configuration
from residency.spec.model import AttentionSpec, LayerSpec, RotationTable

_PARTS = ("partial_rotary_factor", "rotary_pct")


def rotations(c: Configuration, layers: Iterable[LayerSpec], context_tokens: int) -> tuple[RotationTable, ...]:
    """One table for each way in which layers rotate. Gemma 3's layers that slide rotate unscaled."""
    scaling = c.section("rope_scaling" if c.has("rope_scaling") else "rope_parameters")
    if scaling.has("full_attention"):
        scaling = scaling.section("full_attention")
    before_tokens = c.integer("original_max_position_embeddings", context_tokens)
    scaled_tokens = _positions(scaling, context_tokens, before_tokens)
    found: dict[tuple[int, int, bool], RotationTable] = {}
    for layer in layers:
        if layer.attention is None:
            continue
        is_local = c.architecture == "gemma3_text" and getattr(layer.attention, "window_tokens", None) is not None
        table = RotationTable(width=_width(c, layer), positions=context_tokens if is_local else scaled_tokens)
        found[table.width, table.positions, is_local] = table
    return tuple(found.values())


def _width(c: Configuration, layer: LayerSpec) -> int:
    if not isinstance(layer.attention, AttentionSpec):
        return layer.attention.rope_dim if layer.attention else 0
    part = next((c.number(key) for key in _PARTS if c.has(key)), 1.0)
    return int(layer.attention.head_dim * part)


def _positions(scaling: Configuration, context_tokens: int, before_tokens: int) -> int:
    """Linear and dynamic scaling lengthen the context that the configuration names; YaRN the one before, which it
    names too; LongRoPE keeps a table for either."""
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    before = scaling.integer("original_max_position_embeddings", before_tokens)
    if kind in ("linear", "dynamic"):
        return round(context_tokens * scaling.number("factor", 1.0))
    if kind in ("yarn", "deepseek_yarn"):
        return round(before * scaling.number("factor", 1.0))
    return context_tokens + before if kind in ("longrope", "su") else context_tokens
