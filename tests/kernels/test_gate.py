"""Gated products are those of the definition."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from residency.kernels.gate import gated, reference
from support.steps import Runner, Step, codes_of, words_of

Floats = npt.NDArray[np.float32]
Activation = Literal["silu", "gelu_tanh"]


def inputs(tokens: int, columns: int) -> list[Floats]:
    rng = np.random.default_rng([tokens, columns])
    return [(rng.standard_normal((tokens, columns)) * 4).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("columns", [32, 96, 512])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_product_is_that_of_the_definition(
    run: Runner, activation: Activation, columns: int, tokens: int, threads: int
) -> None:
    step, (gate_TC, up_TC) = Step(num_tokens=tokens), inputs(tokens, columns)
    step.buffers["q8"] = step.poisoned_groups(tokens, columns)
    out_TC = gated(step.recorder, step.given(gate_TC), step.given(up_TC), activation, columns, into_q8="q8").as_values()
    run(step, threads)
    np.testing.assert_allclose(out_TC, reference.gated(gate_TC, up_TC, activation), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_quantized_product_is_within_half_a_code_of_the_definition(
    run: Runner, activation: Activation, threads: int
) -> None:
    step, (gate_TC, up_TC) = Step(num_tokens=5), inputs(5, 96)
    step.buffers["q8"] = step.poisoned_groups(5, 96)
    q8_TB = gated(step.recorder, step.given(gate_TC), step.given(up_TC), activation, 96, into_q8="q8").as_q8()
    run(step, threads)
    expected_TGV = reference.gated(gate_TC, up_TC, activation).reshape(5, 3, 32)
    in_codes_TGV = expected_TGV / words_of(q8_TB)[:, :, :1]
    assert np.abs(in_codes_TGV - codes_of(q8_TB).reshape(5, 3, 32)).max() < 0.5 + 1e-4


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_columns_beyond_the_product_stay_as_they_are(run: Runner, activation: Activation) -> None:
    step = Step(num_tokens=2)
    step.buffers["q8"] = step.poisoned_groups(2, 96)
    gate_TC, up_TC = step.poisoned(3, 96), step.poisoned(3, 96)
    gate_TC[:2, :64] = up_TC[:2, :64] = 1
    gated(step.recorder, gate_TC, up_TC, activation, 64, into_q8="q8")
    run(step, 2)
    assert np.isnan(gate_TC[2]).all() and np.isnan(gate_TC[:, 64:]).all() and not np.isnan(gate_TC[:2, :64]).any()


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("value", [-1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4])
def test_far_from_zero_a_gate_is_open_or_shut(run: Runner, activation: Activation, value: float) -> None:
    step = Step(num_tokens=1)
    step.buffers["q8"] = step.poisoned_groups(1, 32)
    gate_TC, up_TC = step.given(np.full((1, 32), value, np.float32)), step.given(np.ones((1, 32), np.float32))
    gated(step.recorder, gate_TC, up_TC, activation, 32, into_q8="q8")
    run(step, 1)
    np.testing.assert_allclose(gate_TC, max(value, 0.0), rtol=1e-6, atol=1e-30)
