"""`residency plan`: what a run would need, without loading anything."""

from pathlib import Path

import click

from residency.cli.options import PlanOptions, json_option, model_argument, plan_options
from residency.cli.planned import planned, save_plan
from residency.cli.progress import Progress
from residency.planner.explain import explain


@click.command("plan")
@model_argument
@plan_options
@click.option("--plan-out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Keep the plan.")
@json_option
def command(model: str, asked: PlanOptions, plan_out: Path | None, as_json: bool) -> None:
    """Show what running MODEL would need, where every byte would live and how fast it would go; load nothing.

    What does not fit is refused, with the number of bytes that is missing and the cheapest change.

    \b
    Examples:
      residency plan smollm2-135m --memory 400MiB
      residency plan model.gguf --memory 2GB --context 8192 --plan-out plan.json
    """
    with Progress() as progress:
        plan = planned(model, asked, progress)
    if plan_out is not None:
        save_plan(plan, plan_out)
    click.echo(plan.to_json().rstrip("\n") if as_json else explain(plan))
