"""Which tensor gets which format, so that a file of a given size loses least: a scan, then the best assignment.

The scan rounds one matrix at a time and lets the error run through the layers after it: how far the logits move is
what that matrix costs. The embedding and the head are matrices like others. All perturbed streams go through each layer
together, so that no layer is read twice. Costs of other formats follow from the ratio of their weighed rounding errors,
and costs are added up, as small errors of different matrices hardly meet.

Shape suffixes: S samples, T tokens, N tokens of all samples, C channels, M matrices, R rows, V looked-at rows of the
head, O options, U units of bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from residency.errors import BudgetError
from residency.formats import Format, format_named
from residency.quantize.blocks import encoded
from residency.quantize.forward import Floats, Layer, rms_norm
from residency.quantize.layers import MATRICES, advance, gathered, inputs_of
from residency.quantize.source import read_rows, read_values
from residency.spec.model import ModelSpec, TensorSpec
from residency.units import binary_bytes

WIDE = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
NARROW = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # where columns are no whole blocks of 256
_UNITS = 1 << 16  # that a budget is counted in
_HEAD_ROWS = 2048  # whose logits are looked at
_SCANNED = {True: "Q4_K", False: "Q4_0"}  # by whether columns are whole blocks of 256

Progress = Callable[[int, int], None]
Costs = dict[str, dict[str, float]]  # by matrix, then by format


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A format that a matrix may have: its bytes, and what it costs in quality (any unit, the same for all)."""

    format: Format
    num_bytes: int
    cost: float


def choices_of(spec: ModelSpec, costs: Costs) -> dict[str, tuple[Choice, ...]]:
    """What each matrix that was scanned may become, by its name."""
    return {tensor.name: _choices(tensor, costs[tensor.name]) for tensor in spec.tensors if tensor.name in costs}


def scanned(spec: ModelSpec, x_STC: Floats, progress: Progress) -> Costs:
    """What each matrix costs in each format. `x` are embeddings of calibration text; they are used up.

    A cost is the mean squared distance of the logits from where they were, relative to how far they are spread.
    """
    streams_MSTC = np.empty((1 + len(MATRICES) * len(spec.layers), *x_STC.shape), np.float32)
    as_samples = streams_MSTC.reshape(-1, *x_STC.shape[1:])
    rounded = _Rounded.of(x_STC.reshape(-1, spec.hidden), None)
    streams_MSTC[0] = rounded.scanned_RC.reshape(x_STC.shape)
    errors = {spec.embedding.name: rounded.ratios}
    for number, layer_spec in enumerate(spec.layers):
        progress(number, len(spec.layers))
        tensors = {tensor.name.split(".", 3)[3]: read_values(tensor) for tensor in layer_spec.tensors}
        layer = Layer(layer_spec, spec.norm_epsilon, tensors)
        advance(layer, as_samples[: len(errors) * len(x_STC)])
        for part in MATRICES:
            inputs = gathered(tensors[part].shape[1], inputs_of(layer, part, x_STC), with_gram=False)
            rounded = _Rounded.of(tensors[part], inputs.energy_C)
            stream_STC = streams_MSTC[len(errors)]
            stream_STC[:] = x_STC
            advance(replace(layer, tensors=tensors | {part: rounded.scanned_RC}), stream_STC)
            errors[layer_spec.tensor(part).name] = rounded.ratios
        advance(layer, x_STC)
    head = _Head.of(spec)
    there_NV = head.logits(x_STC)
    costs = {
        name: {each: _distance(there_NV, head.logits(stream_STC)) * ratio for each, ratio in ratios.items()}
        for (name, ratios), stream_STC in zip(errors.items(), streams_MSTC, strict=True)
    }
    own = {each: _distance(there_NV, head.rounded(each).logits(x_STC)) for each in _formats(spec.hidden)}
    tied = costs.get(head.name, {})
    costs[head.name] = {each: cost + tied.get(each, 0.0) for each, cost in own.items()}
    return costs


