"""A CUDA device measured: decode, batches, prefill, attention and offload, beside transformers on the same card.

    python benchmarks/gpu.py [--tables decode,batch,prefill,attention,offload,peers] [--models 1b,7b,8b,13b,70b]

Weights are made up, of the published models' shapes: what is written has no meaning, how fast it is has. Shares are of
the copy bandwidth and the matrix rates that are measured in the same run. Writes benchmarks/results/<device>/gpu.json.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from residency.cli.deploying import spec_of
from residency.engine.cuda.executor import CudaExecutor
from residency.engine.device import GRAPH_BYTES
from residency.engine.sampler import Draw, Sampling
from residency.kernels.attention import attention
from residency.kernels.device import DeviceStep, StepShape
from residency.kernels.rotary import LayerPages
from residency.ledger import KvPages
from residency.ledger.kv import PageGroup
from residency.planner import Plan
from residency.planner.device_buffers import most_parts
from residency.planner.on_device import DeviceRequest, decode_batches, plan_on_device
from residency.planner.plan import PAGE_TOKENS
from residency.scheduler import Batch
from residency.scheduler.batch import BatchEntry
from residency.spec.model import AttentionSpec, ModelSpec, RopeSpec
from residency.spec.state import kv_format_named
from residency.store.device_rate import DeviceFigures, measure

MODELS = {
    "1b": "meta-llama/Llama-3.2-1B",
    "7b": "meta-llama/Llama-2-7b-hf",
    "8b": "meta-llama/Llama-3.1-8B",
    "13b": "meta-llama/Llama-2-13b-hf",
    "70b": "meta-llama/Llama-3.1-70B",
}
FORMATS = ("source", "int8", "int4")
REACH = {  # shares of the copy bandwidth that decode is to reach
    ("1b", "source"): 0.75, ("1b", "int8"): 0.65, ("1b", "int4"): 0.55,
    ("7b", "source"): 0.88, ("7b", "int8"): 0.80, ("7b", "int4"): 0.70,
    ("8b", "source"): 0.88, ("8b", "int8"): 0.80, ("8b", "int4"): 0.70,
    ("70b", "int4"): 0.75,
}  # fmt: skip
QUOTED = {"1b": 300, "7b": 120, "13b": 60, "70b": 30}  # tokens/s that people name for an H100, at most
TABLES = ("decode", "batch", "prefill", "attention", "offload", "peers")
STEPS, CONTEXT, LONG = 50, 128, 32768
RESULTS = Path(__file__).parent / "results"
GREEDY = Draw(sampling=Sampling(), part=0.0)


class Bench:
    """Measures on one device; `device` "cpu" is for trying the script out in Triton's interpreter."""

    def __init__(self, figures: DeviceFigures, *, device: str = "cuda") -> None:
        self.figures, self.device = figures, device

    def plan(self, spec: ModelSpec, **asked: Any) -> Plan:
        """The plan of made-up weights of the model's shapes."""
        request = DeviceRequest(**{"random_weights": "source", **asked})
        return plan_on_device(
            spec,
            request,
            device=self.figures.device(),
            multiprocessors=self.figures.multiprocessors,
            runtime_bytes=self.figures.runtime_bytes + GRAPH_BYTES * len(decode_batches(request.max_sequences)),
            ram_bytes=1 << 40,
            link_bytes_per_second=self.figures.pinned_to_device,
            model_path=Path(spec.name),
            fingerprint="made up",
        )

    @contextmanager
    def opened(self, spec: ModelSpec, **asked: Any) -> Iterator[tuple[Plan, CudaExecutor]]:
        """An executor of such a plan."""
        plan = self.plan(spec, **asked)
        with CudaExecutor(plan, spec, device=self.device) as executor:
            yield plan, executor
        gc.collect()

    def decode(self, spec: ModelSpec, *, sequences: int = 1, context: int = CONTEXT, **asked: Any) -> dict[str, Any]:
        """Steps of one sampled token of each sequence, tokens read back after each, as a loop does."""
        with self.opened(spec, context_tokens=context + 16, max_sequences=sequences, **asked) as (plan, executor):
            pages = self.pages(plan)
            for sequence in range(sequences):
                pages.extend(sequence, start_token=0, num_tokens=context + 1)
            entries = [entry(sequence, context, 1, of_prompt=False) for sequence in range(sequences)]
            batch, tokens = Batch(entries=tuple(entries)), np.ones(sequences, np.int64)

            def step() -> None:
                executor.compute(batch, pages, tokens).drawn([GREEDY] * sequences)

            seconds = median_seconds(step, STEPS)
            held = executor.measured_memory(plan.memory.kv_cache)
            kv_bytes = (
                sum(group.page_bytes * len(group.layers) for group in plan.kv_groups) * context // plan.page_tokens
            )
        read_bytes = plan.forecast.read_bytes_per_token - self.kv_bytes(plan, CONTEXT) + sequences * kv_bytes
        return {
            "tokens_per_second": sequences / seconds,
            "share_of_copy_bandwidth": read_bytes / seconds / self.figures.copy_bytes_per_second,
            "forecast_tokens_per_second": plan.forecast.decode_tokens_per_second,
            "memory": {"forecast": vars(plan.memory), "measured": vars(held)},
            "streamed_layers": plan.device.streamed_layers if plan.device else 0,
            "share_of_link": (plan.device.pinned_bytes if plan.device else 0) / seconds / self.figures.pinned_to_device,
        }

    def kv_bytes(self, plan: Plan, tokens: int) -> int:
        """Keys and values of so many tokens."""
        return sum(group.page_bytes * len(group.layers) for group in plan.kv_groups) * tokens // plan.page_tokens

    def prefill(self, spec: ModelSpec, tokens: int = 4096, **asked: Any) -> dict[str, Any]:
        """One prompt as one step, up to its first token."""
        with self.opened(spec, context_tokens=tokens + 16, chunk_tokens=tokens, **asked) as (plan, executor):
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


