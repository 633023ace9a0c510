"""A server that a team leaves running: mixed load on a third of the memory that it asks for."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from residency.engine.calibrate import runtime_bytes
from residency.planner import Plan
from residency.server.intake import body_bytes_for
from residency.spec import open_checkpoint
from support.cgroups import entering, memory_cgroup
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.models import small_model

CONTEXT_TOKENS, SEQUENCES = 1024, 12
SOAK_SECONDS, REQUESTS_PER_SECOND = 15.0, 50.0
SYSTEM = "You are the same for everybody. " * 8
QUESTIONS = [f"Question {number}: " + "why? " * (3 + 11 * number) for number in range(8)]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["red", "green"]}}}


@dataclass
class Soaked:
    """What came of it."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    preemptions: float = 0
    left: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A third of the pages that all sequences together ask for, and the rest as it is measured."""
    path = write_gguf(
        tmp_path_factory.mktemp("models") / "soak.gguf", small_model("qwen3", context_tokens=1024), "Q8_0"
    )
    runtime = runtime_bytes(
        open_checkpoint(path), program=f"residency.server.footprint {body_bytes_for(CONTEXT_TOKENS)}"
    )
    options: Any = {"context_tokens": CONTEXT_TOKENS, "max_sequences": SEQUENCES, "runtime_bytes": runtime}
    demand = plan_of(path, **options).memory
    budget_bytes = demand.peak - demand.kv_cache * 2 // 3
    return plan_of(path, **options, oversubscribe=True, budget_bytes=budget_bytes)


@contextmanager
def serving(plan: Plan, folder: Path, cgroup: Path | None = None) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The command line serving the plan, in a process of its own; its address."""
    (folder / "plan.json").write_text(plan.to_json())
    command = [sys.executable, "-m", "residency", "serve", str(folder / "plan.json")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [*command, "--port", "0", "--json", "--queue", "16", "--name", "small"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        preexec_fn=entering(cgroup),
    ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], process
        finally:
            process.send_signal(signal.SIGTERM)


async def soak(url: str, pid: int) -> Soaked:
    """Load for SOAK_SECONDS, with answers compared to those of an idle server, then silence."""
    soaked, draw = Soaked(), random.Random(1)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        expected = [await answer(client, question) for question in QUESTIONS]
        watcher = asyncio.create_task(watch(pid, soaked.resident_bytes))
        visitors = []
        until = time.monotonic() + SOAK_SECONDS
        while time.monotonic() < until:
            visitors.append(asyncio.create_task(visit(client, draw, expected, soaked)))
            await asyncio.sleep(draw.expovariate(REQUESTS_PER_SECOND))
        await asyncio.gather(*visitors)
        await asyncio.sleep(0.5)
        watcher.cancel()
        root = url.removesuffix("/v1")
        soaked.left = (await client.get(f"{root}/memory")).json()["kv_cache"]
        lines = (await client.get(f"{root}/metrics")).text.splitlines()
        soaked.preemptions = sum(float(line.split()[1]) for line in lines if line.startswith("residency_preemptions_"))
    return soaked


async def visit(client: httpx.AsyncClient, draw: random.Random, expected: list[str], soaked: Soaked) -> None:
    """One client, of some kind."""
    kind = draw.choices(["whole", "gone", "half", "huge", "schema", "several"], [6, 2, 2, 1, 1, 1])[0]
    number = draw.randrange(len(QUESTIONS))
    if kind == "gone":
        with suppress(httpx.TimeoutException):
            await client.post("/chat/completions", json=asked(QUESTIONS[number]), timeout=draw.uniform(0.01, 0.3))
        return
    if kind == "half":
        body = {**asked(QUESTIONS[number]), "stream": True}
        async with client.stream("POST", "/chat/completions", json=body) as got:
            soaked.statuses[got.status_code] += 1
            async for _ in got.aiter_lines():
                if draw.random() < 0.02:
                    return
        return
    kinds: dict[str, dict[str, Any]] = {
        "huge": {"messages": [{"role": "user", "content": "x" * draw.choice([5_000, 100_000])}]},
        "schema": {"response_format": SCHEMA, "temperature": 1.0, "max_tokens": 20},
        "several": {"n": 3, "temperature": 1.0, "max_tokens": 30},
    }
    salt = draw.choice(["shared", f"own {draw.random()}"])
    changes = {"cache_salt": salt, **kinds.get(kind, {})}
    got = await client.post("/chat/completions", json={**asked(QUESTIONS[number]), **changes})
    soaked.statuses[got.status_code] += 1
    if got.status_code != 200:
        return
    text = got.json()["choices"][0]["message"]["content"]
    if kind == "whole" and text != expected[number]:
        soaked.wrong.append(text)
    if kind == "schema" and text.strip() not in ('"red"', '"green"'):
        soaked.wrong.append(text)
    if kind == "huge":
        soaked.wrong.append("a prompt beyond the context was answered")


def asked(question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"model": "small", "messages": messages, "temperature": 0, "max_tokens": 200, "ignore_eos": True}


async def answer(client: httpx.AsyncClient, question: str) -> str:
    got = await client.post("/chat/completions", json=asked(question))
    text: str = got.json()["choices"][0]["message"]["content"]
    return text


async def watch(pid: int, resident_bytes: list[int]) -> None:
    """Sample the process's resident memory."""
    while True:
        status = Path(f"/proc/{pid}/status").read_text()
        resident_bytes.append(int(status.split("VmRSS:")[1].split()[0]) * 1024)
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def soaked(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Soaked:
    """The server after a soak, in a memory cgroup of exactly the budget where one can be made."""
    folder = tmp_path_factory.mktemp("soak")
    with serving(plan, folder) as (url, process):
        result = asyncio.run(soak(url, process.pid))
    result.exit_code = process.returncode
    return result


def test_resident_memory_is_under_the_budget_at_every_moment(soaked: Soaked, plan: Plan) -> None:
    assert max(soaked.resident_bytes) <= plan.budget_bytes


def test_no_answer_is_wrong(soaked: Soaked) -> None:
    assert soaked.wrong == []


def test_a_request_is_answered_or_told_why_not(soaked: Soaked) -> None:
    assert set(soaked.statuses) <= {200, 400, 413, 503} and soaked.statuses[200] > 50


def test_all_pages_are_free_at_the_end(soaked: Soaked) -> None:
    assert soaked.left["used_pages"] == 0


def test_the_load_was_more_than_fits(soaked: Soaked) -> None:
    assert soaked.preemptions > 0 or soaked.statuses[503] > 0


def test_the_server_ends_as_it_was_asked_to(soaked: Soaked) -> None:
    assert soaked.exit_code == 0


def test_a_soak_survives_in_a_cgroup_of_exactly_the_budget(plan: Plan, tmp_path: Path) -> None:
    with memory_cgroup(plan.budget_bytes) as cgroup, serving(plan, tmp_path, cgroup) as (url, process):
        result = asyncio.run(soak(url, process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and result.wrong == []
