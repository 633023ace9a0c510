"""A machine made of the catalog's parts: devices in a host, with a disk, and the links between them."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from residency.errors import MachineError
from residency.hardware.catalog import Catalog, DevicePart, HostPart, LinkPart, TierPart
from residency.hardware.device import STATUSES, Device
from residency.hardware.figures import Figure, assumed_device_figures, assumed_figures
from residency.hardware.machine import Link, Machine, ThreadRate, Tier

_NETWORK = "network-400g"  # how hosts meet
_LISTED_READ_EFFICIENCY = Figure(
    value=0.72,
    origin="assumed",
    source="STREAM reaches about 0.8 of what a processor's memory lists, and kernels 0.9 of STREAM",
)
_SOURCE_NAMES = {"memory_sizes": "usable_bytes"}  # of a part: of the device made of it


def assembled(name: str, catalog: Catalog, counts: Counter[str]) -> Machine:
    """One machine of so many of these parts, with the host and disk that are usual where none is named.

    MachineError for parts that do not go together.
    """
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
        tiers=(_ram(host, sockets), *(_tier(*each) for each in sorted(tiers, key=_nearness))),
        links=tuple(link for link, _ in linked),
        figures={**assumed_figures(host.instruction_sets), "read_efficiency": _LISTED_READ_EFFICIENCY},
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
        yield _link(catalog.links[_NETWORK], name, name, joins=count), catalog.links[_NETWORK]


def _link(part: LinkPart, source: str, target: str, *, joins: int) -> Link:
    return Link(
        source=source,
        target=target,
        bytes_per_second=part.bytes_per_second,
        latency_seconds=part.latency_seconds,
        kind=part.title,
        joins=joins,
        is_coherent=part.is_coherent,
        is_mesh=part.is_mesh,
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


def _nearness(counted: tuple[TierPart, int]) -> int:
    return ("cxl", "disk").index(counted[0].kind)


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
