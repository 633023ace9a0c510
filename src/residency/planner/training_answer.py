"""A training run as an answer: what each device holds, whether it fits, and the smallest change that makes it fit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from residency.errors import ResidencyError, UsageError
from residency.hardware import Device, Machine
from residency.planner.answers import (
    AnswerRecord,
    ChangeFigures,
    DeviceFigures,
    Origin,
    PlacementFigures,
    TrainingFigures,
)
from residency.planner.recording import model_figures
from residency.planner.training import TrainingMemory, TrainingOptions, fit_training, plan_training
from residency.planner.training.fitting import LOSS_CHUNKS
from residency.spec.model import ModelSpec
from residency.spec.state import KV_F16
from residency.units import binary_bytes

RUNTIME_BYTES = 600 * 1024**2  # assumed: a CUDA context with cuBLAS and NCCL; processors take less
_MOST_ARITHMETIC = 12


def training_record(
    model: ModelSpec, options: TrainingOptions, *, machine: Machine, budget_bytes: int | None = None
) -> AnswerRecord:
    """The answer for one training run on the first kind of a machine's devices.

    UsageError where the degrees ask for more devices than there are.
    """
    device = machine.compute_devices()[0]
    if options.devices > device.count:
        raise UsageError(
            f"{options.tensor_parallel} x {options.pipeline_parallel} x {options.data_parallel} ranks need "
            f"{options.devices} devices, and {machine.name} has {device.count}; ask for fewer."
        )
    budget = device.usable_bytes if budget_bytes is None else budget_bytes
    memory = plan_training(model, options)
    devices = _devices(memory, options, device, budget)
    missing = sum(each.missing_bytes for each in devices)
    return AnswerRecord(
        model=model_figures(model, KV_F16),
        machine=machine.name,
        status=device.status,
        engine="PyTorch",
        goal=None,
        fits=missing == 0,
        missing_bytes=missing,
        placement=_placement(options),
        devices=devices,
        forecast=None,
        training=_figures(memory),
        bottleneck=f"the {memory.fullest.peak_phase.name} needs {binary_bytes(memory.peak)} on the fullest device",
        reasons=_reasons(options),
        nearest=_nearest(model, options, budget) if missing else None,
        changes=tuple(_changes(model, options, memory, budget)),
        weighed=1,
        optimal=True,
        origins=_origins(memory),
    )


def _devices(
    memory: TrainingMemory, options: TrainingOptions, device: Device, budget_bytes: int
) -> tuple[DeviceFigures, ...]:
    found = []
    for stage in memory.stages:
        needed = stage.peak + RUNTIME_BYTES
        figures = DeviceFigures(
            name=device.name,
            budget_bytes=budget_bytes,
            weights=stage.weights,
            activations=stage.activations,
            runtime=RUNTIME_BYTES,
            free=max(0, budget_bytes - needed),
            missing_bytes=max(0, needed - budget_bytes),
            gradients=stage.gradients,
            optimizer=stage.optimizer + stage.master_weights,
            stage=stage.stage,
            usable_bytes=device.usable_bytes,
        )
        found += [figures] * (options.devices // len(memory.stages))
    return tuple(found)


def _figures(memory: TrainingMemory) -> TrainingFigures:
    fullest = memory.fullest
    lines = [f"{each.name}: {each.arithmetic} = {binary_bytes(each.num_bytes)}" for each in fullest.figures]
    return TrainingFigures(
        weights=memory.weights,
        gradients=memory.gradients,
        optimizer=memory.optimizer,
        activations=memory.activations,
        peak=memory.peak,
        peak_phase=fullest.peak_phase.name,
        master_weights=memory.master_weights,
        temporary=fullest.peak_phase.temporary,
        ram=fullest.ram,
        published_activations=memory.published_activations,
        arithmetic=tuple(lines[:_MOST_ARITHMETIC]),
    )


def _placement(options: TrainingOptions) -> PlacementFigures:
    return PlacementFigures(
        quant="nf4" if options.lora and options.lora.nf4 else None,
        kv_format="none",
        tensor_parallel=options.tensor_parallel,
        pipeline_parallel=options.pipeline_parallel,
        replicas=options.data_parallel,
        context_tokens=options.context_tokens,
        prompt_tokens=options.context_tokens,
        concurrency=options.batch_sequences,
        chunk_tokens=options.tokens,
    )


def _reasons(options: TrainingOptions) -> tuple[str, ...]:
    reasons = [f"{options.optimizer} in {options.precision}, recomputation {options.recomputation}"]
    if options.data_parallel > 1:
        shared = ("nothing", "optimizer states", "optimizer states and gradients", "weights too")[options.zero_stage]
        reasons.append(f"{options.data_parallel} data-parallel ranks share {shared} (ZeRO stage {options.zero_stage})")
    return tuple(reasons)


def _nearest(model: ModelSpec, options: TrainingOptions, budget_bytes: int) -> ChangeFigures | None:
    """The cheapest options that make it fit; None where none do."""
    found = fit_training(model, options, device_bytes=budget_bytes - RUNTIME_BYTES)
    if not found.fits:
        return None
    return _change(_written(options, found.options), options, plan_training(model, options), found.memory, budget_bytes)


def _changes(
    model: ModelSpec, options: TrainingOptions, memory: TrainingMemory, budget_bytes: int
) -> Iterator[ChangeFigures]:
    """What one option more would free: those that cost least time first."""
    for changed in _alternatives(options):
        try:
            then = plan_training(model, replace(options, **changed))
        except ResidencyError:
            continue  # two things that do not go together
        yield _change(_written(options, then.options), options, memory, then, budget_bytes)


def _change(
    option: str, options: TrainingOptions, memory: TrainingMemory, then: TrainingMemory, budget_bytes: int
) -> ChangeFigures:
    missing = max(0, then.peak + RUNTIME_BYTES - budget_bytes)
    return ChangeFigures(
        option=option,
        fits=not missing,
        missing_bytes=missing * options.devices,
        freed_bytes=max(0, memory.peak - then.peak) * options.devices,
        max_concurrency=float(options.batch_sequences),
        decode_tokens_per_second=0.0,
        perplexity_rise=0.0,
    )


def _alternatives(options: TrainingOptions) -> Iterator[dict[str, Any]]:
    if options.data_parallel > 1:
        yield from ({"zero_stage": stage} for stage in range(options.zero_stage + 1, 4))
    if options.loss_chunks == 1:
        yield {"loss_chunks": LOSS_CHUNKS}
    if options.recomputation != "full":
        yield {"recomputation": "full"}
    if options.optimizer == "adamw" and options.lora is None:
        yield {"optimizer": "adam8bit"}
    if not options.offload_optimizer:
        yield {"offload_optimizer": True}


def _written(asked: TrainingOptions, taken: TrainingOptions) -> str:
    """The options of the command line that lead from one to the other."""
    words = {
        "zero_stage": f"--zero {taken.zero_stage}",
        "loss_chunks": f"--loss-chunks {taken.loss_chunks}",
        "recomputation": f"--recompute {taken.recomputation}",
        "optimizer": f"--optimizer {taken.optimizer}",
        "offload_optimizer": "--offload",
    }
    return " ".join(text for name, text in words.items() if getattr(asked, name) != getattr(taken, name))


def _origins(memory: TrainingMemory) -> dict[str, Origin]:
    return {
        "budget_bytes": Origin(origin="exact", how="what the driver reports, or as asked for"),
        "runtime": Origin(origin="assumed", how="a CUDA context with its libraries"),
        **{each.name: Origin(origin=each.origin, how=each.arithmetic) for each in memory.fullest.figures},
    }
