"""From a model's name to a plan for this machine."""

from pathlib import Path

from residency.hardware import Machine
from residency.models.specs import model_spec
from residency.planner import Plan, plan_run
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
    checkpoint = open_checkpoint(resolve(str(model)))
    machine = machine or this_machine()
    budget_bytes = parse_bytes(memory) if isinstance(memory, str) else memory
    return plan_run(
        model_spec(checkpoint),
        machine=machine,
        runtime_bytes=machine.runtime_bytes or 0,
        budget_bytes=budget_bytes,
        context_tokens=context,
        max_sequences=max_sequences,
        threads=threads,
        model_path=checkpoint.path,
        fingerprint=checkpoint.fingerprint,
    )
