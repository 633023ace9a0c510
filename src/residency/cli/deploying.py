"""From options to an answer: which model, on which machine, under which load."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from residency.cli.options import memory_bytes
from residency.cli.planned import measured_machine
from residency.cli.progress import Progress
from residency.errors import BudgetError, ContextError, UsageError
from residency.hardware import Device, Machine
from residency.hardware.written import parse_machine
from residency.models.specs import is_known, known_models, named_spec
from residency.planner.answers import AnswerRecord
from residency.planner.deployment import Goal, Question
from residency.planner.engines import ENGINES, default_engine, engine_named
from residency.planner.graph import AttentionKind
from residency.planner.placing import Load
from residency.planner.recording import record
from residency.planner.search import answer
from residency.spec.model import ModelSpec
from residency.spec.state import KV_FORMATS, kv_format_named
from residency.store.fetch import CATALOG, find
from residency.units import binary_bytes

F = TypeVar("F", bound=Callable[..., Any])
_SHORT_NAMES = {"int4": "int4-g128", "q4": "q4_k_m", "q8": "q8_0"}
MAX_CONCURRENCY = 1_000_000
DEFAULT_CONTEXT_TOKENS = 8192  # of a machine elsewhere, where the model has as many


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user asks of a deployment; None leaves the choice to the planner."""

    memory: int | None = None
    ram: int | None = None
    disk: int | None = None
    context: int | None = None
    prompt: int | None = None
    concurrency: int | None = None
    kv: str | None = None
    quant: str | None = None
    tp: int | None = None
    pp: int | None = None
    goal: Goal | None = None
    engine: str | None = None
    draft: str | None = None
    acceptance: float | None = None
    attention: AttentionKind | None = None
    spill: bool | None = None

    def given(self) -> dict[str, object]:
        """What was asked for, by the options' names."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


def complete_known(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For shells: the known models' names that contain what is written, else files."""
    names = (*CATALOG, *(model.name for model in known_models()))
    items = [CompletionItem(name) for name in names if incomplete.lower() in name.lower()]
    return items or [CompletionItem(incomplete, type="file")]


_OPTIONS = (
    click.option("--memory", callback=memory_bytes, metavar="SIZE", help="Budget of each device, such as 400MiB."),
    click.option("--ram", callback=memory_bytes, metavar="SIZE", help="RAM of the host, where weights may lie too."),
    click.option("--disk", callback=memory_bytes, metavar="SIZE", help="Disk of the host, where weights may lie too."),
    click.option("--context", type=int, metavar="TOKENS", help="Prompt and answer of each sequence together."),
    click.option("--prompt", type=int, metavar="TOKENS", help="The prompt's part of the context (default: half)."),
    click.option("--concurrency", type=int, metavar="N", help="Sequences at a time (default: 1)."),
    click.option("--kv", metavar="FORMAT", help=f"Keys and values: {', '.join(KV_FORMATS).lower()} (default: f16)."),
    click.option("--quant", metavar="FORMAT", help="Weights in another format, such as fp8, int8, int4-g128, Q4_K_M."),
    click.option("--tp", type=int, metavar="N", help="Devices that share each matrix (default: all that can)."),
    click.option("--pp", type=int, metavar="N", help="Stages of consecutive layers (default: 1)."),
    click.option("--goal", type=click.Choice(get_args(Goal)), help="Search formats, splits and batches for the best."),
    click.option("--engine", type=click.Choice(list(ENGINES)), help="Whose activations and runtime to count."),
    click.option("--draft", metavar="MODEL", help="A smaller model that proposes tokens."),
    click.option(
        "--acceptance", type=float, metavar="RATE", help="How often a proposed token is right (default: 0.7)."
    ),
    click.option("--attention", type=click.Choice(get_args(AttentionKind)), help="Scores in parts, or whole."),
    click.option("--spill/--no-spill", default=None, help="Let weights lie in RAM and on disk (default: with --ram)."),
)


def deployment_options(function: F) -> F:
    """All options of a deployment, handed to the command as `asked: Asked`."""

    def command(*arguments: Any, **options: Any) -> Any:
        asked = Asked(**{each.name: options.pop(each.name) for each in fields(Asked)})
        return function(*arguments, asked=asked, **options)

    command.__doc__ = function.__doc__
    command.__dict__.update(function.__dict__)
    decorated: Any = command
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def deployed(model: str, machine: Machine, asked: Asked) -> AnswerRecord:
    """The answer for one model on one machine.

    UsageError, ContextError, BudgetError, ... for what cannot be meant; what does not fit is an answer.
    """
    return record(answer(question_of(spec_of(model), machine, asked)))


