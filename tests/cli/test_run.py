"""What `residency run` prints, and how it ends."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from residency.engine.engine import Stream
from support.command import Residency
from support.folders import write_folder
from support.gguf_files import write_gguf
from support.models import ARCHITECTURES, small_model

RUN_OPTIONS = ("--max-tokens", 8, "--memory", "300MiB", "--context", 256)
PLAN_LINES = re.compile(
    r"plan   small · llama · F32 · context 256 · RAM budget 300 MiB\n"
    r"       weights [\d.]+ MiB · KV cache [\d.]+ MiB · activations [\d.]+ MiB · runtime [\d.]+ MiB · free [\d.]+ MiB\n"
    r"       forecast [\d.]+ tokens/s, (memory|compute)-bound: .* a token at .*/s\n"
)
RAN_LINES = re.compile(
    r"ran    \d+ tokens? · .*\n"
    r"       peak [\d.]+ MiB \(forecast [\d.]+\): weights [\d.]+ \([\d.]+\) · KV [\d.]+ of [\d.]+ · "
    r"activations [\d.]+ \([\d.]+\) · runtime [\d.]+ \([\d.]+\)\n\Z"
)


def test_the_plan_is_printed_before_the_answer(residency: Residency, model_path: Path) -> None:
    assert PLAN_LINES.match(residency("run", model_path, "hello", *RUN_OPTIONS).stdout)


def test_the_measurement_is_printed_after_the_answer(residency: Residency, model_path: Path) -> None:
    assert RAN_LINES.search(residency("run", model_path, "hello", *RUN_OPTIONS).stdout)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gguf_file_of_every_architecture_answers(residency: Residency, tmp_path: Path, architecture: str) -> None:
    path = write_gguf(tmp_path / "small.gguf", small_model(architecture), "Q8_0")
    assert RAN_LINES.search(residency("run", path, "hello", *RUN_OPTIONS).stdout)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_of_every_architecture_answers(residency: Residency, tmp_path: Path, architecture: str) -> None:
    folder = write_folder(tmp_path / "small", small_model(architecture), dtype="BF16")
    assert RAN_LINES.search(residency("run", folder, "hello", *RUN_OPTIONS).stdout)


def test_quiet_prints_the_answer_alone(residency: Residency, model_path: Path) -> None:
    answer = json.loads(residency("run", model_path, "hello", *RUN_OPTIONS, "--json").stdout)["text"]
    assert residency("run", model_path, "hello", *RUN_OPTIONS, "--quiet").stdout.rstrip("\n") == answer.rstrip("\n")


def test_json_is_one_object_with_every_measurement(residency: Residency, model_path: Path) -> None:
    data = json.loads(residency("run", model_path, "hello", *RUN_OPTIONS, "--json").stdout)
    classes = {"weights", "kv_cache", "activations", "runtime", "peak"}
    wanted = {
        "": {"text", "usage", "seconds", "tokens_per_second", "memory_bytes", "bandwidth"},
        "usage": {"prompt_tokens", "completion_tokens"},
        "seconds": {"load", "first_token", "decode", "total"},
        "tokens_per_second": {"prefill", "decode", "forecast_decode"},
        "memory_bytes": {"budget", "forecast", "measured"},
        "memory_bytes.forecast": classes,
        "memory_bytes.measured": classes,
        "bandwidth": {"measured_bytes_per_second", "achieved_bytes_per_second", "utilisation"},
    }
    found = names_by_place(data)
    assert {place: names - found[place] for place, names in wanted.items()} == {place: set() for place in wanted}


def names_by_place(data: dict[str, Any], place: str = "") -> dict[str, set[str]]:
    """The names of every object inside `data`, by where it is."""
    found = {place: set(data)}
    for name, value in data.items():
        if isinstance(value, dict):
            found |= names_by_place(value, f"{place}.{name}" if place else name)
    return found


def test_equal_seeds_give_equal_answers(residency: Residency, model_path: Path) -> None:
    sampled = ("--temperature", 1.5, "--seed", 7, "--quiet")
    answers = {residency("run", model_path, "hello", *RUN_OPTIONS, *sampled).stdout for _ in range(2)}
    assert len(answers) == 1


def test_a_prompt_is_read_from_standard_input(residency: Residency, model_path: Path) -> None:
    given = residency("run", model_path, "hello", *RUN_OPTIONS, "--quiet").stdout
    assert residency("run", model_path, *RUN_OPTIONS, "--quiet", input="hello\n").stdout == given


def test_a_dash_means_standard_input(residency: Residency, model_path: Path) -> None:
    given = residency("run", model_path, "hello", *RUN_OPTIONS, "--quiet").stdout
    assert residency("run", model_path, "-", *RUN_OPTIONS, "--quiet", input="hello\n").stdout == given


def test_raw_leaves_the_chat_template_away(residency: Residency, model_path: Path) -> None:
    data = json.loads(residency("run", model_path, "ab", *RUN_OPTIONS, "--raw", "--json").stdout)
    assert data["usage"]["prompt_tokens"] == 2


def test_a_system_message_makes_the_prompt_longer(residency: Residency, model_path: Path) -> None:
    plain, system = (
        json.loads(residency("run", model_path, "ab", *RUN_OPTIONS, "--json", *more).stdout)["usage"]["prompt_tokens"]
        for more in ((), ("--system", "be brief"))
    )
    assert system > plain


def test_a_kept_plan_runs_as_it_was_planned(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    first = residency("run", model_path, "hello", *RUN_OPTIONS, "--plan-out", path)
    again = residency("run", path, "hello", "--max-tokens", 8)
    assert first.stdout.split("ran  ")[0] == again.stdout.split("ran  ")[0]


def test_ctrl_c_ends_an_answer_with_what_was_measured(
    residency: Residency, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at_piece(3, monkeypatch)
    result = residency("run", model_path, "hello", "--memory", "300MiB", "--context", 256, "--max-tokens", 200)
    assert RAN_LINES.search(result.stdout) and result.exit_code == 130


def test_ctrl_c_is_told_in_json(residency: Residency, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at_piece(3, monkeypatch)
    result = residency("run", model_path, "hello", "--memory", "300MiB", "--max-tokens", 200, "--json")
    assert json.loads(result.stdout)["finish_reason"] == "interrupted"


def test_ctrl_c_before_the_first_token_says_nothing(
    residency: Residency, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at_piece(1, monkeypatch)
    result = residency("run", model_path, "hello", *RUN_OPTIONS)
    assert result.exit_code == 130 and result.stderr.strip() == ""


def interrupt_at_piece(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if somebody pressed Ctrl-C while the piece of that number is made."""
    pieces: list[str] = []
    make_next = Stream.__next__

    def interrupted_next(stream: Stream) -> str:
        if len(pieces) == number - 1:
            signal.raise_signal(signal.SIGINT)
        pieces.append(make_next(stream))
        return pieces[-1]

    monkeypatch.setattr(Stream, "__next__", interrupted_next)


def test_a_closed_pipe_is_no_fault(command: list[str], model_path: Path) -> None:
    with subprocess.Popen(
        [*command, "run", str(model_path), "hello", "--memory", "300MiB"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_a_conversation_on_a_terminal_ends_with_ctrl_d(command: list[str], model_path: Path) -> None:
    master, slave = os.openpty()
    os.write(master, b"hello\n\x04")
    result = subprocess.run(
        [*command, "run", str(model_path), "--memory", "300MiB", "--max-tokens", "4"],
        stdin=slave,
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(slave)
    os.close(master)
    assert RAN_LINES.search(result.stdout) and (result.returncode, result.stderr) == (0, "")


def test_a_run_imports_nothing_that_it_does_not_need(command: list[str]) -> None:
    heavy = ("numba", "llvmlite", "torch", "rich", "jinja2", "tokenizers", "huggingface_hub", "psutil")
    script = f"import sys, residency.cli.run; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([command[0], "-c", script], capture_output=True, text=True)
    assert result.stdout == "[]\n"
