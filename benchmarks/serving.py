"""Many clients of one server: residency's, or any that speaks OpenAI's completions and takes prompts of tokens.

    python benchmarks/serving.py MODEL.gguf|http://HOST:PORT[/v1] [...] [--tasks overhead,together,prefix,static,beside]

A MODEL is served by `residency serve` for the time of its measurement; a URL is asked as it is. Tables are printed, and
medians are written to benchmarks/results/<machine>/serving-<name>.json, where those of tasks that are left out stay. A
peer needs `ignore_eos`, or its answers may be shorter than asked for; it is told where they are. This client takes part
of the same processors, from all alike.

overhead: of residency alone: what a step of 16 sequences that decode costs beside its kernels. The scheduler is the
          part of the steps' time that no kernel runs in: scheduling, inputs, choosing and telling tokens. HTTP is the
          processor time of the event loop's thread, which runs beside kernels and takes a processor from them.
together: 16 requests of 256 + 128 tokens at once over one alone, in output tokens/s.
prefix:   time to the first token of 16 prompts of 1,024 + 32 tokens one after another, those that begin alike beside
          those that do not.
static:   96 answers of 16 to 512 tokens (log-uniform, most are short): at once, which is continuous batching; static,
          in groups of 16 which nobody joins and in which all are computed until the longest has ended, as G.-I. Yu et
          al. (Orca, OSDI 2022) describe what they compare with; and shrinking, where nobody joins either, but what has
          ended is computed no more: a kinder rule than static batching has, and cheap where steps of few are quick.
beside:   time to the first token of a short prompt that comes while one of 4,096 tokens is computed, in chunks.
"""

import argparse
import asyncio
import json
import math
import random
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from peers import HERE, machine
from tasks import prompt_of

TASKS = ("overhead", "together", "prefix", "static", "beside")
CLIENTS = 16
CONTEXT_TOKENS = 4352
OVERHEAD_SECONDS = 3.0
SPENT = ("step_seconds", "compute_seconds", "event_loop_seconds")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One answer, as a client saw it."""

    first_seconds: float
    seconds: float
    tokens: int


class Reply(asyncio.Protocol):
    """What comes over a connection until its end, kept as it comes: a client that costs little beside the server."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.first_at = math.inf  # when the first event came
        self.is_complete = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """A part, often one event."""
        self.parts.append(data)
        if self.first_at == math.inf and b"data: {" in data:
            self.first_at = time.perf_counter()

    def connection_lost(self, error: Exception | None) -> None:
        """All has come."""
        self.is_complete.set_result(None)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that listens."""

    name: str
    url: str  # with /v1
    model: str

    async def ask(self, prompt: Sequence[int], max_tokens: int, *, after_seconds: float = 0.0) -> Timing:
        """One streamed completion."""
        await asyncio.sleep(after_seconds)
        body = json.dumps(
            {
                "model": self.model,
                "prompt": list(prompt),
                "max_tokens": max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        place = urlsplit(self.url)
        head = f"POST {place.path}/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        started = time.perf_counter()
        transport, reply = await asyncio.get_running_loop().create_connection(Reply, place.hostname, place.port)
        transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        await reply.is_complete
        seconds = time.perf_counter() - started
        data = b"".join(reply.parts)
        usage = re.findall(rb'"completion_tokens"\s*:\s*(\d+)', data)
        if not usage:
            raise SystemExit(f"{self.name} did not answer: {data[-300:].decode(errors='replace')}")
        return Timing(first_seconds=reply.first_at - started, seconds=seconds, tokens=int(usage[-1]))

    async def ask_all(self, asked: Sequence[tuple[Sequence[int], int]]) -> list[Timing]:
        """Several at once."""
        return await asyncio.gather(*(self.ask(prompt, max_tokens) for prompt, max_tokens in asked))

    def counts(self) -> dict[str, float]:
        """What residency's /metrics counts; empty for another server."""
        root = self.url.removesuffix("/v1")
        try:
            text = urllib.request.urlopen(f"{root}/metrics", timeout=5).read().decode()
        except OSError:
            return {}
        return {name: float(value) for name, value in re.findall(r"^residency_(\w+) (\S+)$", text, re.MULTILINE)}


