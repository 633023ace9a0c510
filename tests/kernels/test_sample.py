"""The likeliest tokens of a step are those of the definition."""

import numpy as np
import numpy.typing as npt
import pytest

from residency.kernels.sample import likeliest, reference
from support.steps import Runner, Step

Floats = npt.NDArray[np.float32]
PARTS = 16


def found(run: Runner, logits_RV: Floats, *, vocabulary: int | None = None, threads: int = 2) -> list[int]:
    rows = len(logits_RV)
    step = Step(num_tokens=rows, logit_rows=list(range(rows)))
    step.buffers["largest_logits"] = step.poisoned(rows, PARTS)
    step.buffers["likeliest_tokens"] = step.given(np.full((rows, PARTS), -1, np.int32))
    chosen = likeliest(step.recorder, step.given(logits_RV), vocabulary or logits_RV.shape[1])
    run(step, threads)
    return chosen.of_rows(rows)


def random(*shape: int) -> Floats:
    return np.random.default_rng().standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocabulary", [5, 300, 4096, 10_007])
@pytest.mark.parametrize("rows", [1, 2, 16])
def test_the_likeliest_token_is_that_of_the_definition(run: Runner, rows: int, vocabulary: int, threads: int) -> None:
    logits_RV = random(rows, vocabulary)
    assert found(run, logits_RV, threads=threads) == reference.likeliest(logits_RV)


@pytest.mark.parametrize("token", [0, 15, 16, 255, 256, 4095, 4096, 5119, 5120, 5132])
def test_it_is_found_wherever_it_is(run: Runner, token: int) -> None:
    logits_RV = random(1, 5133)
    logits_RV[0, token] = 100.0
    assert found(run, logits_RV) == [token]


def test_of_equals_it_is_the_first(run: Runner) -> None:
    logits_RV = np.round(random(16, 9000))
    assert found(run, logits_RV) == reference.likeliest(logits_RV)


def test_what_rows_have_beyond_the_vocabulary_is_never_chosen(run: Runner) -> None:
    logits_RV = random(2, 1024)
    logits_RV[:, 1000:] = 100.0
    assert found(run, logits_RV, vocabulary=1000) == reference.likeliest(logits_RV[:, :1000])


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_rows_without_a_largest_logit_give_a_token_of_the_vocabulary(run: Runner, value: float) -> None:
    (token,) = found(run, np.full((1, 1000), value, np.float32))
    assert 0 <= token < 1000
