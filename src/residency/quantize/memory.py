"""How much memory a quantization takes: one layer with its activations, and what the process itself needs."""

from residency.errors import BudgetError
from residency.quantize.layers import BATCH_TOKENS
from residency.spec.model import ModelSpec
from residency.units import binary_bytes

RUNTIME_BYTES = 130 << 20  # the interpreter, NumPy with its buffers, the tokenizer
_FLOAT_BYTES = 4
_GRAM_COPIES = 4  # the matrix itself, its factor's inverse, and what a step of either is made from
_LAYER_COPIES = 3  # a layer's weights, what they have become, and codes and temporary values of its largest matrix
_WIDE_ACTIVATIONS = 4  # arrays of a batch as wide as the feed-forward network


def forecast_bytes(spec: ModelSpec, *, needs_inputs: bool, samples: int, judged: int, sample_tokens: int) -> int:
    """Peak memory of the process."""
    layer = spec.layers[0]
    attention, wide = layer.grouped_attention, layer.gated_mlp.intermediate
    heads = attention.num_heads * attention.head_dim
    streams = samples * sample_tokens * (spec.hidden + heads) + 2 * judged * sample_tokens * spec.hidden
    gram = _GRAM_COPIES * max(wide, heads, spec.hidden) ** 2 if needs_inputs else 0
    weights = _LAYER_COPIES * sum(tensor.num_values for tensor in layer.tensors)
    batch = max(BATCH_TOKENS, sample_tokens)
    activations = batch * (_WIDE_ACTIVATIONS * wide + 4 * spec.hidden) if samples or judged else 0
    return RUNTIME_BYTES + _FLOAT_BYTES * (streams + gram + weights + activations)


def samples_that_fit(
    spec: ModelSpec, *, wanted: int, budget_bytes: int | None, needs_inputs: bool, judged: int, sample_tokens: int
) -> int:
    """As many calibration samples as the budget has room for, at most `wanted`. BudgetError where none fits."""
    for samples in range(wanted if needs_inputs else 0, -1 if not needs_inputs else 0, -1):
        need_bytes = forecast_bytes(
            spec, needs_inputs=needs_inputs, samples=samples, judged=judged, sample_tokens=sample_tokens
        )
        if budget_bytes is None or need_bytes <= budget_bytes:
            return samples
    raise BudgetError(
        f"quantizing {spec.name} needs {binary_bytes(need_bytes)} with the fewest samples and the budget is "
        f"{binary_bytes(budget_bytes or 0)}; give more, or --method rtn, which needs no calibration."
    )
