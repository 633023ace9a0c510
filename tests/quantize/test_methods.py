"""Grids are what they say, and each method serves the outputs better than the one before."""

import numpy as np
import numpy.typing as npt
import pytest

from residency.quantize.awq import column_scales
from residency.quantize.clipping import clipped, output_error
from residency.quantize.gptq import gptq, inverse_factor
from residency.quantize.grids import IntegerScheme, grid_of, searched_grid
from residency.quantize.rtn import round_to_nearest

Floats = npt.NDArray[np.float32]
SCHEMES = [IntegerScheme(bits=bits, group=64, symmetric=symmetric) for bits in (3, 4) for symmetric in (True, False)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(3, 32), (4, 64), (4, 128), (8, None)])
def test_rounding_is_within_half_a_step(weights: Floats, bits: int, group: int | None, symmetric: bool) -> None:
    matrix = round_to_nearest(weights, IntegerScheme(bits=bits, group=group, symmetric=symmetric))
    steps = np.repeat(matrix.grid.scales_RG, group or weights.shape[1], axis=1)[:, : weights.shape[1]]
    ends = 1.1 if symmetric else 0.55  # the largest code of a symmetric grid is one short; scales are rounded too
    assert (np.abs(matrix.values_RC - weights) <= ends * steps).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_are_above_zero_for_files_that_store_them_less_one(weights: Floats, scheme: IntegerScheme) -> None:
    for values in (weights, np.abs(weights), -np.abs(weights), np.zeros_like(weights)):
        zeros = grid_of(values, scheme).zeros_RG
        assert zeros.min() >= 1 and zeros.max() <= scheme.largest_code


def test_zero_is_exact(weights: Floats) -> None:
    weights[:, ::3] = 0
    matrix = round_to_nearest(weights, IntegerScheme(bits=4, group=32, symmetric=False))
    assert (matrix.values_RC[:, ::3] == 0).all()


def test_a_searched_grid_is_never_worse(weights: Floats) -> None:
    scheme = IntegerScheme(bits=3, group=32, symmetric=False)
    importance = np.arange(weights.shape[1], dtype=np.float32)
    plain, searched = grid_of(weights, scheme), searched_grid(weights, scheme, importance)
    errors = [(importance * (g.decode(g.encode(weights)) - weights) ** 2).sum(axis=1) for g in (plain, searched)]
    assert (errors[1] <= errors[0] * 1.0001).all() and errors[1].sum() < 0.95 * errors[0].sum()


def test_the_inverse_factor_is_one(inputs: Floats) -> None:
    gram = gram_of(inputs)
    upper = inverse_factor(gram, 0.01).astype(np.float64)
    damped = gram.astype(np.float64) + 0.01 * gram.diagonal().mean() * np.eye(len(gram))
    assert np.allclose(upper, np.triu(upper))
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(len(gram)), atol=2e-3)


def test_a_channel_that_is_always_silent_does_no_harm(weights: Floats, inputs: Floats) -> None:
    inputs[:, 5] = 0
    matrix = gptq(weights, gram_of(inputs), IntegerScheme(bits=4, group=64, symmetric=False))
    assert np.isfinite(matrix.values_RC).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gptq_keeps_outputs_far_better_than_rounding(weights: Floats, inputs: Floats, scheme: IntegerScheme) -> None:
    gram = gram_of(inputs)
    rounded = output_error(weights, round_to_nearest(weights, scheme).values_RC, gram)
    assert output_error(weights, gptq(weights, gram, scheme).values_RC, gram) < 0.5 * rounded


@pytest.mark.parametrize("scheme", [*SCHEMES, IntegerScheme(bits=8, group=None, symmetric=True)])
def test_awq_keeps_outputs_better_than_rounding(weights: Floats, inputs: Floats, scheme: IntegerScheme) -> None:
    gram = gram_of(inputs)
    scales = column_scales([weights], gram.diagonal(), scheme)
    scaled: Floats = weights * scales
    scaled_gram: Floats = gram / np.outer(scales, scales)
    found: Floats = clipped(scaled, scaled_gram, scheme).values_RC / scales
    rounded = output_error(weights, round_to_nearest(weights, scheme).values_RC, gram)
    assert output_error(weights, found, gram) < 0.8 * rounded


@pytest.mark.parametrize("scheme", SCHEMES)
def test_clipping_with_all_groups_in_sight_beats_each_group_alone(
    weights: Floats, inputs: Floats, scheme: IntegerScheme
) -> None:
    gram = gram_of(inputs)
    alone = searched_grid(weights, scheme, gram.diagonal())
    error = output_error(weights, alone.decode(alone.encode(weights)), gram)
    assert output_error(weights, clipped(weights, gram, scheme).values_RC, gram) < 0.9 * error


def test_clipping_leaves_outputs_as_large_as_they_were(weights: Floats, inputs: Floats) -> None:
    found = clipped(weights, gram_of(inputs), IntegerScheme(bits=3, group=64, symmetric=False)).values_RC
    outputs, clipped_outputs = inputs @ weights.T, inputs @ found.T
    gains = (outputs * clipped_outputs).sum(axis=0) / (outputs**2).sum(axis=0)
    np.testing.assert_allclose(gains, 1, atol=1e-3)


@pytest.mark.parametrize("group", [64, 48, None])
def test_a_strong_column_is_scaled_up(weights: Floats, inputs: Floats, group: int | None) -> None:
    inputs[:, 40] *= 30
    scales = column_scales([weights], gram_of(inputs).diagonal(), IntegerScheme(bits=4, group=group, symmetric=False))
    assert scales[40] > 1.5 * np.median(scales)


def test_columns_that_are_tied_are_scaled_alike(weights: Floats, inputs: Floats) -> None:
    tied = np.arange(weights.shape[1]) % 80
    scheme = IntegerScheme(bits=4, group=64, symmetric=True)
    scales = column_scales([weights], gram_of(inputs).diagonal(), scheme, tied)
    np.testing.assert_array_equal(scales[:80], scales[80:])
    assert len(np.unique(scales)) == 80


def test_scales_are_one_where_nothing_is_met() -> None:
    scheme = IntegerScheme(bits=4, group=32, symmetric=True)
    nothing = np.zeros((8, 64), np.float32)
    np.testing.assert_allclose(column_scales([nothing], nothing[0], scheme), 1)


def test_gptq_of_eight_bits_is_nearly_exact(weights: Floats, inputs: Floats) -> None:
    gram = gram_of(inputs)
    matrix = gptq(weights, gram, IntegerScheme(bits=8, group=None, symmetric=True))
    assert output_error(weights, matrix.values_RC, gram) < 2e-4 * output_error(weights, np.zeros_like(weights), gram)


def gram_of(inputs: Floats) -> Floats:
    gram: Floats = inputs.T @ inputs / np.float32(len(inputs))
    return gram
