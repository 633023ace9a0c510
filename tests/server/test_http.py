"""What the server promises beside answers: keys, bounds, headers, health, metrics, and an end without loss."""

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from residency.planner import Plan
from residency.server.app import Limits
from residency.server.serving import bound_socket
from support.engines import plan_of
from support.servers import Running, running_server

LONG: dict[str, Any] = {"model": "small", "prompt": "hello", "max_tokens": 4000, "ignore_eos": True, "temperature": 0}
SHORT = {**LONG, "max_tokens": 4}


@pytest.fixture(scope="module")
def long_plan(small_gguf: Path) -> Plan:
    """Two sequences, with answers that take a while."""
    return plan_of(small_gguf, context_tokens=512, chunk_tokens=64, max_sequences=2)


@pytest.fixture(scope="module")
def busy(long_plan: Plan) -> Iterator[Running]:
    """A server of two sequences with a queue of two."""
    with running_server(long_plan, queue_limit=2) as running:
        yield running


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it holds within ten seconds."""
    until = time.monotonic() + 10
    while not holds() and time.monotonic() < until:
        time.sleep(0.005)
    return holds()


def is_idle(server: Running) -> bool:
    loop = server.service.metrics().loop
    return loop.running == loop.waiting == loop.used_pages == 0


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def begin_stream(server: Running, **asked: Any) -> socket.socket:
    """A connection on which an answer has begun."""
    connection = connect(server)
    body = json.dumps({**LONG, "stream": True, **asked})
    head = f"POST /v1/completions HTTP/1.1\r\nhost: small\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())
    connection.recv(1)
    return connection


def test_a_client_that_goes_away_frees_its_pages(busy: Running) -> None:
    begin_stream(busy).close()
    assert eventually(lambda: is_idle(busy))


def test_a_client_that_goes_away_while_it_waits_for_a_whole_answer_frees_its_pages(busy: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{busy.url}/v1/completions", json={**LONG, "n": 2}, timeout=0.02)
    assert eventually(lambda: is_idle(busy))


def test_a_full_queue_says_when_to_come_again(busy: Running) -> None:
    with closing(begin_stream(busy)), closing(begin_stream(busy)):
        answer = httpx.post(f"{busy.url}/v1/completions", json={**SHORT, "prompt": ["a"] * 8})
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1


def test_a_refused_request_leaves_nothing_behind(busy: Running) -> None:
    httpx.post(f"{busy.url}/v1/completions", json={**SHORT, "prompt": ["a"] * 60})
    assert eventually(lambda: is_idle(busy))


def test_an_error_has_openai_s_shape(server: Running) -> None:
    error = httpx.post(f"{server.url}/v1/completions", json={"model": "small"}).json()["error"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "The body is not JSON"),
        (b"", "The body is not JSON"),
        (b"\xff\xfe", "The body is not JSON"),
        (b"[]", "Input should be an object"),
        (b"[" * 50_000, "The body is not JSON"),
        (b'{"model": "small", "prompt": "a", "temperature": NaN}', "temperature"),
    ],
)
def test_a_body_that_is_no_request_is_refused(server: Running, body: bytes, message: str) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", content=body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_a_body_that_is_too_large_is_refused(server: Running) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={**SHORT, "prompt": "a" * 200_000})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"


def test_a_body_that_does_not_say_its_length_is_measured(server: Running) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield b"a" * 10_000

    assert httpx.post(f"{server.url}/v1/completions", content=parts()).status_code == 413


@pytest.mark.parametrize("head", [b"GET /" + b"a" * 200_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000])
def test_a_connection_with_a_head_without_end_is_closed(server: Running, head: bytes) -> None:
    with closing(connect(server)) as connection, pytest.raises(OSError):
        for _ in range(100):
            connection.sendall(head)
            time.sleep(0.005)


def test_an_unknown_path_is_not_found_in_openai_s_shape(server: Running) -> None:
    answer = httpx.get(f"{server.url}/v1/engines")
    assert answer.status_code == 404 and "error" in answer.json()


def test_an_unknown_method_is_not_allowed_in_openai_s_shape(server: Running) -> None:
    answer = httpx.get(f"{server.url}/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_every_answer_has_a_request_id(server: Running) -> None:
    assert httpx.get(f"{server.url}/health").headers["x-request-id"].startswith("req_")


def test_a_request_id_of_the_client_is_kept(server: Running) -> None:
    answer = httpx.get(f"{server.url}/health", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"


def test_a_request_id_that_would_break_the_log_is_replaced(server: Running) -> None:
    answer = httpx.get(f"{server.url}/health", headers={"x-request-id": "mine 1"})
    assert answer.headers["x-request-id"].startswith("req_")


def test_the_log_has_a_line_of_each_request(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "residency.server"):
        httpx.post(f"{server.url}/v1/completions", json=SHORT, headers={"x-request-id": "logged"})
        eventually(lambda: bool(caplog.records))
    fields = vars(caplog.records[0])["fields"]
    assert (fields["request_id"], fields["status"], fields["completion_tokens"]) == ("logged", 200, 4)


def test_small_answers_are_sent_without_delay() -> None:
    """asyncio switches Nagle's algorithm off on sockets whose protocol is named; 40 ms for each small write else."""
    with bound_socket("127.0.0.1", 0) as bound:
        assert bound.proto == socket.IPPROTO_TCP


