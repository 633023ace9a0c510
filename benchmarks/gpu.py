"""A CUDA device measured: decode, batches, prefill, attention and offload, beside transformers on the same card.

    PYTHONPATH=src python benchmarks/gpu.py [--tables correct,decode,...] [--models 1b,8b,...] [--minutes 9]

Weights are made up, of the published models' shapes: what is written has no meaning, how fast it is has. Shares are of
the copy bandwidth and the matrix rates that are measured in the same run. Each row is kept as soon as it is there, in
benchmarks/results/<device>/gpu.json, and one that is there is not measured again: where a card is at hand for minutes
at a time, the same command goes on where it stopped. A row that fails says why, and the next one follows.
"""

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_peers import median_seconds, peers

from residency.engine.cuda.executor import CudaExecutor
from residency.engine.sampler import Draw, Sampling
from residency.errors import MachineError
from residency.hardware.host import read_host
from residency.kernels.attention import attention
from residency.kernels.device import DeviceStep, StepShape
from residency.kernels.rotary import LayerPages
from residency.ledger import KvPages
from residency.ledger.kv import PageGroup
from residency.models.made_up import made_up_spec
from residency.planner import Plan
from residency.planner.cost import Step
from residency.planner.device_buffers import most_parts
from residency.planner.device_needs import DeviceRequest
from residency.planner.device_speed import LinkedDevice, cost_of, device_seconds, elsewhere, workload
from residency.planner.explain import MEANINGLESS
from residency.planner.on_device import plan_on_device, runtime_beside
from residency.planner.plan import PAGE_TOKENS
from residency.scheduler import Batch
from residency.scheduler.batch import BatchEntry
from residency.spec.model import AttentionSpec, ModelSpec
from residency.spec.state import kv_format_named
from residency.store.device_rate import DeviceFigures, measure, require_cuda

MODELS = {
    "1b": "meta-llama/Llama-3.2-1B",
    "7b": "meta-llama/Llama-2-7b-hf",
    "8b": "meta-llama/Llama-3.1-8B",
    "13b": "meta-llama/Llama-2-13b-hf",
    "70b": "meta-llama/Llama-3.1-70B",
    "mixtral": "mistralai/Mixtral-8x7B-v0.1",
    "qwen3-moe": "Qwen/Qwen3-30B-A3B",
}
MIXTURES = ("mixtral", "qwen3-moe")
REACH = {  # shares of the copy bandwidth that decode is to reach
    ("1b", "source"): 0.75, ("1b", "int8"): 0.65, ("1b", "int4"): 0.55,
    ("7b", "source"): 0.88, ("7b", "int8"): 0.80, ("7b", "int4"): 0.70,
    ("8b", "source"): 0.88, ("8b", "int8"): 0.80, ("8b", "int4"): 0.70,
    ("70b", "int4"): 0.75,
}  # fmt: skip
QUOTED = {"1b": 300, "7b": 120, "13b": 60, "70b": 30}  # tokens/s that people name for an H100, at most
TABLES = ("correct", "decode", "batch", "prefill", "attention", "offload", "peers")
STEPS, CONTEXT, LONG = 50, 128, 32768
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TESTS = ("tests/kernels", "tests/engine/test_cuda_executor.py", "tests/cli/test_device.py")
RAM_PART = 0.9  # of what is free, that may be pinned
GREEDY = Draw(sampling=Sampling(), part=0.0)


