"""Divergence is what its definition says."""

import numpy as np
import numpy.typing as npt
import pytest

from residency.verifier.divergence import TokenDivergences, divergence_of, token_divergences


def test_it_is_the_sum_of_p_log_p_over_q() -> None:
    reference, model = logits(1), logits(2)
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (wide(reference), wide(model)))
    expected = (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(token_divergences(reference, model).nats_T, expected, rtol=1e-9)


def test_a_model_does_not_diverge_from_itself() -> None:
    assert (token_divergences(logits(1), logits(1)).nats_T == 0).all()


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    assert token_divergences(logits(1), logits(1) + np.float32(8)).nats_T.max() < 1e-9


def test_logits_too_far_apart_for_an_exponential_diverge_finitely() -> None:
    found = token_divergences(np.array([[1e4, 0.0]], np.float32), np.array([[0.0, 1e4]], np.float32))
    assert found.nats_T == pytest.approx([1e4])


def test_models_agree_where_both_hold_the_same_token_for_the_likeliest() -> None:
    found = token_divergences(np.eye(2, dtype=np.float32), np.array([[3, 1], [3, 1]], np.float32))
    assert found.agrees_T.tolist() == [True, False]


def test_the_figures_are_those_of_all_tokens() -> None:
    nats = np.arange(1.0, 101.0)
    found = divergence_of(TokenDivergences(nats_T=nats, agrees_T=nats > 25))
    assert (found.mean, found.top1_agreement) == (50.5, 0.75)
    assert found.p99 == pytest.approx(99.01) and found.error == pytest.approx(nats.std(ddof=1) / 10)


def logits(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(scale=3, size=(7, 50)).astype(np.float32)


def wide(values: npt.NDArray[np.float32]) -> npt.NDArray[np.longdouble]:
    return values.astype(np.longdouble)
