"""The options of a training run, and its answer."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_args

import click

from residency.cli.deploying import Asked, budget_of
from residency.errors import ContextError, UsageError
from residency.hardware import Machine
from residency.planner.answers import AnswerRecord
from residency.planner.training import PRECISIONS, LoraOptions, TrainingOptions
from residency.planner.training.options import Kernels, Optimizer, Recomputation
from residency.planner.training_answer import training_record
from residency.spec.model import ModelSpec

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_CONTEXT_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class AskedTraining:
    """What a user asks of a training run; None leaves the choice to the planner."""

    optimizer: str | None = None
    batch: int | None = None
    precision: str | None = None
    recompute: str | None = None
    zero: int | None = None
    lora: int | None = None
    qlora: int | None = None
    loss_chunks: int | None = None
    kernels: str | None = None
    dropout: bool | None = None
    sequence_parallel: bool | None = None
    offload: bool | None = None

    def given(self) -> dict[str, object]:
        """What was asked for, by the options' names."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


_OPTIONS = (
    click.option("--optimizer", type=click.Choice(get_args(Optimizer)), help="Whose states to keep (default: adamw)."),
    click.option("--batch", type=int, metavar="N", help="Sequences of a micro-batch on each device (default: 1)."),
    click.option("--precision", type=click.Choice(list(PRECISIONS)), help="Bytes of a value (default: bf16-mixed)."),
    click.option("--recompute", type=click.Choice(get_args(Recomputation)), help="Activations that are not kept."),
    click.option("--zero", type=int, metavar="STAGE", help="What data-parallel devices share: 0 to 3 (3 is FSDP)."),
    click.option("--lora", type=int, metavar="RANK", help="Train adapters of this rank beside frozen matrices."),
    click.option("--qlora", type=int, metavar="RANK", help="The same beside matrices in NF4."),
    click.option("--loss-chunks", type=int, metavar="N", help="Parts in which the loss takes the tokens (default: 1)."),
    click.option("--kernels", type=click.Choice(get_args(Kernels)), help="Each operation apart (default), or fused."),
    click.option("--dropout/--no-dropout", default=None, help="Keep the masks of dropout, as GPT-3's layers do."),
    click.option(
        "--sequence-parallel/--no-sequence-parallel", default=None, help="Ranks of --tp share norms and dropouts too."
    ),
    click.option("--offload/--no-offload", default=None, help="Keep optimizer states in RAM."),
)


def training_options(function: F) -> F:
    """--train and its options, handed to the command as `trained: AskedTraining | None`."""

    def command(*arguments: Any, train: bool, **options: Any) -> Any:
        trained = AskedTraining(**{each.name: options.pop(each.name) for each in fields(AskedTraining)})
        if not train and trained.given():
            raise UsageError(
                f"--{next(iter(trained.given())).replace('_', '-')} is of a training run; give --train as well."
            )
        return function(*arguments, trained=trained if train else None, **options)

    command.__doc__ = function.__doc__
    command.__dict__.update(function.__dict__)
    decorated: Any = command
    for option in reversed((click.option("--train", is_flag=True, help="Plan a training run."), *_OPTIONS)):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def trained_answer(spec: ModelSpec, machine: Machine, asked: Asked, trained: AskedTraining) -> AnswerRecord:
    """The answer for one training run, data-parallel over the devices that the other degrees leave."""
    for name in ("prompt", "concurrency", "kv", "quant", "goal", "engine", "draft", "acceptance", "spill"):
        if name in asked.given():
            raise UsageError(f"--{name} is of a deployment and means nothing to --train; leave it away.")
    return training_record(
        spec, _options(spec, machine, asked, trained), machine=machine, budget_bytes=budget_of(_device(machine), asked)
    )


def _options(spec: ModelSpec, machine: Machine, asked: Asked, trained: AskedTraining) -> TrainingOptions:
    context = min(spec.max_context_tokens, DEFAULT_CONTEXT_TOKENS) if asked.context is None else asked.context
    if context > spec.max_context_tokens:
        raise ContextError(
            f"a context of {context} tokens is {context - spec.max_context_tokens} more than {spec.name} has; "
            f"ask for --context {spec.max_context_tokens} or less."
        )
    chosen: dict[str, Any] = {
        name: value
        for name in ("optimizer", "precision", "kernels", "dropout", "sequence_parallel")
        if (value := getattr(trained, name)) is not None
    }
    tensor, pipeline = asked.tp or 1, asked.pp or 1
    return TrainingOptions(
        **chosen,
        batch_sequences=1 if trained.batch is None else trained.batch,
        context_tokens=context,
        recomputation=trained.recompute or "none",  # type: ignore[arg-type]
        attention=asked.attention or "flash",
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        data_parallel=max(1, _device(machine).count // (tensor * pipeline)),
        zero_stage=trained.zero or 0,
        lora=_lora(trained),
        loss_chunks=1 if trained.loss_chunks is None else trained.loss_chunks,
        offload_optimizer=bool(trained.offload),
    )


def _device(machine: Machine) -> Any:
    return machine.compute_devices()[0]


def _lora(trained: AskedTraining) -> LoraOptions | None:
    if trained.lora is not None and trained.qlora is not None:
        raise UsageError("--lora and --qlora cannot go together; give one of them.")
    if trained.qlora is not None:
        return LoraOptions(rank=trained.qlora, nf4=True)
    return None if trained.lora is None else LoraOptions(rank=trained.lora)
