"""What fewer bits cost in quality: the relative rise of perplexity, as it was measured on this model or on another.

Another model's is a guide for ordering formats, not a forecast: larger models lose less (arXiv 2411.02355). What
`residency quantize` measures is kept in the cache folder, and plans for the same model use it.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from urllib.parse import quote

from residency.errors import FileError
from residency.paths import cache_folder
from residency.records import from_data, to_data
from residency.spec.model import ModelSpec
from residency.spec.state import KvName


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Perplexity rises by this part, and who says so."""

    part: float
    origin: Literal["measured", "assumed"]
    source: str


_LLAMA_CPP = "llama.cpp's perplexity README: Llama 3 8B on WikiText-2"
_RED_HAT = "arXiv 2411.02355 finds 8 bits nearly free and 4-bit weights close to them; the number is assumed"
_KV = "assumed: 8-bit keys and values are reported as nearly free (arXiv 2402.02750 goes to 2 bits with care)"

AS_PUBLISHED = Loss(part=0.0, origin="measured", source="as published")
WEIGHT_LOSSES = {
    "fp8": Loss(part=0.001, origin="assumed", source=_RED_HAT),
    "int8": Loss(part=0.001, origin="assumed", source=_RED_HAT),
    "q8_0": Loss(part=0.0002, origin="measured", source=_LLAMA_CPP),
    "q6_k": Loss(part=0.0033, origin="measured", source=_LLAMA_CPP),
    "q5_k_m": Loss(part=0.0089, origin="measured", source=_LLAMA_CPP),
    "q4_k_m": Loss(part=0.0279, origin="measured", source=_LLAMA_CPP),
    **dict.fromkeys(("w8a8", "w8a16", "gptq-8bit", "fp8-block"), Loss(part=0.001, origin="assumed", source=_RED_HAT)),
    **dict.fromkeys(
        ("int4-g128", "int4-g32", "w4a16", "gptq", "gptq-g32", "awq", "awq-g64"),
        Loss(part=0.03, origin="assumed", source=_RED_HAT),
    ),
    "nf4": Loss(part=0.03, origin="assumed", source="arXiv 2305.14314 finds NF4 near 16 bits; the number is assumed"),
    "mxfp4": Loss(part=0.04, origin="assumed", source="assumed: above NF4, as its scales are powers of two"),
}
KV_LOSSES = {
    "F32": AS_PUBLISHED,
    "F16": AS_PUBLISHED,
    "BF16": AS_PUBLISHED,
    "FP8": Loss(part=0.001, origin="assumed", source=_KV),
    "INT8": Loss(part=0.001, origin="assumed", source=_KV),
    "INT4": Loss(part=0.02, origin="assumed", source=_KV),
}
# How far predictions with a cache in int8 are from those with one in float32 (mean KL divergence, nats): WikiText-2,
# second halves of chunks of 4,096 tokens, SmolLM2-135M and the worse of Qwen2.5-Coder-0.5B and 1.5B.
_INT8_DIVERGENCES = {"llama": 0.0010, "qwen2": 0.0010}
_SMALL_DIVERGENCE = 0.002
_NARROWEST_MEASURED = 64  # values of a head
_UNKNOWN = Loss(part=0.05, origin="assumed", source="assumed: nobody's figure is known here")


_HERE = "on this very model: 2,040 tokens of WikiText-2 raw, test"
# Of known models, by `model_key`: what `residency quantize` measured, calibrated on WikiText-2's validation text.
KNOWN_LOSSES = {
    "qwen2-24x896-151936": {
        "int8": Loss(part=0.004, origin="measured", source=_HERE),
        "int4-g128": Loss(part=0.192, origin="measured", source=_HERE),
        "awq": Loss(part=0.123, origin="measured", source=_HERE),
        "gptq": Loss(part=0.041, origin="measured", source=_HERE),
    },
}


@dataclass(frozen=True, kw_only=True)
class MeasuredLoss:
    """What was measured on this machine, as it is kept in the cache folder."""

    label: str  # a format, as plans name it
    part: float
    tokens: int
    text: str  # the file's name


def model_key(model: ModelSpec) -> str:
    """The same for all checkpoints of a model, whatever their format and place."""
    return f"{model.architecture}-{len(model.layers)}x{model.hidden}-{model.vocabulary}"


def measured_losses(model: ModelSpec) -> dict[str, Loss]:
    """By format, what is known of this very model: measured here, else known to residency."""
    found = dict(KNOWN_LOSSES.get(model_key(model), {}))
    for each in _kept(_path(model)).values():
        source = f"on this very model, here: {each.tokens} tokens of {each.text}"
        found[each.label] = Loss(part=each.part, origin="measured", source=source)
    return found


def keep_loss(model: ModelSpec, measured: MeasuredLoss) -> None:
    """Let plans for the model know. A cache that cannot be written is let be."""
    path = _path(model)
    kept = _kept(path) | {measured.label: measured}
    scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps([to_data(each) for each in kept.values()], indent=1) + "\n", encoding="utf-8")
        scratch.replace(path)


def loss_of(quant: str | None, kv_name: str, measured: Mapping[str, Loss] = MappingProxyType({})) -> float:
    """The rise of perplexity of weights requantized to `quant` with keys and values in `kv_name`.

    `measured` is what is known of this very model; the rest is taken from others.
    """
    label = "" if quant is None else quant.lower()
    weights = AS_PUBLISHED if quant is None else measured.get(label) or WEIGHT_LOSSES.get(label, _UNKNOWN)
    return weights.part + KV_LOSSES.get(kv_name, _UNKNOWN).part


def default_kv(model: ModelSpec) -> KvName:
    """The format of a KV cache that nobody asked for: int8 where it was measured to change predictions little, in the
    model's architecture and in heads at least as wide; else float16.
    """
    is_small = _INT8_DIVERGENCES.get(model.architecture, 1.0) <= _SMALL_DIVERGENCE
    narrowest = min(layer.grouped_attention.head_dim for layer in model.layers)
    return "INT8" if is_small and narrowest >= _NARROWEST_MEASURED else "F16"


def _path(model: ModelSpec) -> Path:
    return cache_folder() / "quality" / f"{quote(model_key(model), safe='')[:100]}.json"


def _kept(path: Path) -> dict[str, MeasuredLoss]:
    """What an earlier run wrote; nothing where there is no such file, or it is damaged."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        found = [from_data(MeasuredLoss, each, what=str(path), error=FileError) for each in entries]
    except (OSError, ValueError, TypeError, FileError):
        return {}
    return {each.label: each for each in found}
