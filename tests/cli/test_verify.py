"""What `residency verify` prints, and when it fails."""

import json
from pathlib import Path

from support.command import Residency

MUCH = ("--memory-tolerance", 1e6, "--peak-tolerance", 1e6, "--speed-tolerance", 1e6)
NOTHING = ("--memory-tolerance", 1e6, "--peak-tolerance", 1e6, "--speed-tolerance", 0)


def test_a_forecast_within_its_tolerances_holds(residency: Residency, model_path: Path) -> None:
    assert residency("verify", model_path, "--memory", "300MiB", *MUCH).exit_code == 0


def test_a_forecast_outside_a_tolerance_fails(residency: Residency, model_path: Path) -> None:
    result = residency("verify", model_path, "--memory", "300MiB", *NOTHING)
    assert result.exit_code == 1 and result.stdout.splitlines()[-1].split()[0] == "decode"


def test_every_class_is_compared(residency: Residency, model_path: Path) -> None:
    data = json.loads(residency("verify", model_path, "--memory", "300MiB", *MUCH, "--json").stdout)
    names = [each["name"] for each in data["comparisons"]]
    assert names == ["weights", "kv_cache", "activations", "runtime", "peak", "decode"]


def test_a_kept_plan_is_verified(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    residency("plan", model_path, "--memory", "300MiB", "--plan-out", path)
    assert "holds" in residency("verify", path, *MUCH).stdout


def test_perplexity_in_json_has_value_error_and_chunks(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the other one in the garden " * 100)
    data = json.loads(residency("verify", model_path, "--perplexity", text, "--chunks", 1, "--json").stdout)
    assert set(data["perplexity"]) == {"value", "error", "chunks"} and data["perplexity"]["chunks"] == 1


def test_the_way_lines_end_does_not_count(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    printed = set()
    for name, end in (("unix", "\n"), ("dos", "\r\n")):
        path = tmp_path / name
        path.write_bytes((f"the other one in the garden{end}" * 60).encode())
        printed.add(residency("verify", model_path, "--perplexity", path).stdout)
    assert len(printed) == 1
