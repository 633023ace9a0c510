"""The whole product on real models: tokens, quality and the budget."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.real_models import real_model, wikitext

PERPLEXITY = [
    ("smollm2-135m", 24.589),
    pytest.param("qwen2.5-coder-0.5b", 36.383, marks=pytest.mark.slow),
    pytest.param("qwen2.5-coder-1.5b", 15.356, marks=pytest.mark.slow),
]
CGROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))


def residency(*words: str, cgroup: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the command line, inside a cgroup if one is given."""
    enter = (lambda: (cgroup / "cgroup.procs").write_text(str(os.getpid()))) if cgroup else None
    return subprocess.run(
        [sys.executable, "-m", "residency", *words],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=enter,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A memory cgroup of exactly that size, version 1 or 2; a skip where none can be made."""
    root = next((each for each in CGROUPS if (each / "cgroup.procs").exists()), CGROUPS[1])
    group = root / f"residency-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        limit = next(group / name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists())
        limit.write_text(str(limit_bytes))
        yield group
    except (OSError, StopIteration) as error:
        pytest.skip(f"memory cgroups have no limits here: {error}")
    finally:
        group.rmdir()


def test_smollm2_knows_a_capital() -> None:
    model = str(real_model("smollm2-135m"))
    done = residency("run", model, "The capital of France is", "--raw", "--max-tokens", "3", "-q")
    assert " Paris" in done.stdout


@pytest.mark.parametrize(("name", "expected"), PERPLEXITY)
def test_the_perplexity_is_that_of_llama_cpp(name: str, expected: float) -> None:
    words = ("verify", str(real_model(name)), "--perplexity", str(wikitext()), "--chunks", "8", "--json")
    done = residency(*words)
    assert json.loads(done.stdout)["perplexity"]["value"] == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("memory_mib", [400, 200])
def test_a_run_completes_in_a_cgroup_of_exactly_its_budget(memory_mib: int) -> None:
    path = str(real_model("smollm2-135m"))
    with memory_cgroup(memory_mib << 20) as cgroup:
        done = residency(
            "run", path, "Hello", "--memory", f"{memory_mib}MiB", "--max-tokens", "16", "--json", cgroup=cgroup
        )
    report = json.loads(done.stdout)
    assert report["memory_bytes"]["measured"]["peak"] <= memory_mib << 20


def test_peak_memory_is_what_is_held_and_at_most_170_mb_more() -> None:
    done = residency("run", str(real_model("smollm2-135m")), "Hello", "--max-tokens", "16", "--json")
    measured = json.loads(done.stdout)["memory_bytes"]["measured"]
    assert measured["runtime"] <= 170e6
