"""`residency prepare`: everything that only a first run does, in a process of its own.

Fetching, measuring, compiling and converting need memory that a run does not; a run that finds them undone has this
verb do them first, so that its own peak is what its plan says.
"""

import hashlib
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click

from residency import __version__
from residency.cli.options import PlanOptions, model_argument, plan_options
from residency.cli.planned import is_plan_file, planned
from residency.cli.progress import Progress
from residency.engine.calibrate import measure_formats
from residency.engine.engine import Engine
from residency.engine.planning import open_planned
from residency.kernels.library import kernel_folder
from residency.paths import cache_folder, child_environment
from residency.planner import Plan
from residency.planner.streaming import LEAST_SLOTS
from residency.store.fetch import find
from residency.store.probe import kept_machine


@click.command("prepare")
@model_argument
@plan_options
def command(model: str, asked: PlanOptions) -> None:
    """Fetch MODEL, measure this machine, compile kernels and convert the model, so that its first run starts at once.

    A run does this by itself where it is missing. Nothing is done twice.

    \b
    Examples:
      residency prepare smollm2-135m
    """
    with Progress() as progress:
        plan = planned(model, asked, progress)
        with Engine.open(_with_little_in_memory(plan), progress=progress):
            pass
        if plan.device is None:
            measure_formats(tensor.format.name for tensor in open_planned(plan)[1].tensors if len(tensor.shape) == 2)
    marker = _marker(plan.model_path)
    with suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def _with_little_in_memory(plan: Plan) -> Plan:
    """The same, but that none of the weights stay where some stream: the compiler needs the room."""
    if plan.streaming is None:
        return plan
    streaming = replace(plan.streaming, slots=LEAST_SLOTS, streamed=tuple(range(len(plan.streaming.span_bytes))))
    weights_bytes = plan.memory.weights - plan.streaming.memory_bytes + streaming.memory_bytes
    return replace(plan, streaming=streaming, memory=replace(plan.memory, weights=weights_bytes))


def prepare_first(model: str, asked: PlanOptions) -> None:
    """Run the verb in another process where something is left to do. Exits as it does where it fails."""
    if asked.device == "cuda" or _is_prepared(model):
        return
    memory = None if asked.memory_bytes is None else f"{asked.memory_bytes}B"
    options = {"memory": memory, "context": asked.context_tokens, "threads": asked.threads, "kv": asked.kv_format}
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    watched = sys.stderr.isatty()  # somebody sees the bars; else what is said is passed on
    finished = subprocess.run(
        [sys.executable, "-m", "residency", "prepare", *words, "--", model],
        stderr=None if watched else subprocess.PIPE,
        text=True,
        check=False,
        env=child_environment(),
    )
    if finished.stderr:
        click.echo(finished.stderr, err=True, nl=False)
    if finished.returncode:
        raise click.exceptions.Exit(finished.returncode)


def _is_prepared(model: str) -> bool:
    path = Path(model) if is_plan_file(model) else find(model)
    if path is not None and is_plan_file(model):
        path = Plan.from_json(path.read_text("utf-8")).model_path
    return path is not None and kept_machine() is not None and _marker(path).exists()


def _marker(path: Path) -> Path:
    """A file that exists once the model at `path` has been prepared, with these kernels, by this version."""
    source = path / "config.json" if path.is_dir() else path
    try:
        status = source.stat()
    except OSError:
        return cache_folder() / "prepared" / "none"
    words = f"{source.resolve()} {status.st_size} {status.st_mtime_ns} {kernel_folder().name} {__version__}"
    return cache_folder() / "prepared" / hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()[:32]
