"""Perplexity is what its definition says, and the engine's is a plain forward pass's."""

import math

import numpy as np
import pytest

from residency.engine.planning import plan_rows
from residency.engine.text import Tokenizer, load_tokenizer
from residency.errors import UsageError
from residency.models.specs import model_spec
from residency.spec.checkpoint import Checkpoint
from residency.spec.opening import open_checkpoint
from residency.verifier.perplexity import (
    CHUNK_TOKENS,
    STEP_TOKENS,
    chunks_of,
    measure_perplexity,
    perplexity_of,
    token_losses,
)
from support.gguf_files import write_gguf
from support.machines import unmeasured_machine
from support.models import small_model
from support.plain import plain_logits

TEXT = "The other one in the garden, then the thin one. " * 60


def test_a_uniform_guess_has_the_vocabulary_as_perplexity() -> None:
    losses = token_losses(np.zeros((5, 320), np.float32), np.arange(5))
    assert perplexity_of(losses, chunks=1).value == pytest.approx(320)


def test_losses_are_negative_log_likelihoods() -> None:
    logits = np.random.default_rng(1).normal(scale=20, size=(7, 50)).astype(np.float32)
    targets = np.arange(7)
    wide = logits.astype(np.longdouble)
    expected = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(7), targets]
    np.testing.assert_allclose(token_losses(logits, targets), expected.astype(np.float64), rtol=1e-12)


def test_logits_too_large_for_an_exponential_have_losses() -> None:
    assert token_losses(np.array([[3e38, 0.0]], np.float32), np.array([0])) == [0.0]


def test_the_error_is_the_standard_error_of_the_mean_times_the_value() -> None:
    measured = perplexity_of(np.array([1.0, 3.0]), chunks=1)
    assert measured.error == pytest.approx(math.exp(2.0) * math.sqrt(2.0) / math.sqrt(2))


def test_chunks_are_consecutive(tokenizer: Tokenizer) -> None:
    first, second = chunks_of(tokenizer, TEXT, 2)
    assert [*first, *second] == tokenizer.encode(TEXT, add_special=True)[: 2 * CHUNK_TOKENS]


def test_an_incomplete_chunk_is_left_out(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(TEXT, add_special=True)
    assert len(chunks_of(tokenizer, TEXT, None)) == len(tokens) // CHUNK_TOKENS


def test_a_text_without_a_whole_chunk_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="too few for one chunk"):
        chunks_of(tokenizer, "short", None)


def test_the_engines_perplexity_is_that_of_a_plain_forward_pass(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    (tokens,) = chunks_of(tokenizer, TEXT, 1)
    half = CHUNK_TOKENS // 2
    logits = plain_logits(model_spec(checkpoint), [int(token) for token in tokens])
    expected = perplexity_of(token_losses(logits[half:-1].astype(np.float32), tokens[half + 1 :]), chunks=1)
    plan = plan_rows(
        checkpoint.path,
        memory="300MiB",
        context=CHUNK_TOKENS,
        machine=unmeasured_machine(),
        kv_format="F16",
        chunk_tokens=STEP_TOKENS,
        logit_rows=STEP_TOKENS,
    )
    assert measure_perplexity(plan, TEXT, max_chunks=1).value == pytest.approx(expected.value, rel=1e-3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("llama")))


@pytest.fixture
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return load_tokenizer(checkpoint)
