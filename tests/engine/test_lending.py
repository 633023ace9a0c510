"""Pages and weights share memory while requests come and go, and answers are as they always were."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from residency.engine.engine import Engine
from residency.engine.generation import GenerationOptions
from residency.engine.loop import Loop
from residency.engine.sampler import Sampling
from residency.ledger import MemoryClass
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.models import small_model
from support.streams import streaming_plan

OPTIONS = {"context_tokens": 512, "max_sequences": 4, "chunk_tokens": 32}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("qwen3", num_layers=6), "Q8_0")


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with Engine.open(streaming_plan(path, resident_part=0.1, **OPTIONS)) as opened:
        yield opened


def wave(loop: Loop, *, prompt_tokens: int, answer_tokens: int) -> list[int]:
    """Four requests from begin to end; their tokens."""
    submit(loop, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
    return list(steps(loop))


def submit(loop: Loop, *, prompt_tokens: int, answer_tokens: int, use_prefix_cache: bool = False) -> None:
    options = GenerationOptions(
        max_tokens=answer_tokens,
        ignore_eos=True,
        use_prefix_cache=use_prefix_cache,
        sampling=Sampling(temperature=1.0, seed=1),
    )
    for number in range(4):
        loop.submit([7 + number] * prompt_tokens, options)


def steps(loop: Loop) -> Iterator[int]:
    while loop.has_work:
        yield from (event.token for event in loop.step() if event.token is not None)


def resident(engine: Engine) -> int:
    return engine.ledger.owners(MemoryClass.WEIGHTS)["resident spans"]


def test_short_answers_leave_their_pages_memory_to_weights(engine: Engine) -> None:
    planned = resident(engine)
    wave(engine.new_loop(), prompt_tokens=8, answer_tokens=60)
    assert resident(engine) > planned


def test_long_answers_call_it_back(engine: Engine) -> None:
    loop = engine.new_loop()
    wave(loop, prompt_tokens=8, answer_tokens=60)
    lent = resident(engine)
    submit(loop, prompt_tokens=250, answer_tokens=250)
    assert min(resident(engine) for _ in steps(loop)) < lent


def test_prefixes_that_nobody_uses_any_more_leave_their_memory_to_weights(engine: Engine) -> None:
    loop = engine.new_loop()
    submit(loop, prompt_tokens=400, answer_tokens=5, use_prefix_cache=True)
    list(steps(loop))
    kept, beside = loop.counts().cached_pages, resident(engine)
    wave(loop, prompt_tokens=8, answer_tokens=200)
    assert kept > loop.counts().cached_pages
    assert resident(engine) > beside


def test_answers_are_those_of_weights_in_memory(path: Path, engine: Engine) -> None:
    with Engine.open(plan_of(path, **OPTIONS)) as whole:  # type: ignore[arg-type]
        loops = [each.new_loop() for each in (whole, engine)]
        for extents in ({"prompt_tokens": 8, "answer_tokens": 60}, {"prompt_tokens": 200, "answer_tokens": 200}):
            expected, given = (wave(loop, **extents) for loop in loops)
            assert given == expected


def test_pages_and_weights_together_never_hold_more_than_the_plan_gives_both(engine: Engine) -> None:
    loop, plan = engine.new_loop(), engine.plan
    for extents in ({"prompt_tokens": 8, "answer_tokens": 60}, {"prompt_tokens": 250, "answer_tokens": 250}):
        wave(loop, **extents)
        memory = engine.measured_memory(loop)
        assert memory.weights <= plan.memory.weights + plan.memory.kv_cache
        assert engine.ledger.total_peak_bytes <= plan.budget_bytes