async def overhead(server: Server, seed: int) -> dict[str, float]:
    """See the top. Counts are read twice while all sequences decode; reading them costs the event loop 3 ms."""
    if "event_loop_seconds_total" not in server.counts():
        return {}
    answers = asyncio.gather(*(server.ask(prompt_of(16, seed + client), 1024) for client in range(CLIENTS)))
    await asyncio.sleep(OVERHEAD_SECONDS / 3)
    before = server.counts()
    await asyncio.sleep(OVERHEAD_SECONDS)
    after = server.counts()
    await answers
    spent = {name: after[f"{name}_total"] - before[f"{name}_total"] for name in ("steps", *SPENT, "sampled_tokens")}
    if spent["sampled_tokens"] != CLIENTS * spent["steps"]:
        raise SystemExit(f"{server.name}: not all {CLIENTS} sequences decoded; nothing else may ask it meanwhile")
    steps, kernels, http = (spent[name] for name in SPENT)
    return {
        "step_milliseconds": 1000 * steps / spent["steps"],
        "scheduler_share_of_step": (steps - kernels) / steps,
        "http_share_of_step": http / steps,
        "overhead_share_of_step": (steps - kernels + http) / steps,
    }


async def together(server: Server, seed: int) -> dict[str, float]:
    """See the top."""
    prompts = [prompt_of(256, seed + client) for client in range(CLIENTS + 1)]
    alone = await server.ask(prompts[-1], 128)
    started = time.perf_counter()
    all_of_them = await server.ask_all([(prompt, 128) for prompt in prompts[:-1]])
    seconds = time.perf_counter() - started
    one, many = alone.tokens / alone.seconds, sum(each.tokens for each in all_of_them) / seconds
    return {"one_tokens_per_second": one, "together_tokens_per_second": many, "together_over_one": many / one}


async def prefix(server: Server, seed: int) -> dict[str, float]:
    """See the top."""
    shared = prompt_of(1024, seed)
    await server.ask([*shared, *prompt_of(32, seed + 1)], 1)
    medians = {}
    for name, begins in (
        ("shared", [shared] * CLIENTS),
        ("own", [prompt_of(1024, seed + 9 + i) for i in range(CLIENTS)]),
    ):
        times = [await server.ask([*begin, *prompt_of(32, seed + 100 + i)], 2) for i, begin in enumerate(begins)]
        medians[name] = statistics.median(each.first_seconds for each in times)
    return {
        "own_prefix_first_token_seconds": medians["own"],
        "shared_prefix_first_token_seconds": medians["shared"],
        "own_over_shared": medians["own"] / medians["shared"],
    }


async def static(server: Server, seed: int) -> dict[str, float]:
    """See the top."""
    draw = random.Random(seed)
    lengths = [round(math.exp(draw.uniform(math.log(16), math.log(512)))) for _ in range(6 * CLIENTS)]
    groups = [lengths[first : first + CLIENTS] for first in range(0, len(lengths), CLIENTS)]
    seconds = {
        "continuous": await seconds_of(server, [lengths], seed),
        "static": await seconds_of(server, [[max(group)] * CLIENTS for group in groups], seed + 1000),
        "shrinking": await seconds_of(server, groups, seed + 2000),
    }
    found = {f"{name}_tokens_per_second": sum(lengths) / each for name, each in seconds.items()}
    for name in ("static", "shrinking"):
        found[f"continuous_over_{name}"] = seconds[name] / seconds["continuous"]
    return found


async def seconds_of(server: Server, groups: Sequence[Sequence[int]], seed: int) -> float:
    """How long answers of these lengths take, group after group."""
    started = time.perf_counter()
    for number, lengths in enumerate(groups):
        asked = [(prompt_of(64, seed + 100 * number + i), length) for i, length in enumerate(lengths)]
        for (_, length), timing in zip(asked, await server.ask_all(asked), strict=True):
            if timing.tokens != length:
                raise SystemExit(f"{server.name} answered {timing.tokens} tokens where {length} were asked for")
    return time.perf_counter() - started


