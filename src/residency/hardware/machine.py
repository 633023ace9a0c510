"""A machine as numbers: processor, caches, tiers of memory with their read rates, and figures for the cost model."""

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from residency.errors import MachineError
from residency.hardware.toml import toml_text
from residency.records import from_data, to_data

MACHINE_VERSION = 1
_ASSUMED_FIGURES_PATH = Path(__file__).with_name("assumed.toml")


@dataclass(frozen=True, kw_only=True)
class ThreadRate:
    """What a tier delivers to so many threads together that read the same bytes over and over."""

    threads: int
    bytes_per_second: float
    working_set_bytes: int | None = None  # how many bytes; None: more than any cache holds
    processor_share: float = 1.0  # of the time measured, how much the threads had a processor; less where others ran


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A place where bytes live."""

    name: str  # "RAM", "disk"
    kind: Literal["hbm", "ram", "disk"]
    capacity_bytes: int  # as the container allows, not as the host has
    available_bytes: int  # what was free when the machine was looked at
    read_rates: tuple[ThreadRate, ...]  # at least one, by rising thread count

    def read_bytes_per_second(self, threads: int, working_set_bytes: int | None = None) -> float:
        """The rate measured with the most threads that are at most `threads`; else that of the fewest.

        Of a working set between two that were measured, between their rates, by the logarithm of its bytes; without
        one, of the largest. A set that large caches partly hold is read faster than memory delivers.
        """
        counts = [rate.threads for rate in self.read_rates]
        chosen = max((count for count in counts if count <= threads), default=min(counts))
        rates = sorted(
            (rate.working_set_bytes or math.inf, rate.bytes_per_second)
            for rate in self.read_rates
            if rate.threads == chosen
        )
        if working_set_bytes is None or working_set_bytes >= rates[-1][0]:
            return rates[-1][1]
        for (smaller, faster), (larger, slower) in pairwise(rates):
            if smaller <= working_set_bytes < larger < math.inf:
                part = math.log(working_set_bytes / smaller) / math.log(larger / smaller)
                return faster + (slower - faster) * part
        return next(rate for set_bytes, rate in rates if working_set_bytes < set_bytes)


@dataclass(frozen=True, kw_only=True)
class Link:
    """A way between two tiers."""

    source: str  # a tier's name
    target: str
    bytes_per_second: float
    latency_seconds: float


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One level of the processor's caches."""

    level: int
    kind: Literal["data", "instruction", "unified"]
    num_bytes: int
    sharing_threads: int  # processors that have this cache in common


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number for the cost model, and whether somebody measured it here."""

    value: float
    origin: Literal["measured", "assumed"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine. `figures` are by the names that assumed.toml explains."""

    name: str
    processor: str
    threads: int  # processors that the container allows
    cores: int  # of these, with distinct arithmetic units
    instruction_sets: tuple[str, ...]  # sorted, by the names that the operating system gives
    caches: tuple[Cache, ...]
    tiers: tuple[Tier, ...]  # nearest first
    links: tuple[Link, ...]
    figures: Mapping[str, Figure]
    measured_unix_seconds: int | None = None  # None: written down, not measured
    runtime_bytes: int | None = None  # interpreter and compiled code without a model; None: not measured yet

    def tier(self, kind: Literal["hbm", "ram", "disk"]) -> Tier:
        """The nearest tier of a kind; MachineError where the machine has none."""
        for tier in self.tiers:
            if tier.kind == kind:
                return tier
        raise MachineError(
            f"the machine {self.name!r} has no {kind} tier; describe one, or run residency probe --renew."
        )

    def figure(self, name: str) -> float:
        """The value of a figure; MachineError for a name that the machine does not give."""
        if name not in self.figures:
            raise MachineError(f"the machine {self.name!r} gives no {name!r}; run residency probe --renew.")
        return self.figures[name].value

    def with_measured(self, **values: float) -> "Machine":
        """The same machine with these figures measured; MachineError for names that assumed.toml does not explain."""
        unknown = [name for name in values if name not in self.figures]
        if unknown:
            raise MachineError(f"{unknown[0]!r} is not a figure of a machine; there are {', '.join(self.figures)}.")
        measured = {name: Figure(value=value, origin="measured") for name, value in values.items()}
        return replace(self, figures={**self.figures, **measured})

    def to_json(self) -> str:
        """The machine as JSON that `from_json` reads back to an equal machine."""
        return json.dumps({"machine_version": MACHINE_VERSION, **to_data(self)}, indent=2) + "\n"

    def to_toml(self) -> str:
        """The machine as TOML that `from_toml` reads back to an equal machine."""
        return toml_text({"machine_version": MACHINE_VERSION, **to_data(self)})

    @staticmethod
    def from_json(text: str) -> "Machine":
        """The machine that `to_json` wrote. Anything else is a MachineError."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise MachineError("the machine's description is not JSON; run residency probe --renew.") from None
        return _machine(data)

    @staticmethod
    def from_toml(text: str) -> "Machine":
        """The machine that a TOML text describes; what is not known may be left out. Other text is a MachineError."""
        try:
            data: dict[str, Any] = tomllib.loads(text)
        except (ValueError, RecursionError):
            raise MachineError("the machine's description is not TOML; compare it with those of the catalog.") from None
        return _machine(data)


def assumed_figures(instruction_sets: Iterable[str]) -> Mapping[str, Figure]:
    """Every figure that a machine has, as assumed.toml gives it for these instruction sets."""
    with _ASSUMED_FIGURES_PATH.open("rb") as file:
        entries = tomllib.load(file)
    known = set(instruction_sets)
    figures = {}
    for name, entry in entries.items():
        fitting = [value for feature, value in entry.get("with", {}).items() if feature in known]
        figures[name] = Figure(value=max(fitting, default=entry["value"]), origin="assumed")
    return figures


def _machine(data: object) -> Machine:
    if not isinstance(data, dict) or "machine_version" not in data:
        raise MachineError("the machine's description has no 'machine_version'; run residency probe --renew.")
    fields = dict(data)
    version = fields.pop("machine_version")
    if version != MACHINE_VERSION or isinstance(version, bool):
        raise MachineError(
            f"the machine's description has version {version!r:.40} and this residency reads {MACHINE_VERSION}; "
            "run residency probe --renew."
        )
    machine = from_data(Machine, fields, what="the machine's description", error=MachineError)
    if machine.threads < 1 or machine.cores < 1:
        raise MachineError("the machine's description has no processor; run residency probe --renew.")
    for tier in machine.tiers:
        if not tier.read_rates or not all(rate.bytes_per_second > 0 for rate in tier.read_rates):
            raise MachineError(f"the machine's tier {tier.name!r:.60} has no read rate; run residency probe --renew.")
    return machine
