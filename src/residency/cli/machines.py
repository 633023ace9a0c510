"""`residency machines`: the catalog, and one machine with the source of each figure."""

import json
from collections.abc import Mapping

import click
from click.shell_completion import CompletionItem

from residency.cli.options import json_option, memory_bytes
from residency.cli.planned import measured_machine
from residency.cli.progress import Progress
from residency.cli.tables import columns, paragraph
from residency.errors import UsageError
from residency.hardware import Device, Link, Machine
from residency.hardware.catalog import Catalog, DevicePart, load_catalog
from residency.hardware.device import NUMBER_FORMATS, STATUSES
from residency.hardware.written import parse_machine
from residency.records import to_data
from residency.units import binary_bytes, operations_rate, rate, seconds

DEVICE_HEAD = ("DEVICE", "LISTED", "USABLE", "MEMORY", "FP16", "FP8", "LINKS", "STATUS")


def complete_machine(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For shells: the catalog's names that begin so, whatever their case, else files."""
    wanted = incomplete.lower()
    names = [CompletionItem(name) for name in ("this", *load_catalog().parts()) if name.lower().startswith(wanted)]
    return names or [CompletionItem(incomplete, type="file")]


@click.command("machines")
@click.argument("name", required=False, shell_complete=complete_machine)
@click.option("--ram", "ram_bytes", callback=memory_bytes, metavar="SIZE", help="RAM of the host, such as 64GB.")
@click.option("--disk", "disk_bytes", callback=memory_bytes, metavar="SIZE", help="Size of the disk, such as 2TB.")
@click.option("--toml", "as_toml", is_flag=True, help="Print the machine as the TOML file that describes one's own.")
@json_option
def command(name: str | None, ram_bytes: int | None, disk_bytes: int | None, as_toml: bool, as_json: bool) -> None:
    """List the catalog, or show the machine NAME with the source of each figure.

    NAME is one of the catalog's with a count before it or none, parts joined by +, the path of a TOML file, or `this`.
    Operations are dense, and usable memory is what a driver leaves of what is listed.

    \b
    Examples:
      residency machines
      residency machines 2xH100-80GB
      residency machines rtx4090+nvme-gen5 --ram 64GB --toml > mine.toml
    """
    if as_toml and as_json:
        raise UsageError("--toml and --json cannot go together; give one of them.")
    if name is None:
        if as_toml or ram_bytes is not None or disk_bytes is not None:
            raise UsageError("--toml, --ram and --disk are of one machine; name one, such as 2xH100-80GB.")
        catalog = load_catalog()
        click.echo(json.dumps(facts_of(catalog), ensure_ascii=False) if as_json else in_words(catalog))
        return
    machine = _machine(name, ram_bytes, disk_bytes)
    if as_toml:
        click.echo(machine.to_toml(), nl=False)
    else:
        click.echo(machine.to_json().rstrip() if as_json else machine_in_words(machine))


def _machine(name: str, ram_bytes: int | None, disk_bytes: int | None) -> Machine:
    if name != "this":
        return parse_machine(name, ram_bytes=ram_bytes, disk_bytes=disk_bytes)
    if ram_bytes is not None or disk_bytes is not None:
        raise UsageError("--ram and --disk are of a machine of the catalog; this one is as it was measured.")
    with Progress() as progress:
        return measured_machine(progress)


def facts_of(catalog: Catalog) -> dict[str, object]:
    """The catalog as JSON values."""
    return {table: {name: to_data(part) for name, part in parts.items()} for table, parts in vars(catalog).items()}


def in_words(catalog: Catalog) -> str:
    """The catalog for people."""
    devices = [_device_row(name, part, catalog) for name, part in sorted(catalog.devices.items(), key=_rank)]
    hosts = [("HOST", "CORES", "RAM", "MEMORY", "STATUS")]
    hosts += [
        (name, str(part.cores), binary_bytes(part.ram_bytes), rate(part.ram_bytes_per_second), part.status)
        for name, part in catalog.hosts.items()
    ]
    tiers = [("DISK OR FURTHER MEMORY", "SIZE", "READS", "STATUS")]
    tiers += [
        (name, binary_bytes(part.capacity_bytes), rate(part.read_bytes_per_second), part.status)
        for name, part in catalog.tiers.items()
    ]
    return "\n".join(
        [
            *columns([DEVICE_HEAD, *devices], right=(1, 2, 3, 4, 5)),
            "",
            *columns(hosts, right=(1, 2, 3)),
            "",
            *columns(tiers, right=(1, 2)),
            "",
            "Operations are dense. residency machines NAME shows one with its sources; --toml prints it as a file.",
        ]
    )


def machine_in_words(machine: Machine) -> str:
    """One machine for people, each figure with its source."""
    cores = f"{machine.processor}, {machine.threads} threads on {machine.cores} cores"
    tiers = [
        (tier.name, binary_bytes(tier.capacity_bytes), "reads " + rate(tier.read_bytes_per_second(machine.threads)))
        for tier in machine.tiers
    ]
    paragraphs = [
        paragraph("machine", [f"{machine.name} · {machine.status}", cores]),
        paragraph("host", [*columns(tiers, right=(1,)), *_source_lines(machine.sources)]),
        *(paragraph("device", _device_lines(device)) for device in machine.devices),
    ]
    if machine.links:
        links = [_link_row(link, machine) for link in machine.links]
        paragraphs.append(paragraph("links", columns(links, right=(1,))))
    return "\n\n".join(paragraphs)


def _rank(named: tuple[str, DevicePart]) -> tuple[int, int, float]:
    """What one can buy first, kinds together, the fastest memory first."""
    part = named[1]
    return STATUSES.index(part.status), ("gpu", "unified", "pim").index(part.kind), -part.memory_bytes_per_second


def _device_row(name: str, part: DevicePart, catalog: Catalog) -> tuple[str, ...]:
    size = part.memory_sizes[0]
    rates = [part.operations_per_second.get(each) for each in ("fp16", "fp8")]
    links = [catalog.links[link].title for link in (part.peer_link, part.host_link) if link is not None]
    return (
        name,
        binary_bytes(size.listed_bytes),
        binary_bytes(size.usable_bytes),
        rate(part.memory_bytes_per_second),
        *(operations_rate(each) if each else "–" for each in rates),
        "; ".join(links) or "one memory with the host",
        part.status,
    )


def _device_lines(device: Device) -> list[str]:
    memory = f"{binary_bytes(device.listed_bytes)} listed, {binary_bytes(device.usable_bytes)} usable"
    rates = [
        (each, operations_rate(device.operations_per_second[each]))
        for each in NUMBER_FORMATS
        if each in device.operations_per_second
    ]
    figures = [(name, f"{figure.value:.4g}", figure.origin) for name, figure in device.figures.items()]
    cache = [f"{binary_bytes(device.cache_bytes)} of last-level cache"] if device.cache_bytes else []
    return [
        f"{device.count} × {device.name} · {device.kind} · {device.status}",
        f"{memory}, {rate(device.memory_bytes_per_second)}",
        *cache,
        *columns(rates, right=(1,)),
        *columns(figures, right=(1,)),
        *_source_lines(device.sources),
    ]


def _link_row(link: Link, machine: Machine) -> tuple[str, str, str]:
    among = f"among up to {link.joins} × {link.source}"
    ends = among if link.source == link.target else f"{link.source} – {link.target}"
    remark = ", coherent" if link.is_coherent else ", less among fewer" if link.is_mesh else ""
    return ends, rate(link.bytes_per_second), f"each way, {seconds(link.latency_seconds)}, {link.kind}{remark}"


def _source_lines(sources: Mapping[str, str]) -> list[str]:
    return [f"{what}: {source}" for what, source in sources.items()]
