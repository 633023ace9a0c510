"""From what a user names to a plan: a model is fetched, this machine measured and the run planned; a plan is read."""

import os
from pathlib import Path

from residency.cli.options import PlanOptions
from residency.cli.progress import Progress
from residency.engine.calibrate import RUN_FOOTPRINT, this_machine
from residency.engine.device import plan_for_device
from residency.engine.planning import plan_rows, read_plan
from residency.errors import FileError, UsageError
from residency.hardware import Machine
from residency.models.specs import is_known
from residency.planner import Plan
from residency.planner.device_needs import DeviceRequest
from residency.store.fetch import pull


def planned(
    model: str,
    asked: PlanOptions,
    progress: Progress,
    *,
    chunk_tokens: int | None = None,
    logit_rows: int | None = None,
    max_sequences: int = 1,
    footprint: str = RUN_FOOTPRINT,
) -> Plan:
    """The plan that the file `model` holds, or the one made now for the model of that name.

    Several sequences share the pages that the budget leaves. chunk_tokens, logit_rows, footprint: see `plan_rows`.
    UsageError where something is asked for that a plan's file has decided.
    """
    if is_plan_file(model):
        asked.refuse_any(model)
        return read_plan(Path(model))
    if asked.device == "cuda":
        named = Path(model) if asked.random_weights and is_known(model) else fetched(model, progress)
        return device_plan(named, asked, chunk_tokens=chunk_tokens, logit_rows=logit_rows, max_sequences=max_sequences)
    path = fetched(model, progress)
    if asked.kv_format == "BF16" or asked.kv_format == "FP8":
        raise UsageError(f"--kv {asked.kv_format} is for --device cuda; give F16, F32, INT8 or INT4.")
    return plan_rows(
        path,
        memory=asked.memory_bytes,
        context=asked.context_tokens,
        threads=asked.threads,
        kv_format=asked.kv_format,
        machine=measured_machine(progress),
        chunk_tokens=chunk_tokens,
        logit_rows=logit_rows,
        max_sequences=max_sequences,
        oversubscribe=max_sequences > 1,
        footprint=footprint,
    )


def device_plan(
    path: Path,
    asked: PlanOptions,
    *,
    chunk_tokens: int | None = None,
    logit_rows: int | None = None,
    max_sequences: int = 1,
) -> Plan:
    """The plan of a run of the model at `path`, or of a published one without weights, on the CUDA device here.
    UsageError or MachineError where there is none.
    """
    if asked.threads is not None:
        raise UsageError("--threads is of the processor; leave it away with --device cuda.")
    request = DeviceRequest(
        budget_bytes=asked.memory_bytes,
        context_tokens=asked.context_tokens,
        kv_format=asked.kv_format or "BF16",
        chunk_tokens=chunk_tokens,
        logit_rows=logit_rows,
        max_sequences=max_sequences,
        random_weights=asked.random_weights,
        oversubscribe=max_sequences > 1,
    )
    return plan_for_device(path, request)


def is_plan_file(model: str) -> bool:
    """Whether `model` names a plan: a file called .json, or one that begins as JSON does.

    UsageError for a name that ends in .json where there is no file.
    """
    path = Path(model)
    if not path.is_file():
        if path.suffix == ".json":
            raise UsageError(f"there is no plan {model}; make one with residency plan MODEL --plan-out {model}.")
        return False
    if path.suffix == ".json":
        return True
    with path.open("rb") as file:
        return file.read(1) == b"{"


def fetched(model: str, progress: Progress) -> Path:
    """Where the model is, after fetching it if it is not here."""
    path = pull(model, progress=progress.stage(f"pulling {model}"), notice=progress.say)
    progress.close()
    return path


def measured_machine(progress: Progress, *, renew: bool = False) -> Machine:
    """This machine, measured now if it has not been."""
    with progress.waiting("measuring this machine"):
        return this_machine(renew=renew)


def save_plan(plan: Plan, path: Path) -> None:
    """Write the plan whole or not at all. FileError or OSError where the place cannot be written."""
    write_whole(path, plan.to_json())


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all. FileError or OSError where the place cannot be written."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        scratch.write_text(text, "utf-8")
        scratch.replace(path)
    except FileNotFoundError as error:
        raise FileError(
            f"{path} cannot be written: there is no folder {path.parent}; name one that is there."
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
