"""Experts that are read when tokens are sent to them give the very same logits as experts in memory, or an error."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from residency.engine.engine import Engine
from residency.errors import BudgetError, StoreError
from residency.models.specs import model_spec
from residency.planner import Plan
from residency.spec import open_checkpoint
from residency.store.weights import ensure_store
from support.engines import engine_logits, plan_of
from support.gguf_files import write_gguf
from support.machines import machine_with_disk
from support.models import MIXTURES, small_model
from support.streams import paged_and_streaming_plan, paged_plan

TOKENS = np.random.default_rng(3).integers(0, 320, 50).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers of six experts."""
    return write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("mixtral"), "Q4_K")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("slots", [6, 11])
@pytest.mark.parametrize("architecture", MIXTURES)
def test_logits_are_those_of_experts_in_memory(architecture: str, slots: int, threads: int, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", small_model(architecture), "Q4_K")
    options: dict[str, Any] = {"chunk_tokens": 24, "logit_rows": 24, "threads": threads}
    plans = [plan_of(path, **options), paged_plan(path, slots=slots, **options)]
    whole, paged = (engine_logits(path, TOKENS, prompt_tokens=30, chunk_tokens=24, plan=plan) for plan in plans)
    np.testing.assert_array_equal(paged, whole)


@pytest.mark.parametrize("resident_part", [0.0, 0.4])
@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_are_paged_while_all_else_streams(architecture: str, resident_part: float, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", small_model(architecture), "Q4_K")
    options: dict[str, Any] = {"chunk_tokens": 24, "logit_rows": 24}
    plans = [plan_of(path, **options), paged_and_streaming_plan(path, resident_part=resident_part, **options)]
    assert plans[1].paging is not None and plans[1].streaming is not None
    whole, both = (engine_logits(path, TOKENS, prompt_tokens=30, chunk_tokens=24, plan=plan) for plan in plans)
    np.testing.assert_array_equal(both, whole)


def test_a_plan_has_as_many_slots_as_fit(path: Path) -> None:
    plan = paged_plan(path, slots=11)
    assert plan.paging is not None
    assert plan.paging.slots == 11
    assert plan.free_bytes < plan.paging.slot_bytes


def test_a_paged_plan_can_be_written_and_read(path: Path) -> None:
    plan = paged_plan(path, slots=9)
    assert Plan.from_json(plan.to_json()) == plan


def test_less_than_one_layer_s_experts_and_two_buffers_is_refused_with_what_is_missing(path: Path) -> None:
    plan = paged_and_streaming_plan(path, resident_part=0.0)
    with pytest.raises(BudgetError, match="streamed through 2 buffers, with 6 of 18 experts"):
        plan_of(path, machine=machine_with_disk(), context_tokens=512, budget_bytes=plan.memory.peak - 1)


def test_a_report_s_weights_are_the_plan_s(path: Path) -> None:
    plan = paged_plan(path, slots=8)
    with Engine.open(plan) as engine:
        measured = engine.generate([5, 6, 7], max_tokens=30).memory.weights
    assert plan.memory.weights * 0.9 <= measured <= plan.memory.weights


def test_a_report_counts_what_streams_and_what_is_paged(path: Path) -> None:
    plan = Plan.from_json(paged_and_streaming_plan(path, resident_part=0.3).to_json())
    with Engine.open(plan) as engine:
        report = engine.generate([5, 6, 7], max_tokens=30)
    assert plan.memory.weights * 0.9 <= report.memory.weights <= plan.memory.weights
    assert report.disk is not None and report.expert_hit_rate is not None


def test_what_is_needed_again_is_mostly_there(path: Path) -> None:
    with Engine.open(paged_plan(path, slots=14)) as engine:  # of 18
        hit_rate = engine.generate([5, 6, 7], max_tokens=100).expert_hit_rate
    assert hit_rate is not None and hit_rate > 0.7


def test_the_router_of_the_layer_before_guesses_better_than_chance(path: Path) -> None:
    with Engine.open(paged_plan(path, slots=9)) as engine:
        engine.generate([5, 6, 7], max_tokens=100)
        counts = engine.expert_counts
    assert counts is not None
    assert counts.guess_rate > 2 / 6 + 0.1


def test_a_store_that_is_changed_under_a_running_engine_is_an_error(path: Path) -> None:
    plan = paged_plan(path, slots=6)
    store = ensure_store(model_spec(open_checkpoint(path)), plan.model_fingerprint) / "weights"
    with Engine.open(plan) as engine:
        engine.generate([5], max_tokens=2)
        os.utime(store)
        with pytest.raises(StoreError, match="was changed while the model ran"):
            engine.generate(TOKENS, max_tokens=20)
