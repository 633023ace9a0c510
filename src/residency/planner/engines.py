"""What serving engines take beside weights and keys and values, by engine and version, each rule with its source.

The engine is an input: the same model on the same card had an activation peak of 5.64 GiB in vLLM 0.15 and of 2.21 GiB
in 0.18.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from residency.errors import UsageError
from residency.hardware import Device
from residency.planner import vllm
from residency.planner.answers import Origin
from residency.planner.buffers import activation_buffers
from residency.planner.graph import StepShape, peak_bytes
from residency.planner.plan import PAGE_TOKENS
from residency.spec.model import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from residency.spec.ranks import VOCABULARY_PADDING
from residency.spec.state import StateSpec

MIB = 1024**2
_MICRO_BATCH_TOKENS = 512  # of llama.cpp


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine's rules. Bytes are of one rank's device."""

    name: str
    utilisation: float  # the part of a device's memory that the engine plans with
    page_tokens: int
    padding_rows: int  # of which number of rows the vocabulary is made a multiple
    leaves_embedding: Callable[[Device], bool]  # a table of which a step reads few rows is not in device memory
    chunk_tokens: Callable[[Device], int]  # most tokens of one step
    warms_up: bool  # with a step of that size, whatever is asked for
    sequences: Callable[[Device, int], int]  # most sequences of one step, of so many that are asked for
    kept: Callable[[ModelSpec, StateSpec], StateSpec]  # what the engine makes of a state that could be smaller
    # Sequences of a context that a pool is told to hold, with steps of so many tokens; None: what its bytes allow.
    concurrency: Callable[[tuple[StateSpec, ...], int, int, int], float | None]
    held: Callable[[ModelSpec, int], int]  # beside the tensors, with them: of a stage on each of so many ranks
    activations: Callable[[ModelSpec, StepShape], int]
    runtime: Callable[[Device, int, int], int]  # framework, context, collectives of so many ranks and stages
    graphs: Callable[[ModelSpec, int], int]  # recorded steps, outside the budget where it is a part of the memory
    origins: Mapping[str, Origin]

    def step_tokens(self, device: Device, asked_tokens: int) -> int:
        """Tokens of the largest step that the engine prepares for."""
        return self.chunk_tokens(device) if self.warms_up else min(asked_tokens, self.chunk_tokens(device))


def engine_named(name: str) -> Engine:
    """The rules of an engine. UsageError names the ones there are."""
    if name not in ENGINES:
        raise UsageError(f"the engine {name[:40]!r} is not known; known are {', '.join(ENGINES)}.")
    return ENGINES[name]


def default_engine(device: Device, format_label: str) -> Engine:
    """residency on a processor, llama.cpp for its own formats and for unified memory, else vLLM."""
    if device.kind == "cpu":
        return ENGINES["residency"]
    is_gguf = format_label.upper().startswith(("Q", "IQ")) and "_" in format_label
    return ENGINES["llama.cpp" if is_gguf or device.kind == "unified" else "vllm-0.19"]


def _llama_cpp_activations(model: ModelSpec, shape: StepShape) -> int:
    """The larger of all logits of a micro-batch beside the hidden state, and of attention: scores in float32 where
    they are written whole, the mask, and the arrays of a layer."""
    logits = shape.tokens * (model.vocabulary + model.hidden) * 4 if shape.has_head else 0
    arrays = peak_bytes(model, replace(shape, attention="flash", dtype="float32", has_head=False))
    arrays -= 4 * shape.tokens * min(layer.mlp.intermediate if layer.mlp else 0 for layer in model.layers)  # in place
    if shape.attention == "naive":
        heads = max((layer.attention.num_heads for layer in model.layers if layer.attention), default=0)
        arrays = shape.tokens * (4 * shape.context_tokens * (heads + 1) + 4 * 4 * model.hidden)
    return max(logits, arrays)


