"""Weights that stream through buffers give the very same logits as weights in memory, or an error."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from residency.engine.engine import Engine
from residency.errors import StoreError
from residency.models.specs import model_spec
from residency.planner import Plan
from residency.spec import open_checkpoint
from residency.store.weights import ensure_store
from support.engines import engine_logits, plan_of
from support.gguf_files import write_gguf
from support.models import small_model
from support.packed_folders import Kind, write_packed
from support.streams import streaming_plan

TOKENS = np.random.default_rng(3).integers(0, 320, 50)
LARGE_VOCABULARY = 8000  # its head is cut into several spans


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("qwen3"), "Q8_0")


def in_memory_and_streamed(path: Path, resident_part: float, threads: int = 2) -> list[np.ndarray]:
    """Logits of a prompt in two chunks and ten tokens one by one."""
    options: dict[str, Any] = {"chunk_tokens": 24, "logit_rows": 24, "threads": threads}
    plans = [plan_of(path, **options), streaming_plan(path, resident_part=resident_part, **options)]
    return [engine_logits(path, TOKENS.tolist(), prompt_tokens=40, chunk_tokens=24, plan=plan) for plan in plans]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen2", "qwen3"])
@pytest.mark.parametrize("resident_part", [0.0, 0.4])
def test_logits_are_those_of_weights_in_memory(architecture: str, resident_part: float, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", small_model(architecture), "Q4_0")
    whole, streamed = in_memory_and_streamed(path, resident_part)
    np.testing.assert_array_equal(streamed, whole)


def test_what_puts_columns_in_order_streams_too(tmp_path: Path) -> None:
    """GPTQ's act-order: the order of a matrix' columns comes with it."""
    write_packed(tmp_path / "packed", small_model("qwen2"), Kind(layout="gptq", shuffled=True))
    whole, streamed = in_memory_and_streamed(tmp_path / "packed", 0.0)
    np.testing.assert_array_equal(streamed, whole)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_larger_than_a_buffer_streams_in_parts(tied: bool, tmp_path: Path) -> None:
    model = small_model("llama", vocabulary=LARGE_VOCABULARY, tied=tied)
    path = write_gguf(tmp_path / "m.gguf", model, "Q4_1")
    whole, streamed = in_memory_and_streamed(path, 0.2)
    np.testing.assert_array_equal(streamed, whole)


def test_one_thread_computes_what_two_do(path: Path) -> None:
    (_, two), (_, one) = (in_memory_and_streamed(path, 0.3, threads) for threads in (2, 1))
    np.testing.assert_array_equal(one, two)


def test_many_steps_go_round_the_buffers(path: Path) -> None:
    texts = []
    for plan in (plan_of(path), streaming_plan(path, resident_part=0.4)):
        with Engine.open(plan) as engine:
            texts.append(engine.generate([5, 6, 7], max_tokens=200).text)
    assert texts[0] == texts[1]


def test_a_report_s_weights_are_the_plan_s(path: Path) -> None:
    plan = streaming_plan(path, resident_part=0.5)
    with Engine.open(plan) as engine:
        measured = engine.generate([5, 6, 7], max_tokens=20).memory.weights
    assert plan.memory.weights * 0.95 <= measured <= plan.memory.weights


def store_of(plan: Plan) -> Path:
    return ensure_store(model_spec(open_checkpoint(plan.model_path)), plan.model_fingerprint) / "weights"


def test_a_store_that_is_changed_under_a_running_engine_is_an_error(path: Path) -> None:
    plan = streaming_plan(path, resident_part=0.0)
    with Engine.open(plan) as engine:
        engine.generate([5], max_tokens=2)
        os.utime(store_of(plan))
        with pytest.raises(StoreError, match="was changed while the model ran"):
            engine.generate([5], max_tokens=20)


def test_a_store_that_is_cut_under_a_running_engine_is_an_error(path: Path) -> None:
    plan = streaming_plan(path, resident_part=0.0)
    with Engine.open(plan) as engine:
        engine.generate([5], max_tokens=2)
        os.truncate(store_of(plan), 4096)
        with pytest.raises(StoreError):
            engine.generate([5], max_tokens=20)


def test_an_engine_opens_again_after_its_store_was_cut(path: Path) -> None:
    plan = streaming_plan(path, resident_part=0.0)
    os.truncate(store_of(plan), 4096)
    with Engine.open(plan) as engine:
        assert engine.generate([5], max_tokens=2).completion_tokens == 2
