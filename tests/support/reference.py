"""Logits of `transformers` on a saved folder: what the engine's are compared with. Needs torch."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from residency.kernels.rotary import key_offset
from residency.kernels.rotary.reference_codes import spread
from residency.models.specs import model_spec
from residency.spec import open_checkpoint

Doubles = npt.NDArray[np.float64]


def reference_logits(
    folder: Path, tokens: list[int], *, kv_format: Literal["F32", "F16", "INT8"] = "F32"
) -> npt.NDArray[np.float32]:
    """float32 logits (tokens, vocabulary) of the checkpoint in `folder` after each of `tokens`.

    Keys and values pass through a cache of this format; all else stays float32.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.train(False)
    with torch.no_grad():
        cache = None if kv_format == "F32" else _float16_cache() if kv_format == "F16" else _int8_cache(folder, model)
        logits = model(torch.tensor([tokens]), past_key_values=cache, use_cache=cache is not None).logits[0]
    result: npt.NDArray[np.float32] = logits.float().numpy()
    return result


def _float16_cache() -> Any:
    """A cache of `transformers` whose keys and values are rounded to float16 on their way in."""
    from transformers import DynamicCache

    class Float16Cache(DynamicCache):  # type: ignore[misc]
        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            return super().update(key_states.half().float(), value_states.half().float(), *args, **kwargs)

    return Float16Cache()


def _int8_cache(folder: Path, model: Any) -> Any:
    """A cache of `transformers` that rounds as the engine's does: spread keys without their offset, and values."""
    import torch
    from transformers import DynamicCache

    layers = model_spec(open_checkpoint(folder)).layers
    offsets = []
    for layer, module in zip(layers, model.model.layers, strict=True):
        spec = layer.grouped_attention
        offset_X = np.zeros(spec.num_kv_heads * spec.head_dim, np.float32)
        if spec.bias:
            key_offset(module.self_attn.k_proj.bias.numpy(), spec.rope, spec.head_dim, offset_X)
        offsets.append(offset_X.reshape(spec.num_kv_heads, 1, spec.head_dim))

    class Int8Cache(DynamicCache):  # type: ignore[misc]
        def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            kept = key_states.double().numpy() - offsets[layer_idx]
            keys = spread(_rounded_to_codes(spread(kept))) + offsets[layer_idx]  # a spreading undoes itself
            values = _rounded_to_codes(value_states.double().numpy())
            states = (torch.from_numpy(each.astype(np.float32)) for each in (keys, values))
            return super().update(*states, layer_idx, *args, **kwargs)

    return Int8Cache()


def _rounded_to_codes(x: Doubles) -> Doubles:
    """Heads in 8 bits, each with its own scale in float16."""
    scales = (np.abs(x).max(axis=-1, keepdims=True) / 127).astype(np.float16).astype(np.float64)
    rounded: Doubles = np.clip(np.rint(x / scales), -127, 127) * scales
    return rounded
