"""Requests share pages and steps, and get what they would get alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from residency.engine.generation import GenerationOptions
from residency.engine.loop import Loop
from residency.engine.sampler import Sampling
from residency.engine.swap import SwapSpace
from residency.planner.memory import PAGE_RECORD_BYTES
from residency.scheduler import Admission
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.loops import answers, events_until_idle, loop_on
from support.models import small_model
from support.real_models import real_model

PROMPT = list(range(40, 90))
PAGE_TOKENS = 16


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Gemma 3: every second layer sees the last 40 tokens."""
    path = tmp_path_factory.mktemp("models") / "windowed.gguf"
    return write_gguf(path, small_model("gemma3", window_tokens=40), "Q8_0")


@contextmanager
def loop_of(
    path: Path,
    *,
    max_sequences: int = 4,
    num_pages: int | None = None,
    admission: Admission = "optimistic",
    swap: SwapSpace | None = None,
) -> Iterator[Loop]:
    """Contexts of 256 tokens; `num_pages` for all sequences together in place of a whole context for each."""
    plan = plan_of(path, context_tokens=256, chunk_tokens=32, max_sequences=max_sequences)
    if num_pages is not None:
        page_bytes = sum(group.page_bytes * len(group.layers) + PAGE_RECORD_BYTES for group in plan.kv_groups)
        budget_bytes = plan.memory.peak - plan.memory.kv_cache + num_pages * page_bytes
        plan = plan_of(
            path,
            context_tokens=256,
            chunk_tokens=32,
            max_sequences=max_sequences,
            oversubscribe=True,
            budget_bytes=budget_bytes,
        )
    with loop_on(path, plan, admission=admission, swap=swap) as loop:
        yield loop


def options(max_tokens: int = 12, **more: object) -> GenerationOptions:
    return GenerationOptions(max_tokens=max_tokens, **more)  # type: ignore[arg-type]


def one_answer(loop: Loop, prompt: list[int], asked: GenerationOptions) -> list[int | None]:
    request_id = loop.submit(prompt, asked)
    (answer,) = answers(events_until_idle(loop), request_id)
    return answer


