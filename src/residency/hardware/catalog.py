"""The catalog: what machines are made of, each figure with its source. The files beside this one, in catalog/, hold it.

A file has tables `devices`, `hosts`, `tiers` and `links` by name, and `documents`, which sources name. `compared` lists
the documents, and the parts, whose figures were compared with their source or with what others quote from it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from residency.errors import MachineError
from residency.hardware.device import Status
from residency.hardware.figures import Figure
from residency.hardware.toml import parse_toml
from residency.records import from_data

CATALOG_FOLDER = Path(__file__).with_name("catalog")
NOT_COMPARED = " (not compared with it)"  # after a source that nobody has opened to compare
_TELLS_ITSELF = (
    "assumed",
    "computed",
    "of the device",
    "usable assumed",
    "listed as",
)  # how sources without document begin


@dataclass(frozen=True, kw_only=True)
class MemorySize:
    """One of the sizes that a device with the same figures is sold with."""

    listed_bytes: int
    usable_bytes: int


@dataclass(frozen=True, kw_only=True)
class DevicePart:
    """An accelerator as the catalog lists it. Names of other parts are resolved when a machine is made of them."""

    title: str
    aliases: tuple[str, ...] = ()
    kind: Literal["gpu", "unified", "pim"]
    status: Status
    memory_kind: str
    memory_sizes: tuple[MemorySize, ...]
    memory_bytes_per_second: float
    operations_per_second: Mapping[str, float]
    cache_bytes: int | None = None
    host: str
    devices_per_host: int = 8  # more of them are in several hosts
    host_cores: int | None = None  # of a processor that is one with the device
    host_link: str | None = None  # None: the memory is the host's
    peer_link: str | None = None  # None: they meet over the host link
    peers: int = 1  # how many the peer link joins; more meet over a network
    figures: Mapping[str, Figure] = field(default_factory=dict)  # that are better known than assumed-device.toml
    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class HostPart:
    """A processor with its memory; two of them are one host with two sockets."""

    title: str
    aliases: tuple[str, ...] = ()
    status: Status
    threads: int
    cores: int
    instruction_sets: tuple[str, ...]
    ram_bytes: int  # unless the user says otherwise
    ram_bytes_per_second: float
    ram_available_part: float = 0.96875  # the operating system keeps the rest
    disk: str
    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TierPart:
    """A disk, or memory further away than RAM."""

    title: str
    aliases: tuple[str, ...] = ()
    kind: Literal["cxl", "disk"]
    status: Status
    capacity_bytes: int
    read_bytes_per_second: float
    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class LinkPart:
    """A kind of link between two ends."""

    title: str
    status: Status
    bytes_per_second: float  # in one direction
    latency_seconds: float
    is_coherent: bool = False
    is_mesh: bool = False
    sources: Mapping[str, str]


Part = DevicePart | HostPart | TierPart
AnyPart = TypeVar("AnyPart", DevicePart, HostPart, TierPart, LinkPart)


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """All parts by name."""

    devices: Mapping[str, DevicePart]
    hosts: Mapping[str, HostPart]
    tiers: Mapping[str, TierPart]
    links: Mapping[str, LinkPart]

    def parts(self) -> Mapping[str, Part]:
        """What a machine can be written with, by name."""
        return {**self.devices, **self.hosts, **self.tiers}


def load_catalog(folder: Path = CATALOG_FOLDER) -> Catalog:
    """The catalog in `folder`, in the order of its files. MachineError where a file cannot be meant."""
    tables: dict[str, dict[str, Any]] = {"devices": {}, "hosts": {}, "tiers": {}, "links": {}}
    for path in sorted(folder.glob("*.toml")):
        for table, name, entry in _entries(path):
            if table not in tables or name in tables[table]:
                raise MachineError(f"{path.name} cannot be used: {table}.{name} is unknown or there twice.")
            tables[table][name] = entry
    return Catalog(
        devices=_sized({name: _part(DevicePart, name, entry) for name, entry in tables["devices"].items()}),
        hosts={name: _part(HostPart, name, entry) for name, entry in tables["hosts"].items()},
        tiers={name: _part(TierPart, name, entry) for name, entry in tables["tiers"].items()},
        links={name: _part(LinkPart, name, entry) for name, entry in tables["links"].items()},
    )


def _entries(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Table, name and fields of each part in a file, sources written out."""
    try:
        data = parse_toml(path.read_text("utf-8"))
    except ValueError as error:
        raise MachineError(f"{path.name} is not TOML ({error}); mend it, or install residency anew.") from None
    documents, compared = data.pop("documents", {}), set(data.pop("compared", ()))
    for table, parts in data.items():
        for name, entry in parts.items():
            sources = {}
            for what, source in entry.get("sources", {}).items():
                text = documents.get(source, source)
                is_known = compared & {source, name} or text.startswith(_TELLS_ITSELF) or text[:1].isdigit()
                sources[what] = text if is_known else text + NOT_COMPARED
            yield table, name, {**entry, "sources": sources}


def _part(kind: type[AnyPart], name: str, entry: dict[str, Any]) -> AnyPart:
    return from_data(kind, entry, what=f"the catalog's {name}", error=MachineError, remedy="mend its file")


def _sized(devices: Mapping[str, DevicePart]) -> dict[str, DevicePart]:
    """One part for each size of memory: "M3-Max" with several becomes "M3-Max-36GB" and so on."""
    sized = {}
    for name, part in devices.items():
        if len(part.memory_sizes) == 1:
            sized[name] = part
        for size in part.memory_sizes if len(part.memory_sizes) > 1 else ():
            gigabytes = f"{size.listed_bytes // 1024**3}GB"
            aliases = tuple(f"{alias}-{gigabytes}" for alias in part.aliases)
            sized[f"{name}-{gigabytes}"] = replace(
                part, title=f"{part.title} {gigabytes}", aliases=aliases, memory_sizes=(size,)
            )
    return sized
