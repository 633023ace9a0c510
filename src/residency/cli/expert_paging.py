"""`residency bench --expert-trace`: experts that do not all fit, along routes that a file gives."""

import json
from pathlib import Path

import click

from residency.cli.planned import fetched, measured_machine
from residency.cli.progress import Progress
from residency.cli.tables import columns
from residency.engine.planning import plan_rows
from residency.models.specs import model_spec
from residency.planner import Plan
from residency.planner.explain import speed
from residency.spec.opening import open_checkpoint
from residency.units import decimal_bytes, rate
from residency.verifier.expert_trace import TraceSpeed, read_trace, trace_speed


def expert_paging(model: str, trace_path: Path, *, memory: int | None, threads: int | None, as_json: bool) -> None:
    """Measure, and print the hit rates and the speed beside their forecasts."""
    with Progress() as progress:
        path = fetched(model, progress)
        machine = measured_machine(progress)
        spec = model_spec(open_checkpoint(path))
        trace = read_trace(trace_path, spec)
        plan = plan_rows(path, memory=memory, context=len(trace) + 2, threads=threads, machine=machine)
        found = trace_speed(plan, spec, machine, trace, progress)
    if as_json:
        click.echo(json.dumps({"model": plan.model_name, "threads": plan.threads, **found.to_data()}))
    else:
        click.echo("\n".join(_lines(plan, found)))


def _lines(plan: Plan, found: TraceSpeed) -> list[str]:
    rows = [
        ["", "measured", "forecast"],
        ["experts in memory when needed", f"{found.hit_rate:.1%}", f"{found.forecast.frequent:.1%}"],
        ["tokens/s", speed(found.tokens_per_second), speed(found.forecast_tokens_per_second)],
    ]
    return [
        f"{plan.model_name} · {found.slots} of {found.num_experts} experts in memory · {found.steps} steps",
        "",
        *columns(rows, right=(1, 2)),
        "",
        f"beside it the disk gave {rate(found.disk_bytes_per_second)} of experts, which the forecast goes by",
        f"by recency {found.forecast.recent:.1%} would be there, with hindsight {found.forecast.hindsight:.1%}",
        f"a step reads {decimal_bytes(found.read_bytes_per_step)} of experts at {rate(found.read_bytes_per_second)}; "
        f"to read all of them each step would give {speed(found.streaming_tokens_per_second)} tokens/s, "
        f"{found.tokens_per_second / found.streaming_tokens_per_second:.1f} times slower",
    ]
