"""What the other verbs print."""

import json
from pathlib import Path

import pytest

import residency as package
from residency.cli.main import VERBS
from residency.planner import Plan
from support.command import Residency
from support.gguf_files import write_gguf
from support.models import small_model


def test_a_plan_in_json_is_the_plan(residency: Residency, model_path: Path) -> None:
    plan = Plan.from_json(residency("plan", model_path, "--memory", "300MiB", "--json").stdout)
    assert plan == package.plan(model_path, memory="300MiB")


def test_a_kept_plan_is_explained_like_a_new_one(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    printed = residency("plan", model_path, "--memory", "300MiB", "--plan-out", path).stdout
    assert residency("plan", path).stdout == printed


def test_a_plan_begins_with_the_model_and_the_budget(residency: Residency, model_path: Path) -> None:
    printed = residency("plan", model_path, "--memory", "300MiB").stdout
    assert printed.startswith("plan   small · llama · F32 · context 512 · RAM budget 300 MiB\n")


def test_inspect_counts_tensors_by_format(residency: Residency, model_path: Path) -> None:
    facts = json.loads(residency("inspect", model_path, "--json").stdout)
    assert [(held["format"], held["tensors"]) for held in facts["tensors"]] == [("F32", 3 * 9 + 3)]


def test_inspect_knows_what_a_token_keeps_in_windows(residency: Residency, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "gemma.gguf", small_model("gemma3", num_layers=4))
    facts = json.loads(residency("inspect", path, "--json").stdout)
    kept = 2 * 2 * 64 * 2  # keys and values of 2 heads of 64 values of 2 bytes
    assert facts["kv_groups"] == [
        {"window_tokens": 8, "layers": 2, "bytes_per_token": 2 * kept},
        {"window_tokens": None, "layers": 2, "bytes_per_token": 2 * kept},
    ]


def test_inspect_tells_what_the_headers_say(residency: Residency, model_path: Path) -> None:
    facts = json.loads(residency("inspect", model_path, "--json").stdout)
    names = ("architecture", "layers", "vocabulary", "tied_head", "tokenizer", "chat_template", "max_context_tokens")
    assert [facts[name] for name in names] == ["llama", 3, 320, False, "gpt2 gpt-2", True, 512]


def test_inspect_in_words_has_a_line_for_each_format(residency: Residency, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "mixed.gguf", small_model("qwen2"), "Q4_K")
    printed = residency("inspect", path).stdout
    assert [line.split()[0] for line in printed.splitlines()[3:6]] == ["Q4_K", "F32", "all"]


def test_inspect_needs_no_cache_and_no_probe(
    residency: Residency, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path / "cache"))
    residency("inspect", model_path)
    assert not (tmp_path / "cache").exists()


def test_pull_prints_where_a_model_is(residency: Residency, model_path: Path) -> None:
    assert residency("pull", model_path).stdout == f"{model_path}\n"


def test_pull_in_json_has_the_path(residency: Residency, model_path: Path) -> None:
    assert json.loads(residency("pull", model_path, "--json").stdout)["path"] == str(model_path)


def test_pull_without_a_name_lists_the_catalog(residency: Residency) -> None:
    assert "smollm2-135m" in residency("pull").stdout


def test_the_catalog_in_json_says_what_is_here(
    residency: Residency, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path))
    models = json.loads(residency("pull", "--json").stdout)["models"]
    assert [(model["name"], model["path"]) for model in models] == [("smollm2-135m", None)]


def test_probe_prints_what_was_measured(residency: Residency) -> None:
    printed = residency("probe").stdout
    assert [
        line for line in ("machine", "RAM", "caches", "figures", "runtime", "measured") if line not in printed
    ] == []


def test_probe_in_json_has_rates_by_thread_and_an_age(residency: Residency) -> None:
    machine = json.loads(residency("probe", "--json").stdout)
    ram = next(tier for tier in machine["tiers"] if tier["kind"] == "ram")
    assert {rate["threads"] for rate in ram["read_rates"]} and machine["age_seconds"] >= 0


def test_the_version_is_printed(residency: Residency) -> None:
    assert residency("--version").stdout == f"residency {package.__version__}\n"


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_teaches_with_an_example(residency: Residency, verb: str) -> None:
    assert f"\n    residency {verb} " in residency(verb, "--help").stdout


def test_the_first_help_lists_every_verb(residency: Residency) -> None:
    printed = residency("--help").stdout
    assert [verb for verb in VERBS if f"\n  {verb} " not in printed] == []
