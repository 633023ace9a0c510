"""Which tensor gets which format, so that a file of a given size loses least: a scan, then the best assignment.

The scan rounds one matrix at a time and lets the error run through the layers after it: how far the last hidden state
moves is what that matrix costs. All perturbed streams go through each layer together, so that no layer is read twice.
Costs of other formats follow from the ratio of their weighed rounding errors, and costs are added up, as small errors
of different matrices hardly meet. Shape suffixes: S samples, T tokens, C channels, M matrices, O options, U units of
bytes.
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
from residency.quantize.source import read_values
from residency.spec.model import ModelSpec
from residency.units import binary_bytes

WIDE = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
NARROW = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # where columns are no whole blocks of 256
_UNITS = 1 << 16  # that a budget is counted in
_SCANNED = {True: "Q4_K", False: "Q4_0"}  # by whether columns are whole blocks of 256

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A format that a matrix may have: its bytes, and what it costs in quality (any unit, the same for all)."""

    format: Format
    num_bytes: int
    cost: float


def scanned(spec: ModelSpec, x_STC: Floats, progress: Progress) -> dict[str, tuple[Choice, ...]]:
    """The choices of each matrix in the layers, by its name. `x` are embeddings of calibration text; they are used up.

    A cost is the mean squared distance of the last hidden state from where it was, relative to its length.
    """
    streams_MSTC = np.empty((len(MATRICES) * len(spec.layers), *x_STC.shape), np.float32)
    as_samples = streams_MSTC.reshape(-1, *x_STC.shape[1:])
    errors: dict[str, dict[str, float]] = {}
    for number, layer_spec in enumerate(spec.layers):
        progress(number, len(spec.layers))
        tensors = {tensor.name.split(".", 3)[3]: read_values(tensor) for tensor in layer_spec.tensors}
        layer = Layer(layer_spec, spec.norm_epsilon, tensors)
        advance(layer, as_samples[: len(errors) * len(x_STC)])
        for part in MATRICES:
            matrix_RC, place, name = tensors[part], len(errors), layer_spec.tensor(part).name
            energy_C = gathered(matrix_RC.shape[1], inputs_of(layer, part, x_STC), with_gram=False).energy_C
            errors[name] = {}
            for each in _formats(matrix_RC):
                rounded_RC = encoded(each, matrix_RC, energy_C).values_RC
                errors[name][each.name] = _error(matrix_RC, rounded_RC, energy_C)
                if each.name == _scanned_name(matrix_RC.shape[1]):
                    streams_MSTC[place] = x_STC
                    advance(replace(layer, tensors=tensors | {part: rounded_RC}), streams_MSTC[place])
        advance(layer, x_STC)
    norm_C = read_values(spec.final_norm)
    there_STC = rms_norm(x_STC, norm_C, spec.norm_epsilon)
    moved = {
        name: _distance(there_STC, rms_norm(stream_STC, norm_C, spec.norm_epsilon))
        for name, stream_STC in zip(errors, streams_MSTC, strict=True)
    }
    return {
        tensor.name: tuple(
            Choice(
                format=format_named(each),
                num_bytes=format_named(each).bytes_of(tensor.shape),
                cost=moved[tensor.name] * error / (errors[tensor.name][_scanned_name(tensor.shape[1])] or 1.0),
            )
            for each, error in errors[tensor.name].items()
        )
        for layer_spec in spec.layers
        for tensor in layer_spec.tensors
        if tensor.name in moved
    }


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


def _formats(matrix_RC: Floats) -> list[Format]:
    return [format_named(name) for name in (WIDE if matrix_RC.shape[1] % 256 == 0 else NARROW)]


def _scanned_name(columns: int) -> str:
    return _SCANNED[columns % 256 == 0]


def _error(matrix_RC: Floats, rounded_RC: Floats, energy_C: Floats) -> float:
    return float(np.einsum("rc,c->", (rounded_RC - matrix_RC) ** 2, energy_C, dtype=np.float64))


def _distance(there: Floats, here: Floats) -> float:
    return float(((here - there).astype(np.float64) ** 2).sum() / (there.astype(np.float64) ** 2).sum())
