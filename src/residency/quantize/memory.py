"""How much memory a quantization takes: one layer with its activations, and what the process itself needs."""

from residency.errors import BudgetError
from residency.quantize.job import HEAD_ROWS, SCORED_TOKENS
from residency.quantize.layers import BATCH_TOKENS, MATRICES
from residency.quantize.methods import Method
from residency.spec.model import ModelSpec
from residency.units import binary_bytes

RUNTIME_BYTES = 130 << 20  # the interpreter, NumPy with its buffers, the tokenizer
_FLOAT_BYTES = 4
_GRAM_COPIES = 4  # the matrix itself, its factor's inverse, and what a step of either is made from
_LAYER_COPIES = 3  # a layer's weights, what they have become, and codes and temporary values of its largest matrix
_WIDE_ACTIVATIONS = 4  # arrays of a batch as wide as the feed-forward network


def forecast_bytes(
    spec: ModelSpec, method: Method, *, samples: int, judged: int, sample_tokens: int, scanned_tokens: int = 0
) -> int:
    """Peak memory of the process. `scanned_tokens` go through a scan for mixed formats before."""
    layer = spec.layers[0]
    attention, wide = layer.grouped_attention, layer.gated_mlp.intermediate
    heads = attention.num_heads * attention.head_dim
    streams = samples * sample_tokens * (spec.hidden + heads) + 2 * judged * sample_tokens * spec.hidden
    gram = _GRAM_COPIES * max(wide, heads, spec.hidden) ** 2 if method.needs_gram else 0
    weights = _LAYER_COPIES * sum(tensor.num_values for tensor in layer.tensors)
    batch = max(BATCH_TOKENS, sample_tokens)
    activations = batch * (_WIDE_ACTIVATIONS * wide + 4 * spec.hidden) if samples or judged else 0
    quantizing = streams + weights + max(gram, activations)
    scoring = 2 * judged * sample_tokens * spec.hidden + 3 * SCORED_TOKENS * spec.vocabulary if judged else 0
    held = HEAD_ROWS * spec.hidden * 3
    streamed = scanned_tokens * spec.hidden * (len(MATRICES) * len(spec.layers) + 1)
    scanning = streamed + weights + BATCH_TOKENS * _WIDE_ACTIVATIONS * wide if scanned_tokens else 0
    return RUNTIME_BYTES + _FLOAT_BYTES * max(quantizing, scoring + held, scanning)


def samples_that_fit(
    spec: ModelSpec,
    method: Method,
    *,
    wanted: int,
    budget_bytes: int | None,
    judged: int,
    sample_tokens: int,
    scanned_tokens: int = 0,
) -> int:
    """As many calibration samples as the budget has room for, at most `wanted`. BudgetError where none fits."""
    fewest = 1 if method.needs_inputs else 0
    for samples in range(wanted if method.needs_inputs else 0, fewest - 1, -1):
        need_bytes = forecast_bytes(
            spec,
            method,
            samples=samples,
            judged=judged,
            sample_tokens=sample_tokens,
            scanned_tokens=scanned_tokens,
        )
        if budget_bytes is None or need_bytes <= budget_bytes:
            return samples
    raise BudgetError(
        f"quantizing {spec.name} needs {binary_bytes(need_bytes)} with the fewest samples and the budget is "
        f"{binary_bytes(budget_bytes or 0)}; give more, or --method rtn, which needs no calibration."
    )