def test_the_tokens_around_a_text_are_told(server: Running) -> None:
    told = httpx.get(f"{server.url}/tokenizer_info").json()
    end = httpx.post(f"{server.url}/tokenize", json={"prompt": told["eos_token"], "add_special_tokens": False}).json()
    assert set(end["tokens"]) <= server.engine.tokenizer.eos_ids


def test_the_models_are_listed(server: Running) -> None:
    assert [card["id"] for card in httpx.get(f"{server.url}/v1/models").json()["data"]] == ["small"]


def test_tokens_become_the_text_that_they_came_from(server: Running) -> None:
    tokens = httpx.post(f"{server.url}/tokenize", json={"prompt": "the thing"}).json()["tokens"]
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": tokens}).json() == {"prompt": "the thing"}


def test_a_conversation_is_tokenized_as_chat_counts_it(server: Running) -> None:
    messages = [{"role": "user", "content": "hello"}]
    count = httpx.post(f"{server.url}/tokenize", json={"messages": messages}).json()["count"]
    asked = {"model": "small", "messages": messages, "max_tokens": 1}
    usage = httpx.post(f"{server.url}/v1/chat/completions", json=asked).json()["usage"]
    assert usage["prompt_tokens"] == count


def test_the_plan_is_the_one_that_runs(server: Running) -> None:
    assert httpx.get(f"{server.url}/plan").json()["context_tokens"] == 256


def test_memory_is_told_by_class(server: Running) -> None:
    classes = httpx.get(f"{server.url}/memory").json()["classes"]
    assert set(classes) == {"weights", "kv_cache", "activations", "runtime"}


def test_metrics_count_the_answers(server: Running) -> None:
    def ended() -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        name = 'residency_requests_ended_total{reason="length"}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = ended()
    httpx.post(f"{server.url}/v1/completions", json=SHORT)
    assert ended() == before + 1


def test_a_failed_service_is_told_by_its_health(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(server.service), "failure", RuntimeError("no more"))
    answer = httpx.get(f"{server.url}/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "failed"})


def test_with_keys_nobody_is_answered_without_one(long_plan: Plan) -> None:
    with running_server(long_plan, limits=Limits(api_keys=("right", "other"))) as server:
        statuses = [
            httpx.get(f"{server.url}/v1/models", headers=headers).status_code
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer right"})
        ]
    assert statuses == [401, 401, 200]


def test_health_is_told_without_a_key(long_plan: Plan) -> None:
    with running_server(long_plan, limits=Limits(api_keys=("right",))) as server:
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_web_pages_of_an_allowed_origin_may_ask(long_plan: Plan) -> None:
    limits = Limits(cors_origins=("http://localhost:3000",))
    asks = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    with running_server(long_plan, limits=limits) as server:
        answer = httpx.options(f"{server.url}/v1/chat/completions", headers=asks)
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_more_requests_than_may_be_open_are_refused(long_plan: Plan) -> None:
    with running_server(long_plan, limits=Limits(max_requests=1)) as server, closing(begin_stream(server)):
        status = httpx.post(f"{server.url}/v1/completions", json=SHORT).status_code
    assert status == 503


def test_a_server_that_ends_finishes_what_it_began(long_plan: Plan) -> None:
    with running_server(long_plan) as server:
        connection = begin_stream(server, max_tokens=200)
    with closing(connection), connection.makefile("rb") as answer:
        assert answer.read().rstrip().endswith(b"0")  # the last chunk of a body in chunks