async def beside(server: Server, seed: int) -> dict[str, float]:
    """See the top. The chunk is the running plan's; for another server, 512 tokens."""
    long_prompt = prompt_of(4096, seed)
    alone = await server.ask(long_prompt, 1)
    chunk_tokens = chunk_of(server)
    chunk_seconds = alone.first_seconds * chunk_tokens / 4096
    waits = []
    for part in (0.2, 0.4, 0.6):
        arrival_seconds = part * alone.first_seconds
        _, short = await asyncio.gather(
            server.ask(prompt_of(4096, seed + round(100 * part)), 1),
            server.ask(prompt_of(16, seed + round(1000 * part)), 1, after_seconds=arrival_seconds),
        )
        waits.append(short.first_seconds)
    return {
        "long_prompt_first_token_seconds": alone.first_seconds,
        "chunk_tokens": chunk_tokens,
        "short_prompt_first_token_seconds": max(waits),
        "short_prompt_chunks": max(waits) / chunk_seconds,
    }


def chunk_of(server: Server) -> int:
    """Tokens that are computed in one step at most."""
    try:
        plan = urllib.request.urlopen(f"{server.url.removesuffix('/v1')}/plan", timeout=5).read()
        return int(json.loads(plan)["chunk_tokens"])
    except (OSError, ValueError, KeyError):
        return 512


@contextmanager
def served(target: str, memory: str) -> Iterator[Server]:
    """The server at a URL, or one of the model for the time of the block."""
    if target.startswith("http"):
        url = target.rstrip("/").removesuffix("/v1") + "/v1"
        models = json.loads(urllib.request.urlopen(f"{url}/models", timeout=30).read())
        yield Server(name=urlsplit(url).netloc.replace(":", "-"), url=url, model=models["data"][0]["id"])
        return
    command = [sys.executable, "-m", "residency", "serve", target, "--port", "0", "--json", "--memory", memory]
    command += ["--context", str(CONTEXT_TOKENS), "--max-sequences", str(CLIENTS), "--queue", "256"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{target} could not be served; try: {' '.join(command[2:])}")
            ready = json.loads(line)
            yield Server(name=Path(target).stem, url=ready["url"], model=ready["model"])
        finally:
            process.terminate()


def measure(server: Server, tasks: Sequence[str], rounds: int) -> dict[str, Any]:
    """The median of each figure over the rounds, and the rounds."""
    asyncio.run(server.ask(prompt_of(16, 7), 8))
    runs = []
    for number in range(rounds):
        found: dict[str, float] = {}
        for task in tasks:
            print(f"{server.name}: round {number + 1} of {rounds}, {task}", file=sys.stderr)
            found |= asyncio.run(globals()[task](server, 1000 * (number + 1)))
        runs.append(found)
    return {"medians": {name: statistics.median(run[name] for run in runs) for name in runs[0]}, "runs": runs}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="MODEL|URL")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="2GiB", help="budget of a MODEL's server")
    asked = parser.parse_args()
    tasks = asked.tasks.split(",")
    if not set(tasks) <= set(TASKS) or asked.rounds < 1:
        parser.error(f"--tasks takes some of {','.join(TASKS)}, and --rounds at least 1")
    here = machine()
    for target in asked.targets:
        with served(target, asked.memory) as server:
            result = measure(server, tasks, asked.rounds)
        print(f"\n{server.name}, medians of {asked.rounds} rounds")
        for name, value in result["medians"].items():
            print(f"  {name.replace('_', ' '):36}{value:10.3f}")
        folder = HERE / "results" / str(here["name"])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"serving-{server.name}.json"
        written = {"server": server.name, "machine": here, "clients": CLIENTS, **result}
        if path.exists():
            written["medians"] = json.loads(path.read_text())["medians"] | result["medians"]
        path.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
