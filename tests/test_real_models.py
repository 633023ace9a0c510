"""The whole product on real models: tokens, quality and the budget."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.cgroups import entering, memory_cgroup
from support.real_models import real_model, wikitext

PERPLEXITY = [
    ("smollm2-135m", 24.589),
    pytest.param("qwen2.5-coder-0.5b", 36.383, marks=pytest.mark.slow),
    pytest.param("qwen2.5-coder-1.5b", 15.356, marks=pytest.mark.slow),
]


def residency(*words: str, cgroup: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the command line, inside a cgroup if one is given."""
    return subprocess.run(
        [sys.executable, "-m", "residency", *words],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=entering(cgroup),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


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


@pytest.mark.parametrize(
    ("name", "memory_mib"),
    [
        ("smollm2-135m", 100),
        pytest.param("qwen2.5-coder-1.5b", 600, marks=pytest.mark.slow),
        pytest.param("qwen2.5-coder-1.5b", 400, marks=pytest.mark.slow),
    ],
)
def test_a_model_larger_than_its_cgroup_answers_as_it_does_in_memory(name: str, memory_mib: int) -> None:
    words = ("run", str(real_model(name)), "The capital of France is", "--raw", "--max-tokens", "8", "--json")
    whole = json.loads(residency(*words).stdout)
    with memory_cgroup(memory_mib << 20) as cgroup:
        done = residency(*words, "--memory", f"{memory_mib}MiB", cgroup=cgroup)
    report = json.loads(done.stdout)
    assert report["text"] == whole["text"]
    assert report["disk"] is not None
    assert report["memory_bytes"]["measured"]["peak"] <= memory_mib << 20


def test_peak_memory_is_what_is_held_and_at_most_170_mb_more() -> None:
    done = residency("run", str(real_model("smollm2-135m")), "Hello", "--max-tokens", "16", "--json")
    measured = json.loads(done.stdout)["memory_bytes"]["measured"]
    assert measured["runtime"] <= 170e6
