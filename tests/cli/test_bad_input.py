"""Bad input: one sentence on standard error, exit code 2, nothing on standard output."""

import json
import os
from pathlib import Path

import pytest
from click.testing import Result

from support.command import Residency
from support.gguf_files import write_gguf
from support.models import small_model


def refusal(result: Result) -> str:
    """The one line of a refusal; an assertion fails for anything else."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("residency: ") and result.stdout == ""
    return line


def test_a_truncated_file_is_refused(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    path.write_bytes(model_path.read_bytes()[: model_path.stat().st_size // 2])
    assert "is truncated" in refusal(residency("run", path, "hello"))


def test_a_foreign_file_is_refused(residency: Residency, tmp_path: Path) -> None:
    path = tmp_path / "song.gguf"
    path.write_bytes(b"RIFF" + bytes(100))
    assert "song.gguf" in refusal(residency("inspect", path))


def test_an_unknown_architecture_is_named(residency: Residency, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "new.gguf", small_model("llama"))
    content = path.read_bytes().replace(b"llama", b"lmama")
    path.write_bytes(content)
    assert "'lmama' is not supported" in refusal(residency("plan", path))


def test_a_budget_that_is_too_small_names_the_cheapest_change(residency: Residency, model_path: Path) -> None:
    assert "The cheapest change: --memory" in refusal(residency("run", model_path, "hello", "--memory", "10MiB"))


def test_the_cheapest_change_is_enough(residency: Residency, model_path: Path) -> None:
    sentence = refusal(residency("plan", model_path, "--memory", "10MiB"))
    enough = sentence.rstrip(".").rsplit(" ", 1)[1]
    assert residency("plan", model_path, "--memory", enough).exit_code == 0


def test_a_context_longer_than_the_models_is_refused(residency: Residency, model_path: Path) -> None:
    assert "more than small has" in refusal(residency("run", model_path, "hello", "--context", 513))


def test_a_prompt_longer_than_the_context_is_refused(residency: Residency, model_path: Path) -> None:
    result = residency("run", model_path, "word " * 200, "--context", 64, "--quiet")
    assert "too many" in refusal(result)


def test_an_unknown_name_says_what_a_name_can_be(residency: Residency) -> None:
    assert "smollm2-135m" in refusal(residency("run", "smolm2-135m", "hello"))


def test_an_empty_prompt_is_refused(residency: Residency, model_path: Path) -> None:
    assert "the prompt is empty" in refusal(residency("run", model_path, input=""))


@pytest.mark.parametrize("amount", ["400", "400M", "much", "-1MiB"])
def test_an_amount_of_memory_has_a_unit(residency: Residency, model_path: Path, amount: str) -> None:
    assert "MiB" in refusal(residency("run", model_path, "hello", f"--memory={amount}"))


@pytest.mark.parametrize("option", [("--temperature", "nan"), ("--top-p", "2"), ("--top-k", "0"), ("--seed", "-1")])
def test_options_of_sampling_have_their_ranges(residency: Residency, model_path: Path, option: tuple[str, str]) -> None:
    assert "must be" in refusal(residency("run", model_path, "hello", *option))


def test_a_misspelt_option_is_no_option(residency: Residency, model_path: Path) -> None:
    assert "See residency run --help." in refusal(residency("run", model_path, "hello", "--memroy", "1GB"))


def test_an_unknown_verb_is_refused(residency: Residency) -> None:
    assert "'walk'" in refusal(residency("walk"))


def test_raw_and_a_system_message_exclude_each_other(residency: Residency, model_path: Path) -> None:
    assert "--raw" in refusal(residency("run", model_path, "hello", "--raw", "--system", "be brief"))


@pytest.mark.parametrize("option", [("--memory", "1GB"), ("--context", "64"), ("--threads", "1")])
def test_a_plans_decisions_are_not_overruled(residency: Residency, plan_path: Path, option: tuple[str, str]) -> None:
    assert f"has decided {option[0]}" in refusal(residency("run", plan_path, "hello", *option))


def test_unknown_keys_of_a_plan_are_refused(residency: Residency, plan_path: Path) -> None:
    change(plan_path, colour="blue")
    assert "'colour'" in refusal(residency("run", plan_path, "hello"))


def test_a_plan_with_other_buffers_than_its_model_needs_is_refused(residency: Residency, plan_path: Path) -> None:
    change(plan_path, chunk_tokens=json.loads(plan_path.read_text())["chunk_tokens"] * 2)
    assert "does not fit its model" in refusal(residency("run", plan_path, "hello"))


def test_a_plan_for_more_threads_than_are_allowed_is_refused(residency: Residency, plan_path: Path) -> None:
    change(plan_path, threads=100_000)
    assert "100000 threads" in refusal(residency("run", plan_path, "hello"))


def test_a_plan_of_a_model_that_changed_is_refused(residency: Residency, plan_path: Path, model_path: Path) -> None:
    change(plan_path, model_fingerprint="0" * 64)
    assert "has changed since" in refusal(residency("run", plan_path, "hello"))


def test_a_file_that_is_json_but_no_plan_is_refused(residency: Residency, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[]")
    assert "not a plan of residency" in refusal(residency("run", path, "hello"))


def test_a_plan_that_is_not_there_is_missed(residency: Residency, tmp_path: Path) -> None:
    assert "there is no plan" in refusal(residency("run", tmp_path / "plan.json", "hello"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.with_name(f".plan.json.{os.getpid()}.part").symlink_to("/dev/full")
    assert "the disk is full" in refusal(residency("plan", model_path, "--plan-out", path))


def test_a_place_that_cannot_be_written_is_named(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    sentence = refusal(residency("plan", model_path, "--plan-out", tmp_path / "missing" / "plan.json"))
    assert "missing" in sentence


def test_a_text_shorter_than_a_chunk_has_no_perplexity(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("short")
    assert "too few for one chunk" in refusal(residency("verify", model_path, "--perplexity", text))


def test_chunks_need_a_text(residency: Residency, model_path: Path) -> None:
    assert "--perplexity FILE" in refusal(residency("verify", model_path, "--chunks", 2))


def test_perplexity_has_a_context_of_its_own(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    result = residency("verify", model_path, "--perplexity", tmp_path / "text.txt", "--context", 64)
    assert "leave --context" in refusal(result)


@pytest.fixture
def plan_path(residency: Residency, model_path: Path, tmp_path: Path) -> Path:
    """A plan of the small model."""
    path = tmp_path / "plan.json"
    assert residency("plan", model_path, "--memory", "300MiB", "--plan-out", path).exit_code == 0
    return path


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
