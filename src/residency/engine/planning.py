"""From a model's name to a plan for this machine, and from a plan's file to a plan that this machine can run."""

from pathlib import Path

from residency.engine.calibrate import runtime_bytes, this_machine
from residency.errors import FileError, MachineError
from residency.hardware import Machine
from residency.hardware.host import read_host
from residency.models.specs import model_spec
from residency.planner import Plan, plan_run
from residency.planner.buffers import activation_buffers
from residency.planner.memory import kv_groups
from residency.spec.layout import store_layout
from residency.spec.opening import open_checkpoint
from residency.store.fetch import resolve
from residency.units import parse_bytes


def plan(
    model: str | Path,
    *,
    memory: str | int | None = None,
    context: int | None = None,
    max_sequences: int = 1,
    threads: int | None = None,
    machine: Machine | None = None,
) -> Plan:
    """The plan of running `model` here: a catalog name, a GGUF file, a folder or a hub id.

    memory: the budget of the whole process ("400MiB", or bytes), by default most of what is free; context: tokens
    of each sequence. BudgetError says what is missing and the cheapest change; UsageError, FileError, ... as they
    are named in residency.errors. The first call ever measures this machine, in another process.
    """
    return plan_rows(
        model, memory=memory, context=context, max_sequences=max_sequences, threads=threads, machine=machine
    )


def plan_rows(
    model: str | Path,
    *,
    memory: str | int | None = None,
    context: int | None = None,
    max_sequences: int = 1,
    threads: int | None = None,
    machine: Machine | None = None,
    chunk_tokens: int | None = None,
    logit_rows: int | None = None,
) -> Plan:
    """As `plan`, with steps of at most `chunk_tokens` that keep the logits of `logit_rows` tokens."""
    checkpoint = open_checkpoint(resolve(str(model)))
    spec = model_spec(checkpoint)
    machine = machine or this_machine()
    return plan_run(
        spec,
        machine=machine,
        runtime_bytes=runtime_bytes(checkpoint),
        budget_bytes=parse_bytes(memory) if isinstance(memory, str) else memory,
        context_tokens=context,
        max_sequences=max_sequences,
        chunk_tokens=chunk_tokens,
        logit_rows=logit_rows,
        threads=threads,
        model_path=checkpoint.path.absolute(),
        fingerprint=checkpoint.fingerprint,
    )


def read_plan(path: Path) -> Plan:
    """The plan in a file, checked against its model and this machine.

    FileError where the file is no plan, or where its arrays are not those that its model needs: a plan's buffers are
    what native code writes to. MachineError where it has more threads than may run here.
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
    checkpoint = open_checkpoint(plan.model_path)
    if checkpoint.fingerprint != plan.model_fingerprint:
        raise FileError(f"{plan.model_path} has changed since {path} was made; make the plan anew.")
    spec = model_spec(checkpoint)
    logit_rows = next((buffer.shape[0] for buffer in plan.buffers if buffer.name == "logits" and buffer.shape), 1)
    buffers = activation_buffers(
        spec,
        chunk_tokens=plan.chunk_tokens,
        max_sequences=plan.max_sequences,
        max_context_tokens=plan.context_tokens,
        threads=plan.threads,
        logit_rows=logit_rows,
    )
    groups = kv_groups(
        spec,
        context_tokens=plan.context_tokens,
        chunk_tokens=plan.chunk_tokens,
        max_sequences=plan.max_sequences,
    )
    needed = (buffers, groups, store_layout(spec).resident_bytes, spec.architecture)
    if needed != (plan.buffers, plan.kv_groups, plan.memory.weights, plan.architecture) or (
        plan.context_tokens > spec.max_context_tokens or not plan.forecast.read_bytes_per_second
    ):
        raise FileError(f"the plan {path} does not fit its model {plan.model_name}; make it anew with --plan-out.")
    return plan
