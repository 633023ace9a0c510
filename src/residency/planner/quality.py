"""What fewer bits cost in quality: the relative rise of perplexity, as it was measured on one model.

It is a guide for ordering formats, not a forecast of another model: larger models lose less (arXiv 2411.02355).
"""

from dataclasses import dataclass
from typing import Literal


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
_UNKNOWN = Loss(part=0.05, origin="assumed", source="assumed: nobody's figure is known here")


def loss_of(quant: str | None, kv_name: str) -> float:
    """The rise of perplexity of weights requantized to `quant` with keys and values in `kv_name`."""
    weights = AS_PUBLISHED if quant is None else WEIGHT_LOSSES.get(quant.lower(), _UNKNOWN)
    return weights.part + KV_LOSSES.get(kv_name, _UNKNOWN).part
