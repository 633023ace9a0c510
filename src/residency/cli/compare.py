"""`residency compare`: models beside each other on machines beside each other."""

import json
from collections.abc import Sequence

import click

from residency.cli.deploying import Asked, complete_known, deployed, deployment_options, is_model, machine_of
from residency.cli.machines import complete_machine
from residency.cli.options import json_option
from residency.cli.progress import Progress
from residency.cli.tables import columns
from residency.errors import MachineError, UsageError
from residency.hardware.written import parse_machine
from residency.planner.answers import AnswerRecord
from residency.planner.explain import speed
from residency.records import to_data
from residency.units import binary_bytes, seconds

_HEAD = ("MODEL", "MACHINE", "FORMAT", "FITS", "WEIGHTS", "SEQUENCES", "TOKENS/S", "ALONE", "FIRST TOKEN", "BOUND")


@click.command("compare")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, shell_complete=complete_known)
@click.option(
    "--on",
    "machines",
    multiple=True,
    metavar="MACHINE",
    shell_complete=complete_machine,
    help="Machines: --on A B, or --on A --on B.",
)
@deployment_options
@json_option
def command(models: tuple[str, ...], machines: tuple[str, ...], asked: Asked, as_json: bool) -> None:
    """Answer for every MODEL on every machine, as `residency plan` would, one row each.

    Weights are those of one device; SEQUENCES is how many of the context asked for fit.

    \b
    Examples:
      residency compare llama-3.1-8b qwen2.5-7b --on rtx4090 --on H100-80GB
      residency compare llama-3.1-70b --on 2xH100-80GB --on 4xA100-80GB --concurrency 32 --goal throughput
    """
    with Progress() as progress:
        models, machines = _apart(models, machines)
        on = [machine_of(name, asked, progress) for name in machines or ("this",)]
        if len(models) * len(on) > 200:
            raise UsageError(f"{len(models) * len(on)} rows are more than anybody reads; compare at most 200 at once.")
        answers = [deployed(model, machine, asked) for model in models for machine in on]
    if as_json:
        click.echo(json.dumps({"answers": [to_data(answer) for answer in answers]}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(columns([_HEAD, *map(_row, answers)], right=range(4, 9))))


def _apart(models: tuple[str, ...], machines: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Models and machines, where further machines were written behind the first one: --on A B."""
    further = tuple(name for name in models if machines and not is_model(name) and _is_machine(name))
    return tuple(name for name in models if name not in further), machines + further


def _is_machine(name: str) -> bool:
    try:
        parse_machine(name)
    except MachineError:
        return False
    return True


def _row(answer: AnswerRecord) -> Sequence[str]:
    forecast, placement = answer.forecast, answer.placement
    assert forecast is not None
    sequences = placement.replicas * min(device.max_concurrency for device in answer.devices)
    return (
        answer.model.name,
        answer.machine,
        f"{placement.quant or answer.model.format} + {placement.kv_format}",
        "yes" if answer.fits else f"-{binary_bytes(answer.missing_bytes)}",
        binary_bytes(max(device.weights for device in answer.devices)),
        f"{sequences:.1f}",
        speed(forecast.decode_tokens_per_second),
        speed(forecast.decode_tokens_per_second_alone),
        seconds(forecast.time_to_first_token_seconds_at_concurrency),
        forecast.bound,
    )
