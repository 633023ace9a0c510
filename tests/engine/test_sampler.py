"""Tokens are chosen as they were asked for."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from residency.engine.sampler import Sampler, Sampling, allowed_by, likeliest, log_probabilities
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
        ({"presence_penalty": 2.1}, "presence penalty"),
        ({"frequency_penalty": -2.1}, "frequency penalty"),
        ({"logit_bias": {3: 101.0}}, "logit bias"),
        ({"logit_bias": {3: float("nan")}}, "logit bias"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"the {name} must be"):
        Sampling(**changes)


def test_a_presence_penalty_makes_what_the_answer_has_less_likely_once() -> None:
    logits = np.array([1.0, 0.8], np.float32)
    assert drawn(Sampling(presence_penalty=0.3), logits, times=1, earlier=np.array([0])) == [1]
    assert drawn(Sampling(presence_penalty=0.1), logits, times=1, earlier=np.array([0, 0, 0])) == [0]


def test_a_frequency_penalty_counts_how_often_the_answer_has_a_token() -> None:
    logits = np.array([1.0, 0.8], np.float32)
    assert drawn(Sampling(frequency_penalty=0.1), logits, times=1, earlier=np.array([0, 0, 0])) == [1]


def test_what_only_the_prompt_has_is_repeated_but_neither_present_nor_frequent() -> None:
    logits, prompt = np.array([1.0, 0.9], np.float32), np.array([0])
    chosen = Sampler(Sampling(presence_penalty=2, frequency_penalty=2)).sample(logits, prompt, prompt_tokens=1)
    assert chosen == 0
    assert Sampler(Sampling(repetition_penalty=1.2)).sample(logits, prompt, prompt_tokens=1) == 1


def test_a_bias_is_added_to_a_token_s_logit() -> None:
    assert drawn(Sampling(logit_bias={4: 100}), times=1) == [4]
    assert drawn(Sampling(logit_bias={1: -100}), times=1) == [3]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=2, seed=1), Sampling(temperature=1, top_k=1)])
def test_only_what_is_allowed_is_chosen(sampling: Sampling) -> None:
    allowed = np.array([True, False, True, False, False])
    sampler = Sampler(sampling)
    assert {sampler.sample(LOGITS, NOTHING, allowed=allowed) for _ in range(50)} <= {0, 2}


def test_a_mask_s_bits_are_tokens_lowest_first() -> None:
    mask = np.array([0b101, -(2**31)], np.int32)
    assert np.flatnonzero(allowed_by(mask, 70)).tolist() == [0, 2, 63]


def test_answers_of_one_seed_differ_and_each_is_always_the_same() -> None:
    def answer(number: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=4), answer=number)
        return [sampler.sample(LOGITS, NOTHING) for _ in range(50)]

    assert answer(0) == drawn(Sampling(temperature=1, seed=4), times=50)
    assert answer(1) == answer(1) != answer(0)


def wide_logits(spread: float) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, spread, 50_000).astype(np.float32)


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.999])
def test_top_p_keeps_what_a_sort_of_the_whole_vocabulary_keeps(spread: float, top_p: float) -> None:
    logits = wide_logits(spread)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    count = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    kept = set(order[: int(count * 1.001) + 1].tolist())  # float32 sums may differ in the last few
    assert set(drawn(Sampling(temperature=1, top_p=top_p, seed=2), logits, times=100)) <= kept


@pytest.mark.parametrize("top_k", [1, 40, 700, 30_000])
def test_the_likeliest_are_those_that_a_sort_of_the_whole_vocabulary_finds(top_k: int) -> None:
    logits = wide_logits(1.0)
    assert likeliest(logits, top_k).tolist() == np.argsort(-logits, kind="stable")[:top_k].tolist()


def test_log_probabilities_are_those_of_the_softmax() -> None:
    logits = wide_logits(3.0)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    tokens = np.array([0, 7, 49_999])
    np.testing.assert_allclose(log_probabilities(logits, tokens), exact[tokens], rtol=1e-5)