class Bench:
    """Measures on one device; `device` "cpu" is for trying the script out in Triton's interpreter."""

    def __init__(self, figures: DeviceFigures, *, device: str = "cuda") -> None:
        self.figures, self.device = figures, device

    def plan(self, spec: ModelSpec, **asked: Any) -> Plan:
        """The plan of made-up weights of the model's shapes."""
        ram_bytes = asked.pop("ram_bytes", int(RAM_PART * read_host().available_bytes))
        request = DeviceRequest(**asked)
        return plan_on_device(
            spec,
            request,
            device=self.figures.device(),
            multiprocessors=self.figures.multiprocessors,
            runtime_bytes=runtime_beside(self.figures.runtime_bytes, request.max_sequences),
            ram_bytes=ram_bytes,
            ways=self.figures.ways(),
            model_path=Path(spec.name),
            fingerprint="made up",
        )

    @contextmanager
    def opened(self, spec: ModelSpec, **asked: Any) -> Iterator[tuple[Plan, CudaExecutor]]:
        """An executor of such a plan."""
        torch.cuda.empty_cache()
        plan = self.plan(spec, **asked)
        with CudaExecutor(plan, spec, device=self.device) as executor:
            yield plan, executor
        gc.collect()

    def decode(
        self, spec: ModelSpec, *, sequences: int = 1, context: int = CONTEXT, made: Any = "source", **asked: Any
    ) -> dict[str, Any]:
        """Steps of one sampled token of each sequence, tokens read back after each, as a loop does."""
        extents = {"context_tokens": context + 16, "max_sequences": sequences, "random_weights": made}
        with self.opened(spec, **extents, **asked) as (plan, executor):
            pages = self.pages(plan)
            for sequence in range(sequences):
                pages.extend(sequence, start_token=0, num_tokens=context + 1)
            entries = [entry(sequence, context, 1, of_prompt=False) for sequence in range(sequences)]
            batch, rng = Batch(entries=tuple(entries)), np.random.default_rng(0)

            def step() -> None:
                tokens = rng.integers(0, spec.vocabulary, sequences)  # others each time, which go to other experts
                executor.compute(batch, pages, tokens).drawn([GREEDY] * sequences)

            seconds = median_seconds(step, STEPS)
            held, counts = executor.measured_memory(plan.memory.kv_cache), executor.expert_counts
        step = Step(sequences=sequences, context_tokens=context + 1)
        assert plan.device is not None, "a bench of a device"
        cost, linked = cost_of(plan, spec), LinkedDevice(device=self.figures.device(), ways=self.figures.ways())
        work, needed = workload(cost, step), elsewhere(plan.device, cost, sequences)
        forecast = device_seconds(work, linked, num_layers=len(spec.layers), needed=needed).total
        return {
            "tokens_per_second": sequences / seconds,
            "share_of_copy_bandwidth": work.read_bytes / seconds / self.figures.copy_bytes_per_second,
            "share_of_roofline": max(
                work.read_bytes / self.figures.copy_bytes_per_second,
                work.matrix_operations / self.figures.bf16_operations_per_second,
            )
            / seconds,
            "forecast_tokens_per_second": sequences / forecast,
            "memory": {"forecast": vars(plan.memory), "measured": vars(held)},
            "streamed_layers": plan.device.streamed_layers,
            "share_of_link": needed.copied / seconds / self.figures.pinned_to_device,
            "disk_layers": plan.device.disk_layers,
            "share_of_disk": needed.disk / seconds / self.figures.disk_to_pinned if needed.disk else 0.0,
            "expert_slots": plan.device.expert_slots,
            "disk_experts": plan.device.disk_experts,
            "expert_counts": None if counts is None else vars(counts) | {"hit_rate": counts.hit_rate},
        }

    def prefill(self, spec: ModelSpec, tokens: int = 4096, made: Any = "source") -> dict[str, Any]:
        """One prompt as one step, up to its first token."""
        extents = {"context_tokens": tokens + 16, "chunk_tokens": tokens, "random_weights": made}
        with self.opened(spec, **extents) as (plan, executor):
            pages = self.pages(plan)
            pages.extend(0, start_token=0, num_tokens=tokens)
            batch = Batch(entries=(entry(0, 0, tokens, of_prompt=True),))
            known = np.ones(tokens, np.int64)
            seconds = median_seconds(lambda: executor.compute(batch, pages, known).drawn([GREEDY]), 5)
        operations = 2 * (spec.active_parameters - (spec.head or spec.embedding).num_values) * tokens
        operations += sum(2 * tokens**2 * a.num_heads * a.head_dim for a in map(attention_of, spec.layers))
        return {
            "tokens_per_second": tokens / seconds,
            "share_of_matrix_rate": operations / seconds / self.figures.bf16_operations_per_second,
        }

    def attention(self, kv_format: Any, tokens: int = LONG) -> dict[str, Any]:
        """One sequence's decode attention of a layer of an 8B, over caches of several: too large for any cache."""
        layers, spec = 8, AttentionSpec(num_heads=32, num_kv_heads=8, head_dim=128, scale=128**-0.5)
        num_pages = tokens // PAGE_TOKENS
        page_bytes = PAGE_TOKENS * spec.state(kv_format_named(kv_format)).bytes_per_token
        table = torch.randperm(num_pages, dtype=torch.int32, device=self.device)[None]
        parts = most_parts(self.figures.multiprocessors, 8)
        buffers = {
            "attended": torch.empty(1, 4096, dtype=torch.bfloat16, device=self.device),
            "positions": torch.tensor([tokens - 1], device=self.device),
            "attention_partials": torch.empty(32 * parts * 130, device=self.device),
        }
        shape = StepShape(tokens=1, sampled=1, logits=1, items=0)
        step = DeviceStep(buffers, shape, multiprocessors=self.figures.multiprocessors)
        q: Any = torch.randn(1, 4096, device=self.device).bfloat16()
        words: Any = {"slots": table, "tables": table, "number_format": kv_format}
        pages: list[Any] = [
            torch.zeros(num_pages, page_bytes, dtype=torch.uint8, device=self.device) for _ in range(layers)
        ]
        caches = [LayerPages(pages=each, **words) for each in pages]

        def run() -> None:
            for cache in caches:
                attention(step, spec, q, cache)

        seconds = graph_seconds(run) / layers if self.device == "cuda" else median_seconds(run, 1) / layers
        read_bytes = num_pages * page_bytes
        return {
            "seconds": seconds,
            "share_of_copy_bandwidth": read_bytes / seconds / self.figures.copy_bytes_per_second,
        }

    def pages(self, plan: Plan) -> KvPages:
        """The plan's pages."""
        groups = [PageGroup(num_pages=each.num_pages, window_tokens=each.window_tokens) for each in plan.kv_groups]
        return KvPages(groups, page_tokens=plan.page_tokens)


