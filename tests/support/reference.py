"""Logits of `transformers` on a saved folder: what the engine's are compared with. Needs torch."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def reference_logits(folder: Path, tokens: list[int], *, float16_cache: bool = False) -> npt.NDArray[np.float32]:
    """float32 logits (tokens, vocabulary) of the checkpoint in `folder` after each of `tokens`.

    With `float16_cache` keys and values pass through a cache that keeps them in float16; all else stays float32.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.train(False)
    with torch.no_grad():
        cache = _float16_cache() if float16_cache else None
        logits = model(torch.tensor([tokens]), past_key_values=cache, use_cache=float16_cache).logits[0]
    result: npt.NDArray[np.float32] = logits.float().numpy()
    return result


def _float16_cache() -> Any:
    """A cache of `transformers` whose keys and values are rounded to float16 on their way in."""
    from transformers import DynamicCache

    class Float16Cache(DynamicCache):  # type: ignore[misc]
        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            return super().update(key_states.half().float(), value_states.half().float(), *args, **kwargs)

    return Float16Cache()
