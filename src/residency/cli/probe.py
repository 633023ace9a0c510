"""`residency probe`: what this machine can do, as measured."""

import json
import time
from typing import TYPE_CHECKING

import click

from residency.cli.options import DeviceName, json_option
from residency.cli.planned import measured_machine
from residency.cli.progress import Progress
from residency.cli.tables import columns, paragraph
from residency.engine.device import this_device
from residency.hardware import Machine, ThreadRate, Tier
from residency.paths import cache_folder
from residency.records import to_data
from residency.units import binary_bytes, operations_rate, rate, seconds

if TYPE_CHECKING:
    from residency.store.device_rate import DeviceFigures

_DAY_SECONDS = 24 * 3600


@click.command("probe")
@click.option("--renew", is_flag=True, help="Measure again, whatever the age of what is kept.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Which to show: this machine, or its GPU."
)
@json_option
def command(renew: bool, device: DeviceName, as_json: bool) -> None:
    """Show this machine as forecasts see it: read rates, caches, instruction sets, and what the container allows.

    The first time, and when what is kept is 30 days old, it is measured; that takes a few seconds.

    \b
    Examples:
      residency probe
      residency probe --renew --json
      residency probe --device cuda
    """
    if device == "cuda":
        figures = this_device(renew=renew)
        click.echo(json.dumps(to_data(figures)) if as_json else device_in_words(figures))
        return
    with Progress() as progress:
        machine = measured_machine(progress, renew=renew)
    if as_json:
        click.echo(json.dumps({**json.loads(machine.to_json()), "age_seconds": _age_seconds(machine)}))
    else:
        click.echo(in_words(machine))


def in_words(machine: Machine) -> str:
    """The machine for people."""
    figures = [(name, f"{figure.value:.4g}", figure.origin) for name, figure in sorted(machine.figures.items())]
    cores = f"{machine.threads} threads on {machine.cores} cores are allowed"
    paragraphs = [
        paragraph("machine", [f"{machine.name} · {machine.processor}", cores, " ".join(machine.instruction_sets)]),
        *(paragraph(tier.name, _tier_lines(tier)) for tier in machine.tiers),
        paragraph("caches", _cache_lines(machine)),
        paragraph("figures", columns(figures, right=(1,))),
        paragraph("runtime", [_runtime(machine)]),
        paragraph("measured", [_measured(machine)]),
    ]
    return "\n".join(paragraphs)


def device_in_words(figures: "DeviceFigures") -> str:
    """A CUDA device for people."""
    rows = [
        ("memory, copied (read and written)", rate(figures.copy_bytes_per_second)),
        ("products in bf16", operations_rate(figures.bf16_operations_per_second)),
        ("products in int8", operations_rate(figures.int8_operations_per_second)),
        ("to it from pinned RAM", rate(figures.pinned_to_device)),
        ("from it to pinned RAM", rate(figures.pinned_from_device)),
        ("to it from pinned RAM, by kernels", rate(figures.pinned_by_kernels)),
        ("to it from pageable RAM", rate(figures.pageable_to_device)),
        ("from it to pageable RAM", rate(figures.pageable_from_device)),
        ("to pinned RAM from the disk", rate(figures.disk_to_pinned)),
    ]
    taken = f"{binary_bytes(figures.total_bytes)}, of which the driver and libraries take "
    about = [f"{figures.name} · {figures.multiprocessors} multiprocessors"]
    paragraphs = [
        paragraph("device", [*about, taken + binary_bytes(figures.runtime_bytes)]),
        paragraph("rates", columns(rows, right=(1,))),
    ]
    return "\n".join(paragraphs)


def _tier_lines(tier: Tier) -> list[str]:
    free = f"{binary_bytes(tier.capacity_bytes)}, of which {binary_bytes(tier.available_bytes)} are free"
    rows = [
        (
            f"read by {each.threads} thread{'s' if each.threads > 1 else ''}",
            rate(each.bytes_per_second),
            _working_set(each),
        )
        for each in tier.read_rates
    ]
    return [free, *columns(rows, right=(1,))]


def _working_set(each: ThreadRate) -> str:
    return f"of {binary_bytes(each.working_set_bytes)}, again and again" if each.working_set_bytes else ""


def _cache_lines(machine: Machine) -> list[str]:
    rows = [
        (
            f"L{cache.level} {cache.kind}",
            binary_bytes(cache.num_bytes),
            f"shared by {cache.sharing_threads}" if cache.sharing_threads > 1 else "",
        )
        for cache in machine.caches
    ]
    return columns(rows, right=(1,)) if rows else ["not known"]


def _runtime(machine: Machine) -> str:
    if machine.runtime_bytes is None:
        return "not measured yet"
    return f"{binary_bytes(machine.runtime_bytes)} for a process without a model"


def _measured(machine: Machine) -> str:
    age = _age_seconds(machine)
    if age is None:
        return "never: written down"
    ago = f"{age / _DAY_SECONDS:.0f} days" if age >= 2 * _DAY_SECONDS else seconds(age)
    return f"{ago} ago, kept in {cache_folder() / 'machine.json'}; --renew measures again"


def _age_seconds(machine: Machine) -> float | None:
    return None if machine.measured_unix_seconds is None else max(0.0, time.time() - machine.measured_unix_seconds)
