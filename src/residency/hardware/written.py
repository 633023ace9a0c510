"""Machines as people write them: "2xH100-80GB", "rtx4090 + nvme-gen5", or the path of a TOML file."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from residency.errors import MachineError
from residency.hardware.catalog import Catalog, DevicePart, HostPart, LinkPart, Part, TierPart, load_catalog
from residency.hardware.device import STATUSES, Device
from residency.hardware.figures import Figure, assumed_device_figures, assumed_figures
from residency.hardware.machine import MAX_DEVICES, Link, Machine, ThreadRate, Tier
from residency.units import binary_bytes

NETWORK = "network-400g"  # how hosts meet
LISTED_READ_EFFICIENCY = Figure(
    value=0.72,
    origin="assumed",
    source="STREAM reaches about 0.8 of what a processor's memory lists, and kernels 0.9 of STREAM",
)
_SOURCE_NAMES = {"memory_sizes": "usable_bytes"}  # of a part: of the device made of it
_WRITTEN = re.compile(r"(?:([0-9]{1,9})\s*[xX×*]\s*)?(\S.{0,80})", re.ASCII | re.DOTALL)


def parse_machine(text: str, *, ram_bytes: int | None = None, disk_bytes: int | None = None) -> Machine:
    """The machine that `text` writes: parts of the catalog joined by "+", each with a count before it or none; or the
    path of a TOML file.

    `ram_bytes` and `disk_bytes` replace the size of the host's RAM and disk. MachineError for a name that nothing has,
    with the nearest; for a count that no machine has; for a file that cannot be meant.
    """
    if text.lower().endswith(".toml") or "/" in text:
        return _resized(_from_file(Path(text)), ram_bytes, disk_bytes)
    catalog = load_catalog()
    counts: Counter[str] = Counter()
    for written in text.split("+"):
        name, count = _counted(catalog, written.strip(), ram_bytes)
        counts[name] += count
        if not 1 <= counts[name] <= MAX_DEVICES or not count:
            raise MachineError(f"{text[:80]!r} asks for {counts[name]} × {name}; a machine has 1 to {MAX_DEVICES}.")
    return _resized(_composed(text.strip(), catalog, counts), ram_bytes, disk_bytes)


def _from_file(path: Path) -> Machine:
    try:
        text = path.read_text("utf-8")
    except ValueError:
        raise MachineError(f"{path} is not TOML: it is no text; compare it with residency machines --toml.") from None
    except OSError as error:
        raise MachineError(f"{path} cannot be read ({error.strerror}); give the path of a machine's file.") from None
    return Machine.from_toml(text, what=str(path))


def _counted(catalog: Catalog, written: str, ram_bytes: int | None) -> tuple[str, int]:
    """The name of a part, and how many of it."""
    match = _WRITTEN.fullmatch(written)
    if match is None:
        raise MachineError(f"{written[:80]!r} is no machine; write one such as 2xH100-80GB, or see residency machines.")
    return find_part(catalog, match[2], ram_bytes=ram_bytes), int(match[1] or 1)


def find_part(catalog: Catalog, written: str, *, ram_bytes: int | None = None) -> str:
    """The name of the part that `written` names, whatever its case and dashes; MachineError with the nearest if none.

    A device sold with several sizes of unified memory is told apart by `ram_bytes`.
    """
    known = _names(catalog.parts())
    wanted = _plain(written)
    if wanted in known:
        return known[wanted]
    sizes = {
        name: part
        for name, part in catalog.devices.items()
        if any(re.fullmatch(rf"{re.escape(wanted)}\d+gb", _plain(each)) for each in (name, *part.aliases))
    }
    fitting = [name for name, part in sizes.items() if _is_size(ram_bytes, part.memory_sizes[0].listed_bytes)]
    if fitting:
        return fitting[0]
    if sizes:
        raise MachineError(f"{written!r} comes with several sizes of memory; write one of {', '.join(sizes)}.")
    near = difflib.get_close_matches(wanted, known, n=8, cutoff=0.5) or [each for each in known if wanted[:3] in each]
    names = list(dict.fromkeys(known[each] for each in near))[:4]
    advice = f"the nearest are {', '.join(names)}" if names else "residency machines lists those that are"
    raise MachineError(f"the catalog has no machine {written[:80]!r}; {advice}.")


def _is_size(asked_bytes: int | None, listed_bytes: int) -> bool:
    """Whether somebody who asks for so much, in powers of 1000 or 1024, means a listed size."""
    return asked_bytes in (listed_bytes, listed_bytes // 1024**3 * 10**9)


def _names(parts: Mapping[str, Part]) -> dict[str, str]:
    """The name of each part by every way to write it."""
    return {_plain(each): name for name, part in parts.items() for each in (name, *part.aliases)}


def _plain(name: str) -> str:
    """A name without case, dashes and its maker."""
    words = re.sub(r"\b(?:nvidia|geforce|amd|apple|intel)\b", "", name.lower())
    return re.sub(r"[^a-z0-9]", "", words)


def _composed(name: str, catalog: Catalog, counts: Counter[str]) -> Machine:
    """One machine of so many of these parts, with the host and disk of the first where none is named."""
    devices = [(each, catalog.devices[each], count) for each, count in counts.items() if each in catalog.devices]
    hosts = [(catalog.hosts[each], count) for each, count in counts.items() if each in catalog.hosts]
    tiers = [(catalog.tiers[each], count) for each, count in counts.items() if each in catalog.tiers]
    if len(hosts) > 1:
        raise MachineError(f"{name!r} names {len(hosts)} hosts; write two sockets as 2x and one name.")
    if not hosts and not devices:
        raise MachineError(
            f"{name!r} names no processor and no device; write one before the +, such as rtx4090+{name}."
        )
    if any(part.kind == "unified" for _, part, _ in devices) and (counts.total() > 1 + len(tiers) or hosts):
        raise MachineError(f"{name!r} joins what is sold as one machine with something else; write it alone.")
    host, sockets = hosts[0] if hosts else _default_host(catalog, devices[0][1], devices[0][2])
    if not any(part.kind == "disk" for part, _ in tiers):
        tiers.append((catalog.tiers[host.disk], 1))
    linked = [each for device in devices for each in _links(catalog, *device)]
    statuses = [host.status, *(part.status for _, part, _ in devices), *(part.status for part, _ in tiers)]
    return Machine(
        name=name,
        processor=host.title if sockets == 1 else f"{sockets} × {host.title}",
        threads=host.threads * sockets,
        cores=host.cores * sockets,
        instruction_sets=tuple(sorted(host.instruction_sets)),
        caches=(),
        tiers=(_ram(host, sockets), *(_tier(*each) for each in sorted(tiers, key=lambda each: each[0].kind))),
        links=tuple(link for link, _ in linked),
        figures={**assumed_figures(host.instruction_sets), "read_efficiency": LISTED_READ_EFFICIENCY},
        devices=tuple(_device(*each) for each in devices),
        status=max(statuses, key=STATUSES.index),
        sources={**host.sources, **_sources(part for part, _ in tiers), **_sources(part for _, part in linked)},
    )


def _default_host(catalog: Catalog, part: DevicePart, count: int) -> tuple[HostPart, int]:
    """What such devices are built into, and how many of it so many devices take."""
    host = catalog.hosts[part.host]
    if part.kind == "unified":
        host = replace(
            host,
            title=part.title,
            threads=part.host_cores or host.threads,
            cores=part.host_cores or host.cores,
            ram_bytes=part.memory_sizes[0].listed_bytes,
            ram_bytes_per_second=part.memory_bytes_per_second,
        )
    return host, math.ceil(count / part.devices_per_host)


def _device(name: str, part: DevicePart, count: int) -> Device:
    size = part.memory_sizes[0]
    return Device(
        name=name,
        kind=part.kind,
        count=count,
        listed_bytes=size.listed_bytes,
        usable_bytes=size.usable_bytes,
        memory_bytes_per_second=part.memory_bytes_per_second,
        operations_per_second=part.operations_per_second,
        cache_bytes=part.cache_bytes,
        status=part.status,
        figures={**assumed_device_figures(part.kind), **part.figures},
        sources={_SOURCE_NAMES.get(what, what): source for what, source in part.sources.items()},
    )


def _links(catalog: Catalog, name: str, part: DevicePart, count: int) -> Iterator[tuple[Link, LinkPart]]:
    """Between the RAM and the devices, and among the devices; beside each what the catalog says of it."""
    if part.host_link is None:
        return
    host_link = catalog.links[part.host_link]
    yield _link(host_link, "RAM", name, joins=2), host_link
    if count > 1 and part.peer_link is not None:
        peer_link = catalog.links[part.peer_link]
        yield _link(peer_link, name, name, joins=part.peers), peer_link
    if count > 1 and part.devices_per_host > 1:
        yield _link(host_link, name, name, joins=part.devices_per_host), host_link
    if count > max(part.peers, part.devices_per_host):
        yield _link(catalog.links[NETWORK], name, name, joins=count), catalog.links[NETWORK]


def _link(part: LinkPart, source: str, target: str, *, joins: int) -> Link:
    return Link(
        source=source,
        target=target,
        bytes_per_second=part.bytes_per_second,
        latency_seconds=part.latency_seconds,
        kind=part.title,
        joins=joins,
        is_coherent=part.is_coherent,
    )


def _sources(parts: Iterable[TierPart | LinkPart]) -> dict[str, str]:
    return {part.title: "; ".join(part.sources.values()) for part in parts}


def _ram(host: HostPart, sockets: int) -> Tier:
    capacity_bytes = host.ram_bytes * sockets
    rate = ThreadRate(threads=host.threads * sockets, bytes_per_second=host.ram_bytes_per_second * sockets)
    return Tier(
        name="RAM",
        kind="ram",
        capacity_bytes=capacity_bytes,
        available_bytes=int(capacity_bytes * host.ram_available_part),
        read_rates=(rate,),
    )


def _tier(part: TierPart, count: int) -> Tier:
    """Several disks are striped."""
    rate = ThreadRate(threads=1, bytes_per_second=part.read_bytes_per_second * count)
    capacity_bytes = part.capacity_bytes * count
    return Tier(
        name="CXL" if part.kind == "cxl" else "disk",
        kind=part.kind,
        capacity_bytes=capacity_bytes,
        available_bytes=capacity_bytes,
        read_rates=(rate,),
    )


def _resized(machine: Machine, ram_bytes: int | None, disk_bytes: int | None) -> Machine:
    """The same machine with that much RAM and disk, in which as large a part is free as before."""
    for device in machine.devices if ram_bytes is not None else ():
        if device.kind == "unified":
            if not _is_size(ram_bytes, device.listed_bytes):
                shared = binary_bytes(device.listed_bytes)
                raise MachineError(
                    f"{device.name} shares its {shared} with the host; leave --ram away, or name another."
                )
            ram_bytes = None
    asked = {"ram": ram_bytes, "disk": disk_bytes}
    return replace(machine, tiers=tuple(_of_size(tier, asked.get(tier.kind)) for tier in machine.tiers))


def _of_size(tier: Tier, asked_bytes: int | None) -> Tier:
    if asked_bytes is None:
        return tier
    if asked_bytes < 1:
        raise MachineError(f"a machine with 0 B of {tier.name} cannot run; give --{tier.kind} a size.")
    free_bytes = tier.available_bytes * asked_bytes // max(1, tier.capacity_bytes)
    return replace(tier, capacity_bytes=asked_bytes, available_bytes=free_bytes)
