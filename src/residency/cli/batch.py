"""`residency batch`: a file of requests, answered inside a memory budget."""

import asyncio
import json
import time
from pathlib import Path

import click

from residency.cli.options import PlanOptions, json_option, model_argument, plan_options
from residency.cli.progress import Progress
from residency.cli.serve import (
    Admission,
    admission_option,
    few_arenas,
    max_sequences_option,
    name_of,
    require_server,
    serving_plan,
)
from residency.engine.ceiling import held_to_budget
from residency.engine.engine import Engine
from residency.engine.service import Service
from residency.errors import UsageError
from residency.planner.explain import explain, speed
from residency.units import seconds

_READY_PER_SEQUENCE = 2  # requests that are tokenized beforehand, so that a place that is free is taken at once
_MOST_QUEUED = 1 << 20  # never reached: a batch begins no more than it can do
_TOLD_WITHIN_SECONDS = 0.1  # nobody reads along


@click.command("batch", short_help="Answer a file of requests in OpenAI's batch format.")
@model_argument
@click.argument("requests", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="IN.JSONL")
@click.argument("results", type=click.Path(dir_okay=False, path_type=Path), metavar="OUT.JSONL")
@plan_options
@max_sequences_option
@admission_option
@click.option("--name", "names", multiple=True, metavar="NAME", help="What the requests call the model too.")
@json_option
def command(
    model: str,
    requests: Path,
    results: Path,
    asked: PlanOptions,
    max_sequences: int | None,
    admission: Admission,
    names: tuple[str, ...],
    as_json: bool,
) -> None:
    """Answer the requests in IN.JSONL with MODEL, and append a result for each to OUT.JSONL.

    Each line is an object with custom_id, url (/v1/chat/completions or /v1/completions) and body, as OpenAI's batches
    are. Called again after a kill, it goes on with those that have no result. A request that cannot be answered has
    its error as its result.

    \b
    Examples:
      residency batch smollm2-135m requests.jsonl results.jsonl --memory 400MiB
    """
    require_server()
    from residency.server.batch import Batch, Results, Tally, read_batch  # imported here: see serve
    from residency.server.desk import Desk
    from residency.server.model import Model
    from residency.server.watch import Unobserved

    if results.exists() and results.samefile(requests):
        raise UsageError("requests and results are the same file; give another for the results.")
    with Results(results) as kept:
        waiting = [entry.custom_id in kept.custom_ids for entry in read_batch(requests)]
        tally = Tally(total=len(waiting), done=sum(waiting))
        plan = serving_plan(model, asked, max_sequences)
        if not as_json:
            click.echo(explain(plan))
        few_arenas()
        started, before = time.perf_counter(), tally.done
        with (
            Progress() as progress,
            Engine.open(plan, progress=progress) as engine,
            Service(
                engine, queue_limit=_MOST_QUEUED, admission=admission, stream_interval_seconds=_TOLD_WITHIN_SECONDS
            ) as service,
            Model.of(engine, names=(name_of(model), *names)) as served,
            held_to_budget(plan),
        ):
            batch = Batch(
                desk=Desk(service, served, Unobserved()),
                results=kept,
                tally=tally,
                at_a_time=_READY_PER_SEQUENCE * plan.max_sequences,
                progress=lambda tally: progress("answering", tally.done, tally.total),
            )
            asyncio.run(batch.run(read_batch(requests)))
    elapsed = time.perf_counter() - started
    if as_json:
        figures = {"total": tally.total, "answered": tally.done - before, "failed": tally.failed}
        rates = {"seconds": elapsed, "completion_tokens": tally.completion_tokens}
        click.echo(json.dumps({**figures, **rates}))
    else:
        click.echo(
            f"ran    {tally.done - before} of {tally.total} requests in {seconds(elapsed)}"
            f" ({before} had results, {tally.failed} failed) · "
            f"{speed(tally.completion_tokens / elapsed)} tokens/s"
        )
