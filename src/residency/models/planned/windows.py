"""Which layers see only a window of the context."""

from collections.abc import Callable

from residency.errors import UnsupportedError
from residency.models.configuration import Configuration
from residency.models.planned.parts import layer_numbers

SLIDING, FULL = "sliding_attention", "full_attention"


def layer_kinds(c: Configuration, *, by_rule: Callable[[int], str], known: tuple[str, ...]) -> list[str]:
    """config.json's layer_types, or what the architecture's rule says. UnsupportedError for a kind it has not."""
    numbers = layer_numbers(c)
    if not c.has("layer_types"):
        return [by_rule(number) for number in numbers]
    kinds = c.texts("layer_types", len(numbers))
    for kind in kinds:
        if kind not in known:
            raise UnsupportedError(
                f"{c.source} asks for layers of the type {kind[:80]!r}; known are {', '.join(known)}."
            )
    return kinds


def windows(c: Configuration, *, slides: Callable[[int], bool], default_tokens: int | None = None) -> list[int | None]:
    """Each layer's window: by layer_types, or where `slides` says so. A window that nothing outgrows is none."""
    kinds = layer_kinds(c, by_rule=lambda number: SLIDING if slides(number) else FULL, known=(SLIDING, FULL))
    window: int | None = None
    if c.has("sliding_window") or not c.names("sliding_window"):
        window = default_tokens if not c.has("sliding_window") else c.integer("sliding_window", least=0)
    if window == 0 or (window is not None and window >= c.integer("max_position_embeddings")):
        window = None
    return [window if kind == SLIDING else None for kind in kinds]


def optional_windows(c: Configuration) -> list[int | None]:
    """Qwen's: none unless use_sliding_window; then the layers from max_window_layers."""
    asked, first = c.flag("use_sliding_window", False), c.integer("max_window_layers", 28, least=0)
    found = windows(c, slides=lambda number: number >= first, default_tokens=4096)
    return found if asked else [None] * len(found)
