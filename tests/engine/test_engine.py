"""A plan in, text and measurements out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from residency.engine.engine import Engine
from residency.engine.sampler import Sampling
from residency.errors import ContextError, FileError, UsageError
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.models import small_model

RANDOM = Sampling(temperature=1.0, seed=3)

PEAK_OF_A_RUN = """
import sys
from pathlib import Path
from residency.engine.engine import Engine
from residency.planner import Plan
plan = Plan.from_json(Path(sys.argv[1]).read_text())
with Engine.open(plan) as engine:
    report = engine.generate(list(range(100)) * 3, max_tokens=100)
print(report.memory.peak)
"""


def test_the_pieces_of_a_stream_join_to_the_text(engine: Engine) -> None:
    stream = engine.stream("hello", max_tokens=60, sampling=RANDOM)
    assert "".join(stream) == stream.report.text


def test_a_stream_gives_no_empty_piece(engine: Engine) -> None:
    assert all(engine.stream("hello", max_tokens=60, sampling=RANDOM))


def test_equal_seeds_give_equal_texts(engine: Engine) -> None:
    texts = [engine.generate("hello", max_tokens=40, sampling=RANDOM).text for _ in range(2)]
    assert texts[0] == texts[1]


def test_other_seeds_give_other_texts(engine: Engine) -> None:
    seeds = (Sampling(temperature=1.0, seed=seed) for seed in (1, 2))
    first, second = (engine.generate("hello", max_tokens=40, sampling=sampling).text for sampling in seeds)
    assert first != second


def test_without_temperature_the_text_is_always_the_same(engine: Engine) -> None:
    assert engine.generate("hello", max_tokens=40).text == engine.generate("hello", max_tokens=40).text


def test_a_text_is_taken_as_a_user_s_message(engine: Engine) -> None:
    assert engine.encode("hello") == engine.encode([{"role": "user", "content": "hello"}])


def test_tokens_are_taken_as_they_are(engine: Engine) -> None:
    assert engine.encode([5, 6, 7]) == [5, 6, 7]


@pytest.mark.parametrize("token", [-1, 320])
def test_a_token_that_the_model_does_not_have_is_refused(engine: Engine, token: int) -> None:
    with pytest.raises(UsageError, match=f"the token {token} is not one of the model's 320"):
        engine.stream([5, token])


def test_an_empty_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        engine.stream([])


def test_no_tokens_cannot_be_asked_for(engine: Engine) -> None:
    with pytest.raises(UsageError):
        engine.stream([5], max_tokens=0)


def test_a_prompt_that_fills_the_context_is_refused_with_how_many_are_too_many(engine: Engine) -> None:
    with pytest.raises(ContextError, match="the prompt has 130 tokens and the context 128: 3 too many"):
        engine.stream([5] * 130)


def test_a_prompt_that_leaves_room_for_one_token_gets_one(engine: Engine) -> None:
    assert engine.generate([5] * 127).completion_tokens == 1


def test_more_tokens_than_the_context_has_room_for_are_refused(engine: Engine) -> None:
    with pytest.raises(ContextError, match="1 over the context of 128"):
        engine.stream([5] * 100, max_tokens=29)


def test_an_engine_works_after_a_refusal(engine: Engine) -> None:
    with pytest.raises(ContextError):
        engine.stream([5] * 100, max_tokens=29)
    assert engine.generate([5] * 100, max_tokens=2).completion_tokens > 0


def test_a_stream_closed_early_leaves_the_engine_to_others(engine: Engine) -> None:
    alone = engine.generate("hello", max_tokens=20).text
    stream = engine.stream([9] * 100, max_tokens=20)
    next(stream)
    stream.close()
    assert engine.generate("hello", max_tokens=20).text == alone


def test_two_open_streams_each_give_their_own_text(path: Path) -> None:
    with Engine.open(plan_of(path, context_tokens=128, chunk_tokens=32, max_sequences=2)) as engine:
        alone = [engine.generate([token], max_tokens=20, sampling=RANDOM).text for token in (5, 9)]
        streams = [engine.stream([token], max_tokens=20, sampling=RANDOM) for token in (5, 9)]
        next(streams[0])
        for stream in streams:
            list(stream)
        assert [stream.report.text for stream in streams] == alone


def test_a_stream_that_nobody_reads_on_changes_no_other_answer(path: Path) -> None:
    with Engine.open(plan_of(path, context_tokens=128, chunk_tokens=32)) as engine:
        alone = engine.generate("hello", max_tokens=20).text
        unread = engine.stream([9] * 100, max_tokens=20, sampling=RANDOM)
        next(unread)
        assert engine.generate("hello", max_tokens=20).text == alone


def test_a_model_that_has_changed_since_it_was_planned_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "small.gguf", small_model("qwen2"))
    plan = plan_of(path)
    write_gguf(path, small_model("qwen2", num_layers=2))
    with pytest.raises(FileError, match="has changed since it was planned"):
        Engine.open(plan)


def test_a_report_counts_the_prompt_s_and_the_answer_s_tokens(engine: Engine) -> None:
    report = engine.generate([5] * 30, max_tokens=7)
    assert (report.prompt_tokens, report.completion_tokens) == (30, 7)


@pytest.mark.parametrize("name", ["weights", "kv_cache", "activations"])
def test_each_class_of_memory_stays_within_its_forecast(engine: Engine, name: str) -> None:
    memory = engine.generate([5] * 100, max_tokens=28).memory
    assert 0 < getattr(memory, name) <= getattr(engine.plan.memory, name)


def test_kv_memory_is_that_of_the_pages_in_use(path: Path) -> None:
    with Engine.open(plan_of(path, context_tokens=128, chunk_tokens=32)) as engine:
        page_bytes = sum(group.page_bytes * len(group.layers) for group in engine.plan.kv_groups)
        assert engine.generate([5] * 30, max_tokens=4).memory.kv_cache == 3 * page_bytes


def test_a_run_s_peak_is_within_its_budget(path: Path, tmp_path: Path) -> None:
    """The runtime is planned with 96 MiB; the budget is what is planned, to the byte."""
    plan = plan_of(path, context_tokens=400, runtime_bytes=96 << 20)
    plan = plan_of(path, context_tokens=400, runtime_bytes=96 << 20, budget_bytes=plan.memory.peak)
    (tmp_path / "plan.json").write_text(plan.to_json())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PEAK_OF_A_RUN, str(tmp_path / "plan.json")]
    finished = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert int(finished.stdout) <= plan.budget_bytes
