"""Tokens that a device chooses are those of the definition, and of the sampler on the CPU."""

import numpy as np
import pytest
import torch

from residency.engine.sampler import Sampler, Sampling
from residency.kernels.device import on_device
from residency.kernels.sample.reference import draw
from support.device import Floats, tensor, values_of

VOCABULARY = 5000  # more than one block

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy's, of -inf - -inf in padding


def drawn(logits: Floats, words: list[tuple[float, ...]]) -> list[int]:
    out = torch.full((len(logits),), -1, dtype=torch.int64, device=tensor(logits).device)
    on_device("sample").draw(tensor(logits), tensor(np.array(words, np.float32)), out)
    return [int(token) for token in values_of(out)]


def random_logits(rows: int) -> Floats:
    return (np.random.default_rng().standard_normal((rows, VOCABULARY)) * 3).astype(np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 1 << 24, 1.0, 0.0),
        (0.7, 40, 1.0, 0.0),
        (1.3, 1 << 24, 0.8, 0.0),
        (1.0, 1 << 24, 1.0, 0.05),
        (0.9, 50, 0.9, 0.01),
    ],
)
def test_a_token_is_drawn_as_the_definition_draws_it(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(2)
    parts = np.random.default_rng().random(2).astype(np.float32)
    ours = drawn(logits, [(temperature, top_k, top_p, min_p, part) for part in parts])
    theirs = [
        draw(row, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, part=float(part))
        for row, part in zip(logits, parts, strict=True)
    ]
    assert ours == theirs


def test_a_temperature_of_zero_takes_the_first_of_the_likeliest() -> None:
    logits = random_logits(1)
    logits[0, [700, 4711]] = 99.0
    assert drawn(logits, [(0.0, 1 << 24, 1.0, 0.0, 0.0)]) == [700]


def test_one_seed_draws_on_a_device_what_it_draws_on_the_cpu() -> None:
    sampling = Sampling(temperature=0.8, top_k=60, top_p=0.95, min_p=0.01, seed=3)
    logits, draw_of = random_logits(1), Sampler(sampling).draw()
    assert drawn(logits, [draw_of.words]) == [Sampler(sampling).sample(logits[0], np.zeros(0, np.int64))]


def test_what_depends_on_earlier_tokens_is_not_left_to_the_device() -> None:
    assert Sampler(Sampling(temperature=0.5)).needs_logits_alone
    assert not Sampler(Sampling(repetition_penalty=1.1)).needs_logits_alone
    assert not Sampler(Sampling(logit_bias={3: 1.0})).needs_logits_alone
