"""Machines as people write them: "2xH100-80GB", "rtx4090 + nvme-gen5", or the path of a TOML file."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from residency.errors import MachineError
from residency.hardware.catalog import Catalog, DevicePart, HostPart, LinkPart, Part, TierPart, load_catalog
from residency.hardware.device import Device
from residency.hardware.figures import Figure, assumed_device_figures, assumed_figures
from residency.hardware.machine import MAX_DEVICES, Link, Machine, ThreadRate, Tier
from residency.units import binary_bytes

NETWORK = "network-400g"  # how hosts meet
LISTED_READ_EFFICIENCY = Figure(
    value=0.72,
    origin="assumed",
    source="STREAM reaches about 0.8 of what a processor's memory lists, and kernels 0.9 of STREAM",
)
_WRITTEN = re.compile(r"(?:([0-9]{1,9})\s*[xX×*]\s*)?(\S.{0,80})", re.ASCII | re.DOTALL)


def parse_machine(text: str, *, ram_bytes: int | None = None, disk_bytes: int | None = None) -> Machine:
    """The machine that `text` writes: parts of the catalog joined by "+", each with a count before it or none; or the
    path of a TOML file.

    `ram_bytes` and `disk_bytes` replace the size of the host's RAM and disk. MachineError for a name that nothing has,
    with the nearest; for a count that no machine has; for a file that cannot be meant.
    """
    if text.lower().endswith(".toml"):
        return _resized(_from_file(Path(text)), ram_bytes, disk_bytes)
    catalog = load_catalog()
    counts: Counter[str] = Counter()
    for written in text.split("+"):
        name, count = _counted(catalog, written.strip(), ram_bytes)
        counts[name] += count
    return _resized(_composed(text.strip(), catalog, counts), ram_bytes, disk_bytes)


def _from_file(path: Path) -> Machine:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise MachineError(f"{path} is not TOML: it is no text; compare it with residency machines --toml.") from None
    except OSError as error:
        raise MachineError(f"{path} cannot be read ({error.strerror}); give the path of a machine's file.") from None
    return Machine.from_toml(text, what=str(path))


def _counted(catalog: Catalog, written: str, ram_bytes: int | None) -> tuple[str, int]:
    """The name of a part, and how many of it."""
    match = _WRITTEN.fullmatch(written)
    if match is None:
        raise MachineError(f"{written[:80]!r} is no machine; write one such as 2xH100-80GB, or see residency machines.")
    count = int(match[1] or 1)
    if not 1 <= count <= MAX_DEVICES:
        raise MachineError(f"{written!r} asks for {count} of a device; a machine has 1 to {MAX_DEVICES}.")
    return find_part(catalog, match[2], ram_bytes=ram_bytes), count


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


def _composed(name: str, catalog: Catalog, counts: Mapping[str, int]) -> Machine:
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
    unified = [(part, count) for _, part, count in devices if part.kind == "unified"]
    if unified and (len(devices) > 1 or unified[0][1] > 1 or hosts):
        raise MachineError(f"{name!r} joins parts that are sold as one; write {unified[0][0].title!r} alone.")
    host, sockets = hosts[0] if hosts else _default_host(catalog, devices[0][1], devices[0][2])
    if not any(part.kind == "disk" for part, _ in tiers):
        tiers.append((catalog.tiers[host.disk], 1))
    ram = _unified_ram(unified[0][0], host) if unified else _ram(host, sockets)
    cores = unified[0][0].host_cores if unified else None
    threads = cores or host.threads * sockets
    statuses = [*(part.status for _, part, _ in devices), host.status, *(part.status for part, _ in tiers)]
    return Machine(
        name=name,
        processor=unified[0][0].title if unified else host.title if sockets == 1 else f"{sockets} × {host.title}",
        threads=threads,
        cores=cores or host.cores * sockets,
        instruction_sets=tuple(sorted(host.instruction_sets)),
        caches=(),
        tiers=(ram, *(_tier(part, count) for part, count in sorted(tiers, key=lambda each: each[0].kind))),
        links=tuple(link for name, part, count in devices for link in _links(catalog, name, part, count)),
        figures={**assumed_figures(host.instruction_sets), "read_efficiency": LISTED_READ_EFFICIENCY},
        devices=tuple(_device(name, part, count) for name, part, count in devices),
        status=max(statuses, key=("shipped", "announced", "hypothetical").index),
        sources={**host.sources, **{part.title: "; ".join(part.sources.values()) for part, _ in tiers}},
    )


def _default_host(catalog: Catalog, part: DevicePart, count: int) -> tuple[HostPart, int]:
    """What such devices are built into, and how many of it so many devices take."""
    return catalog.hosts[part.host], math.ceil(count / part.devices_per_host)


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
        sources=part.sources,
    )


def _links(catalog: Catalog, name: str, part: DevicePart, count: int) -> list[Link]:
    """Between the RAM and the devices, and among the devices."""
    if part.host_link is None:
        return []
    host_link = catalog.links[part.host_link]
    links = [_link(host_link, "RAM", name, joins=2)]
    if count > 1 and part.peer_link is not None:
        links.append(_link(catalog.links[part.peer_link], name, name, joins=part.peers))
    if count > 1 and part.devices_per_host > 1:
        links.append(_link(host_link, name, name, joins=part.devices_per_host))
    if count > max(part.peers, part.devices_per_host):
        links.append(_link(catalog.links[NETWORK], name, name, joins=count))
    return links


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


def _unified_ram(part: DevicePart, host: HostPart) -> Tier:
    listed_bytes = part.memory_sizes[0].listed_bytes
    rate = ThreadRate(threads=part.host_cores or host.threads, bytes_per_second=part.memory_bytes_per_second)
    return Tier(
        name="RAM",
        kind="ram",
        capacity_bytes=listed_bytes,
        available_bytes=int(listed_bytes * host.ram_available_part),
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
