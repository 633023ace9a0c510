"""`residency serve` and `residency batch` from the command line."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command import Residency

SMALL = ("--context", "128", "--max-sequences", "2", "--memory", "200MiB")


@pytest.fixture
def serving(command: list[str], model_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """The server of the small model, in a process of its own."""
    words = [*command, "serve", str(model_path), "--port", "0", *SMALL, "--api-key", "right"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_server_prints_its_plan_then_its_address_and_ends_when_asked_to(serving: "subprocess.Popen[str]") -> None:
    assert serving.stdout is not None
    lines = [serving.stdout.readline()]
    while lines[-1] and not lines[-1].startswith("serves"):
        lines.append(serving.stdout.readline())
    url = lines[-1].split(" at ")[1].split(" · ")[0]
    request = urllib.request.Request(f"{url}/models", headers={"authorization": "Bearer right"})
    models = json.loads(urllib.request.urlopen(request, timeout=10).read())
    serving.send_signal(signal.SIGTERM)
    served = (lines[0][:4], models["data"][0]["id"], serving.wait(30))
    assert served == ("plan", "small", 0)


def test_a_port_that_is_taken_is_refused(residency: Residency, model_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = residency("serve", model_path, "--port", taken.getsockname()[1], *SMALL)
    assert result.exit_code == 2 and "cannot be listened at: Address already in use" in result.stderr


def test_a_budget_that_is_too_small_for_a_server_is_refused_with_what_is_missing(
    residency: Residency, model_path: Path
) -> None:
    result = residency("serve", model_path, "--port", 0, "--memory", "20MiB")
    assert result.exit_code == 2 and "too little" in result.stderr


def test_swapping_to_a_disk_that_nobody_measured_is_refused(residency: Residency, model_path: Path) -> None:
    result = residency("serve", model_path, "--port", 0, "--swap", "10MiB", *SMALL)
    assert result.exit_code == 2 and "has no disk tier" in result.stderr


def test_keeping_prompts_on_a_disk_that_nobody_measured_is_refused(
    residency: Residency, model_path: Path, tmp_path: Path
) -> None:
    result = residency("serve", model_path, "--port", 0, "--kv-store", tmp_path, *SMALL)
    assert result.exit_code == 2 and "has no disk tier" in result.stderr


def test_without_its_libraries_serve_says_how_to_install_them(
    residency: Residency, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "residency.server.serving", raising=False)
    result = residency("serve", model_path)
    assert result.exit_code == 2 and "pip install 'residency[serve]'" in result.stderr


def write_batch(path: Path, **changes: Any) -> Path:
    body = {"model": "small", "prompt": "hello", "max_tokens": 3}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body, **changes}
    path.write_text(json.dumps(line) + "\n")
    return path


def test_a_batch_is_answered_once(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    words = ("batch", model_path, write_batch(tmp_path / "in"), tmp_path / "out", "--json", *SMALL)
    answered = [json.loads(residency(*words).stdout)["answered"] for _ in range(2)]
    assert answered == [1, 0]


def test_a_batch_in_words_says_how_much_was_done(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    result = residency("batch", model_path, write_batch(tmp_path / "in"), tmp_path / "out", *SMALL)
    assert "1 of 1 requests" in result.stdout


def test_results_do_not_go_into_the_file_of_requests(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    requests = write_batch(tmp_path / "in")
    assert residency("batch", model_path, requests, requests).exit_code == 2


def test_a_line_that_is_no_request_is_named(residency: Residency, model_path: Path, tmp_path: Path) -> None:
    requests = write_batch(tmp_path / "in", custom_id=7)
    result = residency("batch", model_path, requests, tmp_path / "out")
    assert result.exit_code == 2 and "line 1 has no custom_id" in result.stderr