def entry(request: int, start: int, tokens: int, *, of_prompt: bool) -> BatchEntry:
    """Tokens of one sequence."""
    return BatchEntry(request_id=request, start_token=start, num_tokens=tokens, of_prompt=of_prompt, needs_logits=True)


def attention_of(layer: Any) -> AttentionSpec:
    """The layer's attention."""
    spec: AttentionSpec = layer.grouped_attention
    return spec


def graph_seconds(work: Callable[[], object]) -> float:
    """The median device time of `work`, recorded as a graph."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(STEPS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


class Kept:
    """The rows of one device, in a file."""

    def __init__(self, figures: DeviceFigures, *, renew: bool) -> None:
        words = "".join(c if c.isalnum() else " " for c in figures.name.lower()).split()
        self._path = RESULTS / "-".join(words) / "gpu.json"
        kept = {} if renew or not self._path.is_file() else json.loads(self._path.read_text())
        self._result: dict[str, Any] = {
            "device": vars(figures),
            "torch": torch.__version__,
            "weights": MEANINGLESS,
            "reach_of_copy_bandwidth": {" ".join(key): share for key, share in REACH.items()},
            "quoted_tokens_per_second": QUOTED,
            "rows": kept.get("rows", {}),
        }

    def has(self, table: str, name: str) -> bool:
        """Whether the row was measured; what failed is tried again."""
        row = self._result["rows"].get(table, {}).get(name)
        return row is not None and "failed" not in row

    def add(self, table: str, name: str, row: dict[str, Any]) -> None:
        """Keep a row, written at once."""
        self._result["rows"].setdefault(table, {})[name] = row
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._result, indent=2) + "\n")


Row = tuple[str, str, Callable[[], dict[str, Any]]]


def rows_of(bench: Bench, names: list[str]) -> Iterator[Row]:
    """Every table and row, those first that the others rely on, and those that need most of the card last."""
    yield "correct", "operators and models", correct
    for kv_format in ("BF16", "INT8", "FP8"):
        yield "attention", f"{LONG} tokens, {kv_format}", partial(bench.attention, kv_format)
    for name in names:
        for kind in ("source", "int8", "int4"):
            if (name, kind) in REACH or (kind == "source") != (name in (*MIXTURES, "70b")):
                yield "decode", f"{name} {kind}", partial(bench.decode, made_up_spec(MODELS[name], kind), made=kind)
    if "8b" in names:
        eight, small = made_up_spec(MODELS["8b"], "source"), made_up_spec(MODELS["8b"], "int4")
        yield "batch", "8b source, 64 at 2048", partial(bench.decode, eight, sequences=64, context=2048)
        yield "prefill", "8b source, 4096", partial(bench.prefill, eight)
        yield "prefill", "8b int4, 4096", partial(bench.prefill, small, made="int4")
        yield "peers", "8b", partial(peers, eight)
    for name in MIXTURES:
        if name in names:
            mixture = made_up_spec(MODELS[name], "int4")
            yield "batch", f"{name} int4, 8 at 128", partial(bench.decode, mixture, sequences=8, made="int4")
            yield "prefill", f"{name} int4, 4096", partial(bench.prefill, mixture, made="int4")
    if "70b" in names:
        large = made_up_spec(MODELS["70b"], "source")
        small_memory = partial(bench.decode, large, budget_bytes=24 * 10**9)
        yield "offload", "70b source in 24 GB", small_memory
        yield "offload", "70b source in 24 GB, 80 GB of RAM", partial(small_memory, ram_bytes=80 * 10**9)
    for name in MIXTURES:
        if name in names:
            small_memory = partial(bench.decode, made_up_spec(MODELS[name], "source"), budget_bytes=24 * 10**9)
            yield "offload", f"{name} source in 24 GB", small_memory
            yield "offload", f"{name} source in 24 GB, 32 GB of RAM", partial(small_memory, ram_bytes=32 * 10**9)


def correct() -> dict[str, Any]:
    """The tests of every operator and of whole models, which use the card where there is one."""
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout=300",
        "-k",
        "gpu or cuda or device",
    ]
    finished = subprocess.run([*words, *TESTS], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = finished.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {
        "passes": finished.returncode == 0,
        "told": lines[-1] if lines else finished.stderr[-300:],
        "failures": failed,
    }


def run(bench: Bench, tables: list[str], names: list[str], kept: Kept, *, minutes: float) -> None:
    """The rows that are asked for and not there yet, as many as begin within the minutes."""
    started = time.monotonic()
    for table, name, measured in rows_of(bench, names):
        if table not in tables or kept.has(table, name):
            continue
        if time.monotonic() - started > 60 * minutes:
            print("the minutes are over; give the same command again for the rest")
            return
        began = time.monotonic()
        row = attempted(measured)
        kept.add(table, name, row)
        print(f"{table:10} {name:28} {time.monotonic() - began:5.0f} s  {shown(row)}", flush=True)


def attempted(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row, or why there is none."""
    try:
        return measured()
    except Exception as error:  # an out-of-memory peer must not end the rest
        traceback.print_exc(limit=-4)
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


def shown(row: dict[str, Any]) -> str:
    """A row on one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, float)) or str(row)[:200]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join(TABLES), help="which tables (%(default)s)")
    parser.add_argument("--models", default=",".join(MODELS), help="of which shapes (%(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after so many")
    parser.add_argument("--renew", action="store_true", help="measure again what is there")
    asked = parser.parse_args()
    try:
        require_cuda()
    except MachineError as error:
        sys.exit(f"gpu.py: {error}")
    figures = measure()
    rates = (
        f"{figures.copy_bytes_per_second / 1e12:.2f} TB/s, bf16 {figures.bf16_operations_per_second / 1e12:.0f} TFLOP/s"
    )
    print(f"{figures.name}: copies {rates}; {MEANINGLESS}", flush=True)
    kept = Kept(figures, renew=asked.renew)
    run(Bench(figures), asked.tables.split(","), asked.models.split(","), kept, minutes=asked.minutes)


if __name__ == "__main__":
    main()
