"""Weights that are mapped and cannot be read any more give an error, and do not end the process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from residency.engine.engine import Engine
from residency.errors import StoreError
from residency.models.specs import model_spec
from residency.planner import Plan
from residency.spec import open_checkpoint
from residency.store.weights import ensure_store
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.models import small_model

ANOTHER_FILE_IS_CUT = """
import mmap, os, sys
from residency.engine.engine import Engine
from residency.planner import Plan
with Engine.open(Plan.from_json(open(sys.argv[1]).read())):
    with open(sys.argv[2], "w+b") as file:
        file.truncate(8192)
        mapped = mmap.mmap(file.fileno(), 8192)
        file.truncate(0)
        mapped[4096]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(write_gguf(tmp_path / "small.gguf", small_model("llama", tied=True), "Q8_0"))


def store_of(plan: Plan) -> Path:
    return ensure_store(model_spec(open_checkpoint(plan.model_path)), plan.model_fingerprint) / "weights"


def test_a_store_that_is_cut_under_a_running_engine_is_an_error(plan: Plan) -> None:
    with Engine.open(plan) as engine:
        engine.generate([5], max_tokens=2)
        os.truncate(store_of(plan), 4096)
        with pytest.raises(StoreError, match="was changed while the model ran"):
            engine.generate([5], max_tokens=20)


def test_a_store_that_is_changed_under_a_running_engine_is_an_error(plan: Plan) -> None:
    with Engine.open(plan) as engine:
        engine.generate([5], max_tokens=2)
        os.utime(store_of(plan))
        with pytest.raises(StoreError, match="was changed while the model ran"):
            engine.generate([5], max_tokens=20)


def test_an_engine_whose_store_is_well_goes_on_beside_one_whose_store_was_cut(plan: Plan, tmp_path: Path) -> None:
    other = plan_of(write_gguf(tmp_path / "other.gguf", small_model("qwen3"), "Q8_0"))
    with Engine.open(plan) as cut, Engine.open(other) as well:
        expected = well.generate([5], max_tokens=9).text
        os.truncate(store_of(plan), 4096)
        with pytest.raises(StoreError):
            cut.generate([5], max_tokens=20)
        assert well.generate([5], max_tokens=9).text == expected


def test_a_fault_elsewhere_ends_the_process_as_it_would(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(plan.to_json())
    command = [sys.executable, "-c", ANOTHER_FILE_IS_CUT, str(tmp_path / "plan.json"), str(tmp_path / "mapped")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert done.returncode == -signal.SIGBUS
