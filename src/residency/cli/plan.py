"""`residency plan`: what fits, where every byte would live and how fast it would go, without loading anything."""

import json
from pathlib import Path

import click

from residency.cli.deploying import Asked, complete_known, deployed, deployment_options, machine_of, spec_of
from residency.cli.local import is_local, local_answer, local_data, local_plan
from residency.cli.machines import complete_machine
from residency.cli.options import DeviceName, device_option, json_option
from residency.cli.planned import is_plan_file, save_plan, write_whole
from residency.cli.progress import Progress
from residency.cli.tables import columns
from residency.cli.told import in_words
from residency.cli.training import AskedTraining, trained_answer, training_options
from residency.errors import BudgetError, UsageError
from residency.models.specs import known_models
from residency.planner import Plan
from residency.planner.answers import AnswerRecord
from residency.planner.explain import explain
from residency.units import count


@click.command("plan")
@click.argument("model", metavar="[MODEL]", required=False, shell_complete=complete_known)
@click.option(
    "--on",
    metavar="MACHINE",
    shell_complete=complete_machine,
    help="2xH100-80GB, a name of `residency machines`, a TOML file, or this.",
)
@deployment_options
@training_options
@device_option
@click.option("--threads", type=int, metavar="N", help="Threads of this machine's processor (default: all allowed).")
@click.option("--plan-out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Keep a run's plan.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a page with curves."
)
@json_option
def command(
    model: str | None,
    on: str | None,
    asked: Asked,
    trained: AskedTraining | None,
    device: DeviceName | None,
    threads: int | None,
    plan_out: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Show whether MODEL fits on a machine, where every byte would live and how fast it would go; load nothing.

    MODEL is a GGUF file, a folder with config.json (weights need not be there), or a name; without one, the known
    names are listed. Without --on it is a run on this machine: what does not fit is refused with the cheapest change.

    \b
    Examples:
      residency plan smollm2-135m --memory 400MiB
      residency plan meta-llama/Llama-3.1-70B --on 2xH100-80GB --context 8192 --concurrency 32
      residency plan Qwen/Qwen3-30B-A3B --on rtx4090 --ram 64GB --goal tokens-per-second
      residency plan llama-3-8b --train --optimizer adamw --batch 4 --context 4096 --on 4xA100-80GB
    """
    if model is None:
        click.echo(_known(as_json))
        return
    with Progress() as progress:
        if trained is None and on is None and is_plan_file(model):
            told: AnswerRecord | Plan = local_plan(model, asked, threads, device, progress)
        elif trained is None and (device is not None or is_local(model, on, asked)):
            told = _local(model, on, asked, threads, device, progress)
        else:
            told = _elsewhere(model, "this" if on is None else on, asked, trained, threads, progress)
    if plan_out is not None:
        if not isinstance(told, Plan):
            raise UsageError("--plan-out keeps the plan of a run here; leave --on and --train away, or give --json.")
        save_plan(told, plan_out)
    if html is not None:
        from residency.cli.page import page  # imported here: few plans are drawn

        write_whole(html, page(local_answer(told) if isinstance(told, Plan) else told))
    click.echo(_printed(told, as_json))


def _local(
    model: str, on: str | None, asked: Asked, threads: int | None, device: DeviceName | None, progress: Progress
) -> AnswerRecord | Plan:
    """The plan of a run here; with --on this, what does not fit is an answer too."""
    try:
        return local_plan(model, asked, threads, device, progress)
    except BudgetError:
        if on is None:
            raise
        told = deployed(model, machine_of(on, asked, progress), asked)
        if told.fits:
            raise
        return told


def _elsewhere(
    model: str, on: str, asked: Asked, trained: AskedTraining | None, threads: int | None, progress: Progress
) -> AnswerRecord:
    if threads is not None:
        raise UsageError("--threads is of a run on this machine; leave it away.")
    machine = machine_of(on, asked, progress)
    if trained is not None:
        return trained_answer(spec_of(model), machine, asked, trained)
    return deployed(model, machine, asked)


def _printed(told: AnswerRecord | Plan, as_json: bool) -> str:
    if isinstance(told, Plan):
        return json.dumps(local_data(told), indent=2) if as_json else explain(told)
    return told.to_json().rstrip("\n") if as_json else in_words(told)


def _known(as_json: bool) -> str:
    models = known_models()
    if as_json:
        facts = [{"name": m.name, "architecture": m.architecture, "parameters": m.parameters} for m in models]
        return json.dumps({"models": facts}, indent=2)
    rows = [("MODEL", "ARCHITECTURE", "PARAMETERS")]
    rows += [(each.name, each.architecture, count(each.parameters)) for each in models]
    ending = "Plan one: residency plan NAME --on 2xH100-80GB. Machines: residency machines."
    return "\n".join([*columns(rows, right=(2,)), "", ending])