def runnable(name: str) -> ModelSpec:
    """A published model's shapes, with the plain rotation, which planning leaves open."""
    spec = spec_of(name)

    def rotated(layer: Any) -> Any:
        head_dim = layer.attention.head_dim
        rope = RopeSpec(inverse_frequencies=tuple(10000.0 ** (-i / head_dim) for i in range(0, head_dim, 2)))
        return replace(layer, attention=replace(layer.attention, rope=rope))

    return replace(spec, layers=tuple(map(rotated, spec.layers)))


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """The median wall time of `work`, which ends when the device is done."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


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


def peers(spec: ModelSpec, tokens: int = 128) -> dict[str, Any]:
    """transformers' decode of one sequence on this card, eager and with a compiled static cache, and its continuous
    batching of 64, on made-up weights of the same shapes.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    first = attention_of(spec.layers[0])
    config = LlamaConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.hidden,
        intermediate_size=spec.layers[0].gated_mlp.intermediate,
        num_hidden_layers=len(spec.layers),
        num_attention_heads=first.num_heads,
        num_key_value_heads=first.num_kv_heads,
        head_dim=first.head_dim,
        max_position_embeddings=8192,
        tie_word_embeddings=spec.tied,
    )
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    prompt = torch.ones(1, CONTEXT, dtype=torch.int64, device="cuda")
    found: dict[str, Any] = {}
    for name, extra in (("eager", {}), ("static cache, compiled", {"cache_implementation": "static"})):
        settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, **extra}
        once, more = (median_seconds(partial(generate, model, prompt, n, settings), 3) for n in (1, tokens + 1))
        found[name] = {"tokens_per_second": tokens / (more - once)}
    wanted = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    prompts = [[1] * CONTEXT for _ in range(64)]
    seconds = median_seconds(partial(model.generate_batch, inputs=prompts, generation_config=wanted), 1)
    found["continuous batching of 64"] = {"tokens_per_second": 64 * tokens / seconds}
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return found


def generate(model: Any, prompt: torch.Tensor, tokens: int, settings: dict[str, Any]) -> None:
    """So many tokens after the prompt."""
    model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, **settings)


def run(bench: Bench, tables: list[str], names: list[str]) -> dict[str, Any]:
    """Every table that is asked for; a row that fails says why, and the others go on."""
    rows: dict[str, dict[str, Any]] = {table: {} for table in tables}
    specs = {name: runnable(MODELS[name]) for name in names}
    todo: list[tuple[str, str, Callable[[], dict[str, Any]]]] = []
    for name, spec in specs.items():
        for kind in FORMATS:
            if (name, kind) in REACH or kind == "source":
                todo.append(("decode", f"{name} {kind}", partial(bench.decode, spec, random_weights=kind)))
    if "8b" in specs:
        eight = specs["8b"]
        todo.append(("batch", "8b source, 64 at 2048", partial(bench.decode, eight, sequences=64, context=2048)))
        todo.append(("prefill", "8b source, 4096", partial(bench.prefill, eight)))
        todo.append(("prefill", "8b int4, 4096", partial(bench.prefill, eight, random_weights="int4")))
        todo.append(("peers", "8b", partial(peers, eight)))
    for kv_format in ("BF16", "INT8", "FP8"):
        todo.append(("attention", f"{LONG} tokens, {kv_format}", partial(bench.attention, kv_format)))
    if "70b" in specs:
        todo.append(("offload", "70b source in 24 GB", partial(bench.decode, specs["70b"], budget_bytes=24 * 10**9)))
    for table, name, measured in todo:
        if table in tables:
            rows[table][name] = attempted(measured)
            print(f"{table:10} {name:28} {shown(rows[table][name])}", flush=True)
    return rows


def attempted(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row, or why there is none."""
    try:
        return measured()
    except Exception as error:  # an out-of-memory peer must not end the rest
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


def shown(row: dict[str, Any]) -> str:
    """A row on one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, float)) or str(row)[:200]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--models", default=",".join(MODELS))
    asked = parser.parse_args()
    figures = measure()
    rates = (
        f"{figures.copy_bytes_per_second / 1e12:.2f} TB/s, bf16 {figures.bf16_operations_per_second / 1e12:.0f} TFLOP/s"
    )
    print(f"{figures.name}: copies {rates}; weights are made up, what is written has no meaning")
    rows = run(Bench(figures), asked.tables.split(","), asked.models.split(","))
    folder = RESULTS / "-".join("".join(c if c.isalnum() else " " for c in figures.name.lower()).split())
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "device": vars(figures),
        "torch": torch.__version__,
        "weights": "made up: what is written has no meaning",
        "reach_of_copy_bandwidth": {" ".join(key): share for key, share in REACH.items()},
        "quoted_tokens_per_second": QUOTED,
        "rows": rows,
    }
    (folder / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
