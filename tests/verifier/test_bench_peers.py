"""The comparison's arithmetic, its floors, and the tables that are made from results (benchmarks/)."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUNS = {
    "residency": [{"decode_short": 30.0, "peak_bytes": 50.0}, {"decode_short": 34.0, "peak_bytes": 50.0}],
    "llama.cpp": [{"decode_short": 10.0, "peak_bytes": 100.0}, {"decode_short": 10.0, "peak_bytes": 100.0}],
    "OpenVINO": [{"prefill_512": 5.0}, {"prefill_512": 5.0}],
}
FLOOR = "decode_short over llama.cpp"


@pytest.fixture
def ratios(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/ratios.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "ratios", raising=False)
    return importlib.import_module("ratios")


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/serving_table.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "serving_table", raising=False)
    return importlib.import_module("serving_table")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/readme_table.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "readme_table", raising=False)
    return importlib.import_module("readme_table")


def result(ratios: Any) -> dict[str, Any]:
    """A result as peers.py writes it."""
    return {
        "version": 2,
        "model": "small.gguf",
        "machine": {"processor": "any"},
        "threads": 2,
        "rounds": 2,
        "medians": ratios.medians(RUNS),
        "ratios": ratios.to_data(ratios.ratios(RUNS)),
    }


def test_a_ratio_is_of_medians_with_the_rounds_around_it(ratios: Any) -> None:
    found = ratios.ratio(RUNS, "decode_short", "llama.cpp")
    assert (found.median, found.least, found.most) == (3.2, 3.0, 3.4)


def test_measures_that_only_one_side_has_make_no_ratio(ratios: Any) -> None:
    assert [each.name for each in ratios.ratios(RUNS)] == [FLOOR, "peak_bytes over llama.cpp"]


def test_a_ratio_within_the_noise_of_its_floor_holds(ratios: Any) -> None:
    assert ratios.fallen(ratios.ratios(RUNS), {FLOOR: 3.35}) == []


def test_a_ratio_under_its_floor_by_more_than_the_noise_has_fallen(ratios: Any) -> None:
    (sentence,) = ratios.fallen(ratios.ratios(RUNS), {FLOOR: 3.5})
    assert sentence.startswith(f"{FLOOR} is 3.20x; its floor is 3.50x")


def test_more_memory_than_recorded_has_fallen(ratios: Any) -> None:
    assert len(ratios.fallen(ratios.ratios(RUNS), {"peak_bytes over llama.cpp": 0.4})) == 1


def test_recorded_floors_hold_for_the_runs_that_made_them(ratios: Any) -> None:
    found = ratios.ratios(RUNS)
    assert ratios.fallen(found, ratios.recorded(found)) == []


def test_a_table_has_a_row_for_each_ratio(ratios: Any, tables: Any) -> None:
    printed = tables.table([result(ratios)])
    assert "| decode, short context, over llama.cpp | **3.20x** (32 / 10 tok/s) |" in printed


def test_a_measure_that_nobody_made_has_no_row(ratios: Any, tables: Any) -> None:
    assert "OpenVINO" not in tables.table([result(ratios)])


def test_placing_a_table_again_changes_nothing(tables: Any) -> None:
    once = tables.placed("# a page\n\n## Read on\n\n- more\n", "| a |")
    assert tables.placed(once, "| a |") == once


def test_what_is_around_the_markers_stays(tables: Any) -> None:
    page = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    assert tables.placed(page, "new") == f"before\n{tables.BEGIN}\nnew\n{tables.END}\nafter\n"


def test_results_of_other_forms_are_not_looked_at(ratios: Any, tables: Any, tmp_path: Path) -> None:
    (tmp_path / "machine").mkdir()
    (tmp_path / "machine" / "small.json").write_text(json.dumps(result(ratios)))
    (tmp_path / "machine" / "other.json").write_text("{}")
    assert [each["model"] for each in tables.results_by_machine(tmp_path)["machine"]] == ["small.gguf"]


def served(medians: dict[str, float]) -> dict[str, Any]:
    """A result as serving.py writes it."""
    return {"server": "small", "machine": {"processor": "any", "threads": 2}, "medians": medians}


def test_what_was_measured_of_a_server_is_a_row(serving: Any) -> None:
    found = {"together_over_one": 3.5, "together_tokens_per_second": 700.0, "one_tokens_per_second": 200.0}
    assert "output over one alone | **3.50x** (700 / 200 tok/s) |" in serving.table([served(found)])


def test_a_task_that_was_left_out_has_no_row(serving: Any) -> None:
    assert "static" not in serving.table([served({})])
