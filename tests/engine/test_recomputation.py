"""An answer that lost its pages and is computed again is the answer that it would have been."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from residency.engine.generation import GenerationOptions, TokenEvent
from residency.engine.loop import Loop
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.loops import events_until_idle, loop_on
from support.models import small_model

OPTIONS = GenerationOptions(max_tokens=100, ignore_eos=True, use_prefix_cache=False, logprobs=0)
PROMPTS = [np.random.default_rng(seed).integers(0, 256, 260 + 30 * seed).tolist() for seed in range(6)]


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """Six sequences with pages for two, whose contexts are long enough to be summed in parts."""
    path = write_gguf(tmp_path_factory.mktemp("models") / "long.gguf", small_model("qwen3", context_tokens=640), "Q8_0")
    whole = plan_of(path, context_tokens=640, max_sequences=6).memory
    budget_bytes = whole.peak - whole.kv_cache * 2 // 3
    plan = plan_of(path, context_tokens=640, max_sequences=6, oversubscribe=True, budget_bytes=budget_bytes)
    with loop_on(path, plan) as opened:
        yield opened


def test_answers_that_were_computed_again_are_those_of_requests_alone_to_the_last_bit(loop: Loop) -> None:
    alone = []
    for prompt in PROMPTS:
        request_id = loop.submit(prompt, OPTIONS)
        alone.append(probabilities(events_until_idle(loop), request_id))
    request_ids = [loop.submit(prompt, OPTIONS) for prompt in PROMPTS]
    events = events_until_idle(loop)
    assert loop.counts().preemptions > 0
    assert [probabilities(events, request_id) for request_id in request_ids] == alone


def probabilities(events: Sequence[TokenEvent], request_id: int) -> list[float | None]:
    """Of a request's tokens: they differ sooner than the tokens do."""
    return [event.logprob for event in events if event.request_id == request_id]
