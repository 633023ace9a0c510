"""Measure what steps cost with kernels that are compiled: `python -m residency.engine.calibrate_steps FORMAT...`.

Adds to what is kept of this machine, in a process of its own: at what part of the memory's rate matrices in these
number formats are read, and what attention and a layer's small kernels take, by the stamped step of a model that
holds nothing.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from residency.engine.calibrate import best_seconds, product, read_kernel
from residency.engine.executor import DRIVERS, CpuExecutor
from residency.engine.workers import Workers
from residency.formats import F32, Q4_1, format_named
from residency.hardware import Machine, ReadShare
from residency.kernels.library import Library
from residency.ledger import KvPages, PageGroup
from residency.planner import Plan, plan_run
from residency.planner.cost import CACHE_RATE
from residency.scheduler import Batch, BatchEntry
from residency.spec.layout import store_layout
from residency.spec.model import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, RopeSpec, TensorSpec
from residency.spec.state import KV_FORMATS
from residency.store.arena import Arena
from residency.store.memory_rate import read_rate
from residency.store.probe import kept_machine, save_machine
from residency.store.weights import Weights

_COLUMNS = 1024  # of the matrices: a multiple of every format's blocks
_WORKING_SETS = (64 * 1024**2, 384 * 1024**2)  # such as large caches hold, and larger
_READING_SECONDS = 0.2
_REPEATS = 15
_KERNELS = 200  # of the program that shows what a product costs beside its work
_HIDDEN, _HEAD_DIM, _KV_HEADS = 1024, 64, 4
_HEADS = (12, 28)  # two numbers of heads for as many keys and values: what both read, and what each head computes
_LAYERS_EACH = 16  # so that keys and values come from where they come from in long contexts
_CONTEXTS = (15, 8191)  # tokens before the one that is computed
_VOCABULARY = 256
_PRODUCTS_PER_LAYER = 7
_SMALL_KERNELS = ("norm.", "rotary.", "gate.", "gated_matmul.", "attention.combine")


def read_shares(machine: Machine, formats: Sequence[str]) -> dict[str, tuple[ReadShare, ...]]:
    """The part of the memory's rate at which products read matrices of each format, from pages as small as those of
    weights that are mapped.
    """
    library = Library([*DRIVERS, *(f"matmul.{name}" for name in formats)])
    found: dict[str, tuple[ReadShare, ...]] = dict.fromkeys(formats, ())
    with Workers(library, machine.threads) as workers:
        for set_bytes in _WORKING_SETS:
            bare_rate = read_rate(
                read_kernel(), threads=machine.threads, set_bytes=set_bytes, limit_seconds=_READING_SECONDS
            )
            memory = np.frombuffer(Arena(set_bytes).memory, np.uint8)
            memory[:] = 1
            for name in formats:
                number_format = format_named(name)
                rows = set_bytes // number_format.bytes_of((16, _COLUMNS)) * 16
                tiles = memory[: number_format.bytes_of((rows, _COLUMNS))]
                program = product(
                    library, rows=rows, columns=_COLUMNS, tokens=1, number_format=number_format, tiles=tiles
                )
                rate = tiles.size / best_seconds(workers, program, least_seconds=_READING_SECONDS)
                share = ReadShare(working_set_bytes=set_bytes, share=min(1.0, rate / bare_rate))
                found[name] = (*found[name], share)
    return found


def step_figures(machine: Machine) -> dict[str, float]:
    """What attention and small kernels cost: see hardware/assumed.toml for what each figure means.

    Attention's time grows with the tokens that it sees, by what reading their keys and values takes and by what each
    head computes with them; what is left of it beside them is every step's, like norms and rotations.
    """
    model = _empty_model()
    library = Library([*DRIVERS, "matmul.Q4_1"])
    with Workers(library, machine.threads) as workers:
        tiny = product(library, rows=16, columns=32, tokens=1, kernels=_KERNELS)
        launch_seconds = best_seconds(workers, tiny) / _KERNELS
    short, long = _layer_seconds(machine, model)
    few, many = (long.attention[heads] - short.attention[heads] for heads in _HEADS)
    tokens, head_operations = _CONTEXTS[1] - _CONTEXTS[0], 4 * _HEAD_DIM
    head_seconds = max((many - few) / (_HEADS[1] - _HEADS[0]) / tokens, 1e-12)
    read_seconds = max(few / tokens - _HEADS[0] * head_seconds, 1e-12)
    seen = (_CONTEXTS[0] + 1) * (_HEADS[0] * head_seconds + read_seconds)
    cores = min(machine.threads, machine.cores)
    return {
        "vector_f32_operations_per_second": head_operations / head_seconds / cores,
        CACHE_RATE: 2 * _KV_HEADS * KV_FORMATS["INT8"].head_bytes(_HEAD_DIM) / read_seconds / cores,
        "layer_overhead_seconds": short.small
        + max(0.0, short.attention[_HEADS[0]] - seen)
        + _PRODUCTS_PER_LAYER * launch_seconds,
    }


@dataclass(frozen=True, kw_only=True)
class _LayerSeconds:
    """Of one layer in a step."""

    attention: Mapping[int, float]  # by its heads
    small: float  # of norms, rotations, gates, and what puts attention's parts together


def _layer_seconds(machine: Machine, model: ModelSpec) -> list[_LayerSeconds]:
    """For each of the contexts, what the layers of `model` take in a step of one token."""
    plan = plan_run(
        model,
        machine=machine,
        runtime_bytes=0,
        budget_bytes=None,
        context_tokens=model.max_context_tokens,
        kv_format="INT8",
        model_path=Path(),
        fingerprint="",
    )
    with tempfile.TemporaryDirectory(prefix="residency-") as folder:
        with (Path(folder) / "weights").open("wb") as file:
            file.truncate(store_layout(model).total_bytes)
        with Weights(model, Path(folder)) as weights, CpuExecutor(plan, model, weights) as executor:
            return [_stamped(executor, plan, context_tokens) for context_tokens in _CONTEXTS]


def _stamped(executor: CpuExecutor, plan: Plan, context_tokens: int) -> _LayerSeconds:
    pages = KvPages([PageGroup(num_pages=group.num_pages) for group in plan.kv_groups], page_tokens=plan.page_tokens)
    pages.extend(0, start_token=context_tokens, num_tokens=1)
    entry = BatchEntry(request_id=0, start_token=context_tokens, num_tokens=1, of_prompt=False, needs_logits=True)
    times = executor.profile(Batch(entries=(entry,)), pages, np.zeros(1, np.int64), repeats=_REPEATS)
    attended = [each for each in times if each.kernel == "attention.attend_INT8"]
    small = [each.seconds for each in times if each.kernel.startswith(_SMALL_KERNELS)]
    return _LayerSeconds(
        attention={
            heads: float(np.median([each.seconds for each in attended if each.words["heads"] == heads]))
            for heads in _HEADS
        },
        small=sum(small) / len(attended),
    )


def _empty_model() -> ModelSpec:
    """A small model of which nobody wrote the weights."""
    frequencies = tuple(10_000.0 ** (-axis / _HEAD_DIM) for axis in range(0, _HEAD_DIM, 2))
    layers = []
    for index, heads in enumerate(_HEADS * _LAYERS_EACH):
        q_rows, kv_rows = heads * _HEAD_DIM, _KV_HEADS * _HEAD_DIM
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm": (_HIDDEN,),
            "self_attn.q_proj": (q_rows, _HIDDEN),
            "self_attn.k_proj": (kv_rows, _HIDDEN),
            "self_attn.v_proj": (kv_rows, _HIDDEN),
            "self_attn.o_proj": (_HIDDEN, q_rows),
            "post_attention_layernorm": (_HIDDEN,),
            "mlp.gate_proj": (_HIDDEN, _HIDDEN),
            "mlp.up_proj": (_HIDDEN, _HIDDEN),
            "mlp.down_proj": (_HIDDEN, _HIDDEN),
        }
        attention = AttentionSpec(
            num_heads=heads,
            num_kv_heads=_KV_HEADS,
            head_dim=_HEAD_DIM,
            scale=_HEAD_DIM**-0.5,
            rope=RopeSpec(inverse_frequencies=frequencies),
        )
        layers.append(
            LayerSpec(
                attention=attention,
                mlp=MlpSpec(intermediate=_HIDDEN, activation="silu"),
                tensors=tuple(
                    _empty_tensor(f"model.layers.{index}.{name}.weight", shape) for name, shape in shapes.items()
                ),
            )
        )
    return ModelSpec(
        name="empty",
        architecture="llama",
        vocabulary=_VOCABULARY,
        hidden=_HIDDEN,
        max_context_tokens=_CONTEXTS[-1] + 1,
        norm_epsilon=1e-6,
        embedding_scale=1.0,
        embedding=_empty_tensor("model.embed_tokens.weight", (_VOCABULARY, _HIDDEN)),
        layers=tuple(layers),
        final_norm=_empty_tensor("model.norm.weight", (_HIDDEN,)),
        head=None,
    )


def _empty_tensor(name: str, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, format=Q4_1 if len(shape) == 2 else F32)


def main() -> None:
    """Measure, and keep it beside what is kept of this machine."""
    machine = kept_machine()
    assert machine is not None, "somebody has measured this machine before"
    measured = machine.with_measured(**step_figures(machine))
    shares = read_shares(machine, sys.argv[1:])
    save_machine(replace(measured, read_shares={**machine.read_shares, **shares}))


if __name__ == "__main__":
    main()
