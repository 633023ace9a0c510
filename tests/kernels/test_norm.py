"""RMS norms are those of the definition."""

import numpy as np
import numpy.typing as npt
import pytest

from residency.kernels.norm import reference, rms_norm, rms_norm_add
from support.steps import Runner, Step, codes_of, packed_groups, words_of

Floats = npt.NDArray[np.float32]
EPSILON = 1e-5


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def step_of(tokens: int, columns: int, logit_rows: list[int] | None = None) -> Step:
    step = Step(num_tokens=tokens, logit_rows=logit_rows or [])
    step.buffers["normed"] = step.poisoned(tokens, columns)
    step.buffers["normed_q8"] = step.poisoned_groups(tokens, columns)
    return step


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("columns", [32, 256, 576])
@pytest.mark.parametrize("tokens", [1, 2, 3, 7])
def test_a_norm_is_that_of_the_definition(run: Runner, tokens: int, columns: int, threads: int) -> None:
    step, x_TC, weight_C = step_of(tokens, columns), random(tokens, columns), random(columns)
    rows = rms_norm(step.recorder, step.given(x_TC), step.given(weight_C), EPSILON, into="normed")
    out_TC = rows.as_values()
    run(step, threads)
    np.testing.assert_allclose(out_TC, reference.rms_norm(x_TC, weight_C, EPSILON), rtol=5e-7)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 3, 7])
def test_its_quantized_twin_has_the_codes_of_its_values(run: Runner, tokens: int, threads: int) -> None:
    step = step_of(tokens, 256)
    rows = rms_norm(step.recorder, step.given(random(tokens, 256)), step.given(random(256)), EPSILON, into="normed")
    out_TC, q8_TB = rows.as_values(), rows.as_q8()
    run(step, threads)
    np.testing.assert_array_equal(codes_of(q8_TB), codes_of(packed_groups(out_TC)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 3, 7])
def test_its_quantized_twin_has_the_scales_and_sums_of_its_values(run: Runner, tokens: int, threads: int) -> None:
    step = step_of(tokens, 256)
    rows = rms_norm(step.recorder, step.given(random(tokens, 256)), step.given(random(256)), EPSILON, into="normed")
    out_TC, q8_TB = rows.as_values(), rows.as_q8()
    run(step, threads)
    np.testing.assert_allclose(words_of(q8_TB), words_of(packed_groups(out_TC)), rtol=2e-7)


def test_values_that_nobody_reads_are_not_written(run: Runner) -> None:
    step = step_of(3, 64)
    rms_norm(step.recorder, step.given(random(3, 64)), step.given(random(64)), EPSILON, into="normed").as_q8()
    run(step, 2)
    assert np.isnan(step.buffers["normed"]).all()


def test_a_quantized_twin_that_nobody_reads_is_not_written(run: Runner) -> None:
    step = step_of(3, 64)
    rms_norm(step.recorder, step.given(random(3, 64)), step.given(random(64)), EPSILON, into="normed").as_values()
    run(step, 2)
    assert (step.buffers["normed_q8"] == 0xFF).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("logit_rows", [[4], [0, 4], [1, 2, 4]])
def test_rows_of_logits_are_normed_in_their_order(run: Runner, logit_rows: list[int], threads: int) -> None:
    step, x_TC, weight_C = step_of(5, 96, logit_rows), random(5, 96), random(96)
    given = step.given(x_TC), step.given(weight_C)
    out_TC = rms_norm(step.recorder, *given, EPSILON, into="normed", of_logits=True).as_values()
    run(step, threads)
    expected = reference.rms_norm(x_TC[logit_rows], weight_C, EPSILON)
    np.testing.assert_allclose(out_TC[: len(logit_rows)], expected, rtol=5e-7)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_a_norm_can_be_added_to_the_residual(run: Runner, tokens: int, threads: int) -> None:
    step, x_TC, weight_C, before_TC = (
        Step(num_tokens=tokens),
        random(tokens, 96),
        random(96),
        random(tokens, 96, seed=1),
    )
    residual_TC = step.given(before_TC)
    rms_norm_add(step.recorder, step.given(x_TC), step.given(weight_C), EPSILON, residual_TC)
    run(step, threads)
    expected = reference.rms_norm_add(x_TC, weight_C, EPSILON, before_TC)
    np.testing.assert_allclose(residual_TC, expected, rtol=5e-7, atol=5e-7)


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-38, 1e-30])
def test_rows_of_next_to_nothing_have_a_quantized_twin_of_next_to_nothing(run: Runner, size: float) -> None:
    step = step_of(1, 64)
    x_TC = np.full((1, 64), size, np.float32)
    rows = rms_norm(step.recorder, step.given(x_TC), step.given(np.ones(64, np.float32)), 1.0, into="normed")
    q8_TB = rows.as_q8()
    run(step, 1)
    assert (np.abs(words_of(q8_TB)) <= 32 * size).all()