def _llama_cpp_state(model: ModelSpec, state: StateSpec) -> StateSpec:
    """A window is kept with one micro-batch beside it, in whole 256 cells (llama.cpp's src/llama-kv-cache-iswa.cpp);
    models that mix no windows with whole contexts keep the whole context."""
    if state.max_tokens is None:
        return state
    attentions = (layer.attention for layer in model.layers)
    mixes = any(isinstance(each, AttentionSpec) and each.window_tokens is None for each in attentions)
    if not mixes:
        return replace(state, max_tokens=None)
    return replace(state, max_tokens=-(-(state.max_tokens + _MICRO_BATCH_TOKENS) // 256) * 256)


def can_run(model: ModelSpec) -> bool:
    """Whether residency's own engine has a forward pass for such layers."""
    return all(isinstance(layer.attention, AttentionSpec) and _is_plain(layer) for layer in model.layers)


def _is_plain(layer: LayerSpec) -> bool:
    gated_apart = len(layer.gated_matrices) == 3  # some checkpoints hold gate and up as one matrix
    return layer.mixer is None and isinstance(layer.mlp, MlpSpec) and layer.mlp.gated and gated_apart


def _residency_activations(model: ModelSpec, shape: StepShape) -> int:
    """The engine's own buffers; of a model that it cannot run yet, the same step's arrays in float32."""
    if not can_run(model):
        return peak_bytes(model, replace(shape, dtype="float32"))
    buffers = activation_buffers(
        model,
        chunk_tokens=shape.tokens,
        max_sequences=shape.sequences,
        max_context_tokens=shape.context_tokens,
        threads=1,
    )
    return sum(buffer.num_bytes for buffer in buffers)


_VLLM = Engine(
    name="vllm-0.19",
    utilisation=0.95,
    page_tokens=16,
    padding_rows=VOCABULARY_PADDING,
    leaves_embedding=lambda device: False,
    chunk_tokens=lambda device: 8192 if vllm.is_large(device) else 2048,
    warms_up=True,
    sequences=lambda device, asked: max(asked, 1024 if vllm.is_large(device) else 256),
    kept=lambda model, state: state,
    concurrency=vllm.concurrency,
    held=vllm.held_bytes,
    activations=vllm.activation_bytes,
    runtime=vllm.runtime_bytes,
    graphs=vllm.graphs_bytes,
    origins={
        "weights": Origin(
            origin="exact",
            how="every tensor by rank, with rotation tables and what PyTorch's allocator rounds up",
        ),
        "budget_bytes": Origin(origin="assumed", how=f"--gpu-memory-utilization 0.95, as in {vllm.READINGS}"),
        "activations": Origin(origin="modelled", how=f"fitted to {vllm.READINGS}, within 10%; default step sizes"),
        "runtime": Origin(origin="measured", how=vllm.READINGS),
    },
)


def _older_vllm(
    name: str, runtime: Callable[[Device, int, int], int], activations: Callable[[ModelSpec, StepShape], int]
) -> Engine:
    """An earlier version: what is known to have changed since, and the rest as it is now."""
    how = "Qwen3-14B on H100-80GB in each version (github.com/jgchn/llm-d-planner), otherwise as in 0.19"
    told = {part: Origin(origin="extrapolated", how=how) for part in ("activations", "runtime")}
    return replace(_VLLM, name=name, runtime=runtime, activations=activations, origins={**_VLLM.origins, **told})


_LLAMA_LOGS = "buffers in llama.cpp's logs (github.com/ggml-org/ci)"

ENGINES = {
    engine.name: engine
    for engine in (
        _VLLM,
        _older_vllm("vllm-0.18", vllm.runtime_bytes, vllm.activation_bytes),
        _older_vllm("vllm-0.17", vllm.older_runtime_bytes, vllm.activation_bytes),
        _older_vllm("vllm-0.16", vllm.older_runtime_bytes, vllm.older_activation_bytes),
        _older_vllm("vllm-0.15", vllm.older_runtime_bytes, vllm.older_activation_bytes),
        Engine(
            name="llama.cpp",
            utilisation=1.0,
            page_tokens=1,
            padding_rows=1,
            leaves_embedding=lambda device: device.kind == "gpu",
            chunk_tokens=lambda device: _MICRO_BATCH_TOKENS,
            warms_up=False,
            sequences=lambda device, asked: asked,
            kept=_llama_cpp_state,
            concurrency=lambda states, pool_bytes, context_tokens, step_tokens: None,
            held=lambda stage, ranks: 0,
            activations=_llama_cpp_activations,
            runtime=lambda device, ranks, stages: 400 * MIB if device.kind == "gpu" else 64 * MIB,
            graphs=lambda model, ranks: 0,
            origins={
                "weights": Origin(origin="exact", how="every tensor; an untied embedding stays with the host"),
                "budget_bytes": Origin(origin="assumed", how="all that the driver reports, as llama.cpp sets no limit"),
                "activations": Origin(origin="modelled", how=f"fitted to {_LLAMA_LOGS}, micro-batches of 512"),
                "runtime": Origin(origin="assumed", how="a CUDA context of 400 MiB, 64 MiB elsewhere"),
            },
        ),
        Engine(
            name="residency",
            utilisation=0.9,
            page_tokens=PAGE_TOKENS,
            padding_rows=1,
            leaves_embedding=lambda device: True,
            chunk_tokens=lambda device: 128,
            warms_up=False,
            sequences=lambda device, asked: asked,
            kept=lambda model, state: state,
            concurrency=lambda states, pool_bytes, context_tokens, step_tokens: None,
            held=lambda stage, ranks: 0,
            activations=_residency_activations,
            runtime=lambda device, ranks, stages: 118 * MIB,
            graphs=lambda model, ranks: 0,
            origins={
                "weights": Origin(
                    origin="exact", how="every tensor; of an untied embedding, rows are read from the file"
                ),
                "budget_bytes": Origin(origin="assumed", how="nine tenths of what is available"),
                "activations": Origin(origin="exact", how="the buffers of the engine's own step"),
                "runtime": Origin(origin="measured", how="interpreter and compiled kernels, see docs/performance.md"),
            },
        ),
    )
}
