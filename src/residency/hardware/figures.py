"""Figures: numbers for the cost model that say whether somebody measured, listed or assumed them."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number for the cost model, and where it comes from."""

    value: float
    origin: Literal["measured", "assumed"]
    source: str | None = None  # who measured it, and where that can be read


def assumed_figures(instruction_sets: Iterable[str]) -> Mapping[str, Figure]:
    """Every figure that a host has, as assumed.toml gives it for these instruction sets."""
    known = set(instruction_sets)
    return _figures("assumed.toml", known)


def assumed_device_figures(kind: str) -> Mapping[str, Figure]:
    """Every figure that a device has, as assumed-device.toml gives it for this kind of device."""
    return _figures("assumed-device.toml", {kind})


def _figures(file_name: str, known: set[str]) -> Mapping[str, Figure]:
    with (_HERE / file_name).open("rb") as file:
        entries: dict[str, Any] = tomllib.load(file)
    figures = {}
    for name, entry in entries.items():
        fitting = [value for feature, value in entry.get("with", {}).items() if feature in known]
        figures[name] = Figure(value=max(fitting, default=entry["value"]), origin="assumed")
    return figures
