"""A file of requests, answered into another."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from residency.errors import FileError, ServiceError
from residency.server.batch import Batch, Results, Tally, read_batch
from residency.server.desk import Desk
from residency.server.model import Model
from residency.server.watch import Unobserved
from support.servers import Running

BODY = {"model": "small", "prompt": "hello", "max_tokens": 3}


def line(custom_id: str, **changes: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": BODY, **changes}


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


@pytest.fixture
def model(server: Running) -> Iterator[Model]:
    with Model.of(server.engine, names=("small",)) as opened:
        yield opened


def run(server: Running, model: Model, requests: Path, results: Path) -> Tally:
    """Answers what has no result."""
    with Results(results) as kept:
        batch = Batch(
            desk=Desk(server.service, model, Unobserved()),
            results=kept,
            tally=Tally(total=0, done=len(kept.custom_ids)),
            at_a_time=3,
            progress=lambda tally: None,
        )
        return asyncio.run(batch.run(read_batch(requests)))


def answered(results: Path) -> dict[str, int]:
    """Statuses by custom_id."""
    values = [json.loads(each) for each in results.read_text().splitlines()]
    return {value["custom_id"]: value["response"]["status_code"] for value in values}


def test_every_request_has_a_result(server: Running, model: Model, tmp_path: Path) -> None:
    requests = write(tmp_path / "in", [line(str(number)) for number in range(7)])
    run(server, model, requests, tmp_path / "out")
    assert answered(tmp_path / "out") == {str(number): 200 for number in range(7)}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"url": "/v1/embeddings"}, 400),
        ({"method": "GET"}, 400),
        ({"body": None}, 400),
        ({"body": {**BODY, "model": "other"}}, 404),
        ({"body": {**BODY, "prompt": ""}}, 400),
    ],
)
def test_what_cannot_be_answered_has_its_error_as_result(
    server: Running, model: Model, tmp_path: Path, changes: dict[str, Any], status: int
) -> None:
    requests = write(tmp_path / "in", [line("bad", **changes), line("good")])
    run(server, model, requests, tmp_path / "out")
    assert answered(tmp_path / "out") == {"bad": status, "good": 200}


def test_what_has_a_result_is_not_answered_again(server: Running, model: Model, tmp_path: Path) -> None:
    requests = write(tmp_path / "in", [line("a"), line("b")])
    run(server, model, requests, tmp_path / "out")
    before = (tmp_path / "out").read_bytes()
    run(server, model, requests, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == before


@pytest.mark.parametrize("torn_bytes", [1, 30, 10_000])
def test_a_torn_last_line_is_answered_again(server: Running, model: Model, tmp_path: Path, torn_bytes: int) -> None:
    requests = write(tmp_path / "in", [line("a"), line("b")])
    run(server, model, requests, tmp_path / "out")
    whole = (tmp_path / "out").read_bytes()
    (tmp_path / "out").write_bytes(whole[:-torn_bytes])
    run(server, model, requests, tmp_path / "out")
    assert answered(tmp_path / "out") == {"a": 200, "b": 200}


def test_a_batch_ends_where_the_service_has_failed(
    server: Running, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = write(tmp_path / "in", [line("a")])
    monkeypatch.setattr(type(server.service), "failure", RuntimeError("no more"))
    monkeypatch.setattr(server.service, "submit", lambda *arguments: exec("raise ServiceError", globals()))
    with pytest.raises(ServiceError, match="no more"):
        run(server, model, requests, tmp_path / "out")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"custom_id": "a"}', "{"], "line 2 is not JSON"),
        (["[]"], "line 1 is no JSON object"),
        (['{"method": "POST"}'], "line 1 has no custom_id"),
        (['{"custom_id": "a"}'] * 2, "line 2: the custom_id 'a' has come before"),
    ],
)
def test_a_file_that_is_no_batch_is_refused_with_the_line(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "in"
    path.write_text("\n".join(lines))
    with pytest.raises(FileError, match=message):
        list(read_batch(path))


@pytest.mark.parametrize("text", ['{"some": "thing"}\n', "a letter", '{"id": "batch_7"'])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "out").write_text(text)
    with pytest.raises(FileError):
        Results(tmp_path / "out")
    assert (tmp_path / "out").read_text() == text
