"""Requests beside each other get what they would get alone, and leave nothing behind."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from residency.engine.generation import GenerationOptions
from residency.engine.loop import Loop
from residency.engine.sampler import Sampling
from residency.errors import ContextError
from residency.models.specs import model_spec
from residency.spec import open_checkpoint
from residency.spec.layout import read_bytes_per_token
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.loops import NOBODY, loop_on
from support.models import small_model

GREEDY = Sampling()


def options(max_tokens: int, sampling: Sampling = GREEDY) -> GenerationOptions:
    return GenerationOptions(max_tokens=max_tokens, sampling=sampling)


PROMPTS = ([7] * 3, list(range(60)), [9, 8, 7], list(range(100, 145)))


@contextmanager
def loop_of(path: Path, max_sequences: int = 1, eos_ids: frozenset[int] = NOBODY) -> Iterator[Loop]:
    plan = plan_of(path, context_tokens=96, chunk_tokens=32, max_sequences=max_sequences)
    with loop_on(path, plan, eos_ids=eos_ids) as loop:
        yield loop


def finished(loop: Loop, requests: Sequence[int]) -> list[list[int]]:
    """The tokens of each request, once all have ended."""
    tokens: dict[int, list[int]] = {request: [] for request in requests}
    while loop.has_work:
        for sampled in loop.step():
            assert sampled.token is not None
            tokens[sampled.request_id].append(sampled.token)
    return [tokens[request] for request in requests]


def alone(path: Path, sampling: Sampling, max_tokens: int = 24) -> list[list[int]]:
    answers = []
    for prompt in PROMPTS:
        with loop_of(path) as loop:
            answers += finished(loop, [loop.submit(prompt, options(max_tokens, sampling))])
    return answers


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, top_k=50, seed=11)], ids=["greedy", "seeded"])
@pytest.mark.parametrize("max_sequences", [1, 2, 4])
def test_a_request_gets_the_same_tokens_alone_and_beside_others(
    path: Path, max_sequences: int, sampling: Sampling
) -> None:
    with loop_of(path, max_sequences) as loop:
        together = finished(loop, [loop.submit(prompt, options(24, sampling)) for prompt in PROMPTS])
    assert together == alone(path, sampling)


def test_a_request_ends_after_the_tokens_that_it_wanted(path: Path) -> None:
    with loop_of(path) as loop:
        assert [len(tokens) for tokens in finished(loop, [loop.submit([1, 2], options(9))])] == [9]


def test_a_request_ends_with_an_end_of_text_token(path: Path) -> None:
    with loop_of(path) as loop:
        (tokens,) = finished(loop, [loop.submit([1, 2], options(20))])
    with loop_of(path, eos_ids=frozenset({tokens[4]})) as loop:
        (until_eos,) = finished(loop, [loop.submit([1, 2], options(20))])
    assert until_eos == tokens[: tokens.index(tokens[4]) + 1]


def test_the_last_token_is_marked(path: Path) -> None:
    with loop_of(path) as loop:
        loop.submit([1, 2], options(3))
        marks = [sampled.is_last for _ in range(3) for sampled in loop.step()]
    assert marks == [False, False, True]


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_cancelled_request_gives_its_pages_to_the_next(path: Path, steps: int) -> None:
    """There are pages for one request of the whole context: only once they are free can another have them."""
    with loop_of(path) as loop:
        cancelled = loop.submit(list(range(60)), options(36))
        for _ in range(steps):
            loop.step()
        loop.cancel(cancelled)
        (tokens,) = finished(loop, [loop.submit(list(range(60)), options(36))])
    assert len(tokens) == 36


def test_cancelling_one_request_changes_no_token_of_another(path: Path) -> None:
    with loop_of(path, 2) as loop:
        cancelled, kept = loop.submit([4] * 40, options(30)), loop.submit(PROMPTS[0], options(24))
        tokens = [sampled.token for _ in range(6) for sampled in loop.step() if sampled.request_id == kept]
        loop.cancel(cancelled)
        (rest,) = finished(loop, [kept])
    assert tokens + rest == alone(path, GREEDY)[0]


def test_cancelling_a_request_that_has_ended_does_nothing(path: Path) -> None:
    with loop_of(path) as loop:
        request = loop.submit([1, 2], options(2))
        finished(loop, [request])
        loop.cancel(request)
        assert not loop.has_work


def test_a_request_longer_than_the_context_is_refused(path: Path) -> None:
    with loop_of(path) as loop, pytest.raises(ContextError, match="4 over the context of 96"):
        loop.submit(list(range(60)), options(40))


def test_a_refused_request_leaves_no_work(path: Path) -> None:
    with loop_of(path) as loop:
        with pytest.raises(ContextError):
            loop.submit(list(range(60)), options(40))
        assert not loop.has_work


def test_a_step_of_one_token_reads_the_weights_and_its_keys_and_values(path: Path) -> None:
    spec = model_spec(open_checkpoint(path))
    with loop_of(path) as loop:
        loop.submit([1], options(1))
        loop.step()
        token_bytes = sum(layer.state().bytes_per_token for layer in spec.layers)
        assert loop.read_bytes == read_bytes_per_token(spec) + token_bytes


def test_of_a_mixture_a_token_s_step_reads_the_experts_that_it_is_sent_to(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "mixture.gguf", small_model("mixtral"), "Q4_K")
    spec = model_spec(open_checkpoint(path))
    with loop_of(path) as loop:
        loop.submit([1], options(1))
        loop.step()
        token_bytes = sum(layer.state().bytes_per_token for layer in spec.layers)
        assert loop.read_bytes == read_bytes_per_token(spec) + token_bytes
