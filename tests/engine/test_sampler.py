"""Tokens are chosen as they were asked for."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from residency.engine.sampler import Sampler, Sampling
from residency.errors import UsageError

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))  # likeliest first: 1, 3, 4, 2, 0
NOTHING = np.zeros(0, np.int64)


def drawn(
    sampling: Sampling, logits: npt.NDArray[np.float32] = LOGITS, times: int = 400, earlier: npt.NDArray[Any] = NOTHING
) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.sample(logits, earlier) for _ in range(times)]


def frequencies(sampling: Sampling) -> npt.NDArray[np.float64]:
    """How often each token came in 20000 draws."""
    return np.bincount(drawn(sampling, times=20000), minlength=5) / 20000


def test_without_temperature_the_likeliest_token_is_taken() -> None:
    assert set(drawn(Sampling())) == {1}


def test_of_equally_likely_tokens_the_first_is_taken() -> None:
    assert drawn(Sampling(), np.zeros(4, np.float32), times=1) == [0]


def test_at_temperature_one_tokens_come_as_often_as_they_are_likely() -> None:
    np.testing.assert_allclose(frequencies(Sampling(temperature=1, seed=1)), np.exp(LOGITS), atol=0.012)


def test_temperature_divides_the_logits() -> None:
    expected = np.exp(LOGITS) ** 2 / (np.exp(LOGITS) ** 2).sum()
    np.testing.assert_allclose(frequencies(Sampling(temperature=0.5, seed=1)), expected, atol=0.012)


@pytest.mark.parametrize(("top_k", "tokens"), [(1, {1}), (2, {1, 3}), (4, {1, 2, 3, 4}), (9, {0, 1, 2, 3, 4})])
def test_top_k_keeps_the_k_likeliest(top_k: int, tokens: set[int]) -> None:
    assert set(drawn(Sampling(temperature=1, top_k=top_k, seed=2))) == tokens


@pytest.mark.parametrize(("top_p", "tokens"), [(0.3, {1}), (0.5, {1, 3}), (0.8, {1, 3, 4}), (1.0, {0, 1, 2, 3, 4})])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, tokens: set[int]) -> None:
    assert set(drawn(Sampling(temperature=1, top_p=top_p, seed=2))) == tokens


@pytest.mark.parametrize(("min_p", "tokens"), [(0.9, {1}), (0.6, {1, 3}), (0.2, {1, 2, 3, 4}), (0.0, {0, 1, 2, 3, 4})])
def test_min_p_keeps_those_with_that_part_of_the_largest_probability(min_p: float, tokens: set[int]) -> None:
    assert set(drawn(Sampling(temperature=1, min_p=min_p, seed=2))) == tokens


def test_what_filters_keep_comes_as_often_as_before() -> None:
    expected = np.array([0, 0.4, 0, 0.25, 0]) / 0.65
    np.testing.assert_allclose(frequencies(Sampling(temperature=1, top_k=2, seed=3)), expected, atol=0.012)


def test_top_p_counts_after_top_k() -> None:
    """Of the two likeliest the first has 0.4 / 0.65 of the probability, enough alone."""
    assert set(drawn(Sampling(temperature=1, top_k=2, top_p=0.6, seed=3))) == {1}


def test_a_repetition_penalty_makes_what_occurred_less_likely() -> None:
    logits = np.array([1.0, 0.9, -5.0], np.float32)
    assert drawn(Sampling(repetition_penalty=1.2), logits, times=1, earlier=np.array([0])) == [1]


def test_a_repetition_penalty_also_lowers_negative_logits() -> None:
    logits = np.array([-1.0, -1.1], np.float32)
    assert drawn(Sampling(repetition_penalty=1.2), logits, times=1, earlier=np.array([0])) == [1]


def test_a_token_is_penalised_once_however_often_it_occurred() -> None:
    logits = np.array([1.0, 0.8], np.float32)
    assert drawn(Sampling(repetition_penalty=1.2), logits, times=1, earlier=np.array([0, 0, 0])) == [0]


def test_logits_stay_as_they_are() -> None:
    logits = LOGITS.copy()
    drawn(Sampling(temperature=1, top_k=2, repetition_penalty=2, seed=0), logits, earlier=np.array([1]))
    np.testing.assert_array_equal(logits, LOGITS)


def test_equal_seeds_give_equal_tokens() -> None:
    assert drawn(Sampling(temperature=1, seed=7)) == drawn(Sampling(temperature=1, seed=7))


def test_other_seeds_give_other_tokens() -> None:
    assert drawn(Sampling(temperature=1, seed=7)) != drawn(Sampling(temperature=1, seed=8))


def test_without_a_seed_tokens_differ_each_time() -> None:
    assert drawn(Sampling(temperature=1)) != drawn(Sampling(temperature=1))


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_extreme_temperatures_give_a_token(temperature: float) -> None:
    assert drawn(Sampling(temperature=temperature, seed=0), times=1)[0] in range(5)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.1}, "top-p"),
        ({"min_p": -0.1}, "min-p"),
        ({"min_p": 1.5}, "min-p"),
        ({"repetition_penalty": 0.0}, "repetition penalty"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"the {name} must be"):
        Sampling(**changes)
