"""Models without weights: the shapes of a checkpoint, or of a published configuration, filled with made-up values.

What such a model writes has no meaning; how fast it is, and what it takes, are the real model's.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from residency.models.specs import model_spec, named_spec
from residency.spec.model import AttentionSpec, LayerSpec, ModelSpec, RopeSpec
from residency.spec.opening import open_checkpoint
from residency.spec.requantize import in_groups

RandomWeights = Literal["source", "int8", "int4"]
_BITS = {"int8": 8, "int4": 4}
_ROPE_BASE = 10000.0


def made_up_spec(model: str | Path, weights: RandomWeights) -> ModelSpec:
    """The model that `model` names, a file, a folder or a published one, to be run with made-up weights.

    Fails as named_spec does.
    """
    path = Path(model)
    has_tensors = path.is_file() or any(path.glob("*.safetensors"))
    spec = model_spec(open_checkpoint(path)) if has_tensors else named_spec(model)
    runnable = replace(spec, layers=tuple(map(_runnable, spec.layers)))
    return made_up(runnable, weights)


def made_up(spec: ModelSpec, weights: RandomWeights) -> ModelSpec:
    """`spec` in its own formats ("source"), or with its layers' matrices in integers in groups."""
    return spec if weights == "source" else in_groups(spec, _BITS[weights])


def _runnable(layer: LayerSpec) -> LayerSpec:
    """With what planning leaves open: the plain rotation, biases and norms where there are tensors for them."""
    attention = layer.attention
    if not isinstance(attention, AttentionSpec) or attention.rope.inverse_frequencies:
        return layer
    width = attention.head_dim
    rope = RopeSpec(inverse_frequencies=tuple(_ROPE_BASE ** (-axis / width) for axis in range(0, width, 2)))
    names = [tensor.name for tensor in layer.tensors]
    bias = any(name.endswith("k_proj.bias") for name in names)
    qk_norm = any(name.endswith("k_norm.weight") for name in names)
    return replace(layer, attention=replace(attention, rope=rope, bias=bias, qk_norm=qk_norm))