def assigned(choices: Mapping[str, Sequence[Choice]], budget_bytes: int) -> dict[str, Format]:
    """The format of each matrix that together cost least in `budget_bytes`: a knapsack, by dynamic programming.

    Bytes are counted in units of a 65536th of the budget, rounded up. BudgetError where not even the smallest fit.
    """
    smallest = sum(min(each.num_bytes for each in options) for options in choices.values())
    if smallest > budget_bytes:
        raise BudgetError(
            f"the smallest formats need {binary_bytes(smallest - budget_bytes)} more than the target leaves for the "
            "layers' matrices; give a larger --target-size."
        )
    unit = -(-max(1, budget_bytes) // _UNITS)
    units = max(budget_bytes // unit, sum(min(_units(each, unit) for each in options) for options in choices.values()))
    best_U = np.zeros(units + 1)  # the least cost of the matrices so far, in at most so many units
    taken: list[npt.NDArray[np.uint8]] = []
    for options in choices.values():
        costs_OU = np.full((len(options), units + 1), np.inf)
        for index, option in enumerate(options):
            size = _units(option, unit)
            costs_OU[index, size:] = best_U[: max(0, units + 1 - size)] + option.cost
        taken.append(costs_OU.argmin(axis=0).astype(np.uint8))
        best_U = costs_OU.min(axis=0)
    found, left = {}, units
    for (name, options), taken_U in zip(reversed(list(choices.items())), reversed(taken), strict=True):
        option = options[taken_U[left]]
        found[name], left = option.format, left - _units(option, unit)
    return found


def _units(choice: Choice, unit: int) -> int:
    return -(-choice.num_bytes // unit)


@dataclass(frozen=True, kw_only=True)
class _Rounded:
    """A matrix in the format that is scanned, and each format's weighed error as a part of that one's."""

    scanned_RC: Floats
    ratios: dict[str, float]

    @classmethod
    def of(cls, matrix_RC: Floats, energy_C: Floats | None) -> "_Rounded":
        """Of a matrix that meets inputs of mean square `energy`; None where it meets none."""
        scanned_name = _SCANNED[_is_wide(matrix_RC.shape[1])]
        errors, scanned_RC = {}, matrix_RC
        for each in _formats(matrix_RC.shape[1]):
            rounded_RC = encoded(format_named(each), matrix_RC, energy_C).values_RC
            weight_C = np.ones(matrix_RC.shape[1], np.float32) if energy_C is None else energy_C
            errors[each] = float(np.einsum("rc,c->", (rounded_RC - matrix_RC) ** 2, weight_C, dtype=np.float64))
            if each == scanned_name:
                scanned_RC = rounded_RC
        return cls(
            scanned_RC=scanned_RC,
            ratios={each: error / (errors[scanned_name] or 1.0) for each, error in errors.items()},
        )


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The final norm and some of the head's rows: as many tell how far logits move."""

    name: str
    norm_C: Floats
    norm_epsilon: float
    rows_VC: Floats

    @classmethod
    def of(cls, spec: ModelSpec) -> "_Head":
        """Rows at even distances."""
        head = spec.head or spec.embedding
        rows = range(0, spec.vocabulary, max(1, spec.vocabulary // _HEAD_ROWS))
        return cls(
            name=head.name,
            norm_C=read_values(spec.final_norm),
            norm_epsilon=spec.norm_epsilon,
            rows_VC=np.concatenate([read_rows(head, row, row + 1) for row in rows]),
        )

    def rounded(self, name: str) -> "_Head":
        """With the rows in another format."""
        return replace(self, rows_VC=encoded(format_named(name), self.rows_VC, None).values_RC)

    def logits(self, x_STC: Floats) -> Floats:
        """Of last hidden states, (tokens, rows), less their mean: softmax does not see it."""
        x_NC = x_STC.reshape(-1, x_STC.shape[-1])
        logits_NV: Floats = rms_norm(x_NC, self.norm_C, self.norm_epsilon) @ self.rows_VC.T
        logits_NV -= logits_NV.mean(axis=1, keepdims=True)
        return logits_NV


def _choices(tensor: TensorSpec, costs: Mapping[str, float]) -> tuple[Choice, ...]:
    formats = {name: format_named(name) for name in costs}
    return tuple(
        Choice(format=each, num_bytes=each.bytes_of(tensor.shape), cost=costs[name]) for name, each in formats.items()
    )


def _formats(columns: int) -> tuple[str, ...]:
    return WIDE if _is_wide(columns) else NARROW


def _is_wide(columns: int) -> bool:
    return columns % 256 == 0


def _distance(there: Floats, here: Floats) -> float:
    return float(((here - there).astype(np.float64) ** 2).sum() / (there.astype(np.float64) ** 2).sum())
