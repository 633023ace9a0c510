"""From a model's name to a plan for this machine, and from a plan's file to a plan that this machine can run."""

from pathlib import Path

from residency.engine.calibrate import RUN_FOOTPRINT, runtime_bytes, this_machine
from residency.errors import FileError, MachineError
from residency.hardware import Machine
from residency.hardware.host import read_host
from residency.kernels.simd.tiles import has_tiles
from residency.models.made_up import made_up, made_up_spec
from residency.models.registry import forward_of
from residency.models.specs import model_spec
from residency.planner import Plan, plan_run
from residency.planner.check import check_plan
from residency.planner.quality import default_kv
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import ModelSpec
from residency.spec.opening import open_checkpoint
from residency.spec.state import KvName
from residency.store.fetch import resolve
from residency.units import parse_bytes


def plan(
    model: str | Path,
    *,
    memory: str | int | None = None,
    context: int | None = None,
    max_sequences: int = 1,
    oversubscribe: bool = False,
    threads: int | None = None,
    machine: Machine | None = None,
    kv_format: KvName | None = None,
) -> Plan:
    """The plan of running `model` here: a catalog name, a GGUF file, a folder or a hub id.

    memory: the budget of the whole process ("400MiB", or bytes), by default most of what is free; context: tokens
    of each sequence; oversubscribe: all sequences share what the budget leaves for the KV cache, instead of a whole
    context for each; kv_format: of keys and values, by default `default_kv`'s. BudgetError says what is
    missing and the cheapest change; UsageError, FileError, ... as they are named in residency.errors. The first call
    ever measures this machine, in another process.
    """
    return plan_rows(
        model,
        memory=memory,
        context=context,
        max_sequences=max_sequences,
        oversubscribe=oversubscribe,
        threads=threads,
        machine=machine,
        kv_format=kv_format,
    )


def plan_rows(
    model: str | Path,
    *,
    memory: str | int | None = None,
    context: int | None = None,
    max_sequences: int = 1,
    oversubscribe: bool = False,
    threads: int | None = None,
    machine: Machine | None = None,
    chunk_tokens: int | None = None,
    logit_rows: int | None = None,
    kv_format: KvName | None = None,
    footprint: str = RUN_FOOTPRINT,
) -> Plan:
    """As `plan`, with steps of at most `chunk_tokens` that keep the logits of `logit_rows` tokens.

    footprint: the module that measures what the process takes beside weights.
    """
    checkpoint = open_checkpoint(resolve(str(model)))
    spec = model_spec(checkpoint)
    machine = machine or this_machine()
    return plan_run(
        spec,
        machine=machine,
        runtime_bytes=runtime_bytes(checkpoint, program=footprint),
        budget_bytes=parse_bytes(memory) if isinstance(memory, str) else memory,
        context_tokens=context,
        max_sequences=max_sequences,
        oversubscribe=oversubscribe,
        chunk_tokens=chunk_tokens,
        logit_rows=logit_rows,
        threads=threads,
        kv_format=kv_format or default_kv(spec),
        prompts_in_tiles=has_tiles(),
        model_path=checkpoint.path.absolute(),
        fingerprint=checkpoint.fingerprint,
    )


def read_plan(path: Path) -> Plan:
    """The plan in a file, checked against its model.

    FileError where the file is no plan or does not fit its model (see `open_planned`), MachineError where it has more
    threads than may run here.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise FileError(f"the plan {path} could not be read: {reason}; make it anew with --plan-out.") from error
    plan = Plan.from_json(text)
    allowed = read_host().threads
    if plan.threads > allowed:
        raise MachineError(
            f"the plan {path} is for {plan.threads} threads and {allowed} are allowed here; make it anew here."
        )
    planned_spec(plan)
    return plan


def planned_spec(plan: Plan) -> ModelSpec:
    """What the plan's model is; of one that is made up from a published configuration there are no files."""
    made = None if plan.device is None else plan.device.random_weights
    if made is None or plan.model_path.exists():
        return open_planned(plan)[1]
    model = made_up_spec(plan.model_path, made)
    check_plan(plan, model)
    forward_of(model)
    return model


def open_planned(plan: Plan) -> tuple[Checkpoint, ModelSpec]:
    """The headers of the plan's model, and what they describe.

    FileError if the files are no longer those that were planned or the plan does not fit them, UnsupportedError if the
    model cannot be run.
    """
    checkpoint = open_checkpoint(plan.model_path)
    if checkpoint.fingerprint != plan.model_fingerprint:
        raise FileError(f"{plan.model_path} has changed since it was planned; make the plan anew.")
    model = model_spec(checkpoint)
    if plan.device is not None and plan.device.random_weights is not None:
        model = made_up(model, plan.device.random_weights)
    if plan.prompts_in_tiles and not has_tiles():
        raise FileError("the plan wants tile registers (AMX), which this process may not use; make the plan anew.")
    check_plan(plan, model)
    forward_of(model)
    return checkpoint, model
