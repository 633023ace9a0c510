"""A process that runs away past its budget fails by itself."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from residency.engine.ceiling import UNTOUCHED_BYTES, held_to_budget
from residency.planner import Plan
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.models import small_model

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from residency.engine.ceiling import held_to_budget
from residency.engine.engine import Engine
from residency.planner import Plan
plan = Plan.from_json(Path(sys.argv[1]).read_text())
with Engine.open(plan) as engine, held_to_budget(plan):
    held = np.ones(int(sys.argv[2]), np.uint8)
    print(engine.generate([5, 6, 7], max_tokens=20).completion_tokens)
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    path = write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("qwen3"), "Q8_0")
    return plan_of(path, budget_bytes=128 << 20)


def running_with(plan: Plan, more_bytes: int, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    (tmp_path / "plan.json").write_text(plan.to_json())
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "plan.json"), str(more_bytes)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_run_within_its_budget_is_left_alone(plan: Plan, tmp_path: Path) -> None:
    assert running_with(plan, 0, tmp_path).stdout == "20\n"


def test_the_limit_ends_with_the_model(plan: Plan) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with held_to_budget(plan):
        pass
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_what_goes_past_the_budget_is_a_memory_error(plan: Plan, tmp_path: Path) -> None:
    done = running_with(plan, plan.budget_bytes + UNTOUCHED_BYTES, tmp_path)
    assert "MemoryError" in done.stderr