def question_of(spec: ModelSpec, machine: Machine, asked: Asked) -> Question:
    """The options as a question."""
    device = machine.compute_devices()[0]
    quant = None if asked.quant is None else _SHORT_NAMES.get(asked.quant.lower(), asked.quant)
    engine = engine_named(asked.engine) if asked.engine else default_engine(device, quant or spec.format_label)
    if engine.name == "residency" and machine.runtime_bytes is not None:
        measured_bytes = machine.runtime_bytes
        engine = replace(engine, runtime=lambda device, ranks, stages: measured_bytes)
    if asked.acceptance is not None and asked.draft is None:
        raise UsageError("--acceptance is of a draft model; name one with --draft.")
    spill = asked.spill
    if spill is None:
        spill = asked.goal is not None or asked.ram is not None or asked.disk is not None
    return Question(
        model=spec,
        machine=machine,
        engine=engine,
        load=load_of(spec, asked),
        quant=quant,
        kv=None if asked.kv is None else kv_format_named(asked.kv),
        tensor_parallel=asked.tp,
        pipeline_parallel=asked.pp,
        budget_bytes=budget_of(device, asked),
        may_spill=spill,
        attention=asked.attention or "flash",
        goal=asked.goal,
        concurrency_is_free=asked.goal in ("throughput", "cost") and asked.concurrency is None,
        draft=None if asked.draft is None else spec_of(asked.draft),
        acceptance=0.7 if asked.acceptance is None else asked.acceptance,
    )


def load_of(spec: ModelSpec, asked: Asked) -> Load:
    """The load asked for: by default one sequence of 8,192 tokens, or of the model's context, half of it a prompt."""
    context = min(spec.max_context_tokens, DEFAULT_CONTEXT_TOKENS) if asked.context is None else asked.context
    concurrency = 1 if asked.concurrency is None else asked.concurrency
    prompt = max(1, context // 2) if asked.prompt is None else asked.prompt
    for name, number in (("context", context), ("concurrency", concurrency), ("prompt", prompt)):
        if number < 1:
            raise UsageError(f"--{name} cannot be {number}; give at least 1.")
    if concurrency > MAX_CONCURRENCY:
        raise UsageError(
            f"--concurrency cannot be {concurrency}; no machine answers more than {MAX_CONCURRENCY} at once."
        )
    if context > spec.max_context_tokens:
        raise ContextError(
            f"a context of {context} tokens is {context - spec.max_context_tokens} more than {spec.name} has; "
            f"ask for --context {spec.max_context_tokens} or less."
        )
    if prompt > context:
        raise UsageError(f"a prompt of {prompt} tokens is longer than a context of {context}; give a larger --context.")
    return Load(context_tokens=context, prompt_tokens=prompt, concurrency=concurrency)


def budget_of(device: Device, asked: Asked) -> int | None:
    """The budget of each device. BudgetError where the device has less memory, UsageError for none at all."""
    if asked.memory == 0:
        raise UsageError("a budget of 0 bytes holds nothing; give --memory an amount such as 24GiB.")
    if asked.memory is not None and asked.memory > device.usable_bytes:
        raise BudgetError(
            f"a budget of {binary_bytes(asked.memory)} is more than the {binary_bytes(device.usable_bytes)} that "
            f"{device.name} has; give --memory {device.usable_bytes // 1024**2}MiB or less."
        )
    return asked.memory


def machine_of(name: str, asked: Asked, progress: Progress) -> Machine:
    """The machine called `name`; `this` is measured if it has not been."""
    if name != "this":
        return parse_machine(name, ram_bytes=asked.ram, disk_bytes=asked.disk)
    if asked.ram is not None or asked.disk is not None:
        raise UsageError("--ram and --disk are of a machine elsewhere; give --memory for a budget of this one.")
    return measured_machine(progress)


def is_model(name: str) -> bool:
    """Whether a name means a model without fetching one."""
    return Path(name).expanduser().exists() or is_known(name)


def spec_of(model: str) -> ModelSpec:
    """The model that a path or a name means: of files here, or from the published configurations. Nothing is fetched.

    FetchError for a name that nobody knows, with those that are near.
    """
    path = Path(model).expanduser()
    if not path.exists() and not is_known(model):
        try:
            path = find(model) or path
        except UsageError:
            pass  # named_spec says it better: it knows more names
    return named_spec(path if path.exists() else model)
