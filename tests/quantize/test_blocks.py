"""Blocks are those of the gguf package where nothing is known of inputs, and better where their strength is."""

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from residency.formats import format_named
from residency.quantize.blocks import encoded

Floats = npt.NDArray[np.float32]
SIMPLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
FITTED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


@pytest.mark.parametrize("name", SIMPLE)
def test_without_inputs_blocks_are_the_gguf_packages(matrix: Floats, name: str) -> None:
    expected = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(encoded(format_named(name), matrix, None).rows_RB, expected)


@pytest.mark.parametrize("name", FITTED)
def test_the_gguf_package_reads_fitted_blocks_as_they_are_meant(matrix: Floats, name: str) -> None:
    found = encoded(format_named(name), matrix, importance())
    read = gguf.quants.dequantize(found.rows_RB, gguf.GGMLQuantizationType[name])
    np.testing.assert_allclose(read, found.values_RC, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FITTED)
def test_errors_are_smaller_where_inputs_are_strong(matrix: Floats, name: str) -> None:
    weights, chosen = importance(), format_named(name)
    plain, fitted = (encoded(chosen, matrix, each).values_RC for each in (None, weights))
    errors = [float((weights * (values - matrix) ** 2).sum()) for values in (plain, fitted)]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("name", FITTED)
def test_columns_that_meet_nothing_are_rounded_all_the_same(matrix: Floats, name: str) -> None:
    found = encoded(format_named(name), matrix, np.zeros(matrix.shape[1], np.float32)).values_RC
    assert np.abs(found - matrix).max() < 0.5 * np.abs(matrix).max()


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("value", [0.0, 1.5, -1.5])
def test_blocks_of_one_value_are_nearly_exact(name: str, value: float) -> None:
    matrix = np.full((2, 256), value, np.float32)
    found = encoded(format_named(name), matrix, importance()[:256]).values_RC
    np.testing.assert_allclose(found, matrix, rtol=1 / 63, atol=1e-6)  # a step of the six-bit scales


@pytest.fixture
def matrix() -> Floats:
    rng = np.random.default_rng(1)
    spread = np.exp(0.5 * rng.standard_normal((16, 1)))
    return (rng.standard_normal((16, 512)) * spread).astype(np.float32)


def importance() -> Floats:
    return np.exp(2 * np.random.default_rng(2).standard_normal(512)).astype(np.float32)