def random_prompts(count: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    lengths = [200, 1, 17, *random.integers(1, 120, count - 3).tolist()]
    return [random.integers(0, 300, length).tolist() for length in lengths]


def tokens_together_and_alone(loop: Loop, prompts: list[list[int]], asked: GenerationOptions) -> tuple[object, object]:
    """The tokens of all prompts at one time, and of the first few one after the other."""
    requests = [loop.submit(prompt, asked) for prompt in prompts]
    events = events_until_idle(loop)
    together = [answers(events, request)[0] for request in requests]
    alone = [one_answer(loop, prompt, asked) for prompt in prompts[:6]]
    return together[:6], alone


def test_greedy_tokens_are_the_same_alone_and_among_31_others(path: Path) -> None:
    with loop_of(path, max_sequences=32) as loop:
        together, alone = tokens_together_and_alone(loop, random_prompts(32), options(40, use_prefix_cache=False))
    assert together == alone


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_greedy_tokens_of_a_real_model_are_the_same_alone_and_among_31_others(name: str) -> None:
    with loop_of(real_model(name), max_sequences=32) as loop:
        together, alone = tokens_together_and_alone(loop, random_prompts(32), options(24, use_prefix_cache=False))
    assert together == alone


@pytest.mark.parametrize("admission", ["optimistic", "guaranteed"])
def test_few_pages_change_no_token(path: Path, admission: Admission) -> None:
    prompts = random_prompts(8)
    with loop_of(path, max_sequences=8) as loop:
        alone = [one_answer(loop, prompt, options(30)) for prompt in prompts]
    with loop_of(path, max_sequences=8, num_pages=20, admission=admission) as loop:
        requests = [loop.submit(prompt, options(30)) for prompt in prompts]
        events = events_until_idle(loop)
        assert (loop.counts().preemptions > 0) == (admission == "optimistic")
    assert [answers(events, request)[0] for request in requests] == alone


@pytest.mark.parametrize("model", ["path", "windowed"])
def test_what_waited_in_a_file_changes_no_token(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = request.getfixturevalue(model)
    prompts = random_prompts(8)
    with loop_of(path, max_sequences=8) as loop:
        alone = [one_answer(loop, prompt, options(30)) for prompt in prompts]
    swap = SwapSpace(folder=tmp_path, num_bytes=64 << 20, bytes_per_second=1e12)
    with loop_of(path, max_sequences=8, num_pages=20, swap=swap) as loop:
        requests = [loop.submit(prompt, options(30)) for prompt in prompts]
        events = events_until_idle(loop)
        assert loop.counts().swapped_pages > 0
    assert [answers(events, each)[0] for each in requests] == alone


@pytest.mark.parametrize("model", ["path", "windowed"])
def test_a_prompt_that_is_known_is_answered_alike_and_hardly_computed(
    model: str, request: pytest.FixtureRequest
) -> None:
    with loop_of(request.getfixturevalue(model)) as loop:
        first = one_answer(loop, PROMPT, options())
        computed_tokens = loop.counts().computed_tokens
        again = loop.submit(PROMPT, options())
        events = events_until_idle(loop)
        computed_tokens = loop.counts().computed_tokens - computed_tokens
    assert answers(events, again) == [first]
    assert events[0].cached_tokens == 3 * PAGE_TOKENS
    assert computed_tokens == len(PROMPT) - 3 * PAGE_TOKENS + len(first) - 1


@pytest.mark.parametrize("model", ["path", "windowed"])
def test_a_prompt_that_goes_on_differently_shares_what_is_equal(model: str, request: pytest.FixtureRequest) -> None:
    other = PROMPT[:40] + [7] * 60
    with loop_of(request.getfixturevalue(model)) as loop:
        expected = one_answer(loop, other, options(use_prefix_cache=False))
        one_answer(loop, PROMPT, options())
        shared = loop.submit(other, options())
        events = events_until_idle(loop)
    assert (answers(events, shared), events[0].cached_tokens) == ([expected], 2 * PAGE_TOKENS)


def test_prompts_that_come_together_compute_what_they_share_once(path: Path) -> None:
    prompts = [PROMPT[:48] + [token] for token in range(4)]
    with loop_of(path) as loop:
        for prompt in prompts:
            loop.submit(prompt, options(1))
        events_until_idle(loop)
        assert loop.counts().computed_tokens == 48 + len(prompts)


@pytest.mark.parametrize("asked", [options(cache_salt="another"), options(use_prefix_cache=False)])
def test_nothing_is_shared_across_salts_or_by_those_that_do_not_want_it(path: Path, asked: GenerationOptions) -> None:
    with loop_of(path) as loop:
        one_answer(loop, PROMPT, options())
        loop.submit(PROMPT, asked)
        assert {event.cached_tokens for event in events_until_idle(loop)} == {0}


def test_cached_pages_make_room_for_others(path: Path) -> None:
    with loop_of(path, num_pages=20) as loop:
        one_answer(loop, PROMPT, options())
        assert loop.counts().cached_pages > 0
        for start in range(0, 160, 40):
            one_answer(loop, list(range(start, start + 150)), options(60))
        assert one_answer(loop, PROMPT, options()) == one_answer(loop, PROMPT, options(use_prefix_cache=False))


def test_answers_to_one_prompt_compute_it_once(path: Path) -> None:
    with loop_of(path) as loop:
        loop.submit(PROMPT, options(1, num_answers=4))
        assert len(events_until_idle(loop)) == 4
        assert loop.counts().computed_tokens == len(PROMPT)


@pytest.mark.parametrize("use_prefix_cache", [True, False])
def test_greedy_answers_to_one_prompt_are_all_what_one_is(path: Path, use_prefix_cache: bool) -> None:
    """Each writes to the last page of the prompt, which they share: a page that was not copied would show."""
    with loop_of(path) as loop:
        alone = one_answer(loop, PROMPT, options(use_prefix_cache=use_prefix_cache))
        request_id = loop.submit(PROMPT, options(num_answers=3, use_prefix_cache=use_prefix_cache))
        assert answers(events_until_idle(loop), request_id) == [alone] * 3


def test_seeded_answers_differ_and_the_first_is_what_it_is_alone(path: Path) -> None:
    sampling = Sampling(temperature=1.0, seed=5)
    with loop_of(path) as loop:
        alone = one_answer(loop, PROMPT, options(sampling=sampling))
        request_id = loop.submit(PROMPT, options(sampling=sampling, num_answers=3))
        found = answers(events_until_idle(loop), request_id)
    assert found[0] == alone
    assert len({tuple(answer) for answer in found}) == 3


def test_cancelling_a_request_ends_all_its_answers(path: Path) -> None:
    with loop_of(path) as loop:
        request_id = loop.submit(PROMPT, options(100, num_answers=3))
        for _ in range(5):
            loop.step()
        loop.cancel(request_id)
        assert not loop.has_work
        assert loop.counts().used_pages == 0


def test_a_logit_mask_allows_only_what_it_says(path: Path) -> None:
    def only(tokens: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        mask = np.zeros(10, np.int32)
        mask[2] = 1 << len(tokens)
        return mask

    with loop_of(path) as loop:
        assert one_answer(loop, PROMPT, options(3, logit_mask=only)) == [64, 65, 66]


def test_a_logit_mask_that_fails_ends_its_own_answer_alone(path: Path) -> None:
    def failing(tokens: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        raise ValueError("no such rule")

    with loop_of(path) as loop:
        failed, other = loop.submit(PROMPT, options(logit_mask=failing)), loop.submit(PROMPT, options())
        events = events_until_idle(loop)
    (end,) = [event for event in events if event.request_id == failed]
    assert (end.token, end.finish_reason, end.error) == (None, "error", "the logit mask failed: no such rule")
    assert len(answers(events, other)[0]) == 12


def test_a_logit_mask_that_allows_nothing_is_an_error(path: Path) -> None:
    with loop_of(path) as loop:
        loop.submit(PROMPT, options(logit_mask=lambda tokens: np.zeros(10, np.int32)))
        (event,) = events_until_idle(loop)
    assert (event.finish_reason, event.error) == ("error", "the logit mask allows no token.")


def test_log_probabilities_come_with_the_likeliest_tokens_and_theirs(path: Path) -> None:
    with loop_of(path) as loop:
        loop.submit(PROMPT, options(4, logprobs=3))
        for event in events_until_idle(loop):
            assert (event.top_logprobs[0].token, event.top_logprobs[0].logprob) == (event.token, event.logprob)
            assert [each.logprob for each in event.top_logprobs] == sorted(
                (each.logprob for each in event.top_logprobs), reverse=True
            )
            assert len(event.top_logprobs) == 3


def test_log_probabilities_of_all_tokens_add_up_to_one(path: Path) -> None:
    with loop_of(path) as loop:
        loop.submit(PROMPT, options(1, logprobs=20, sampling=Sampling(logit_bias={5: 100.0})))
        (event,) = events_until_idle(loop)
    assert event.token == 5
    assert event.logprob is not None
    assert event.logprob < event.top_logprobs[0].logprob < 0
