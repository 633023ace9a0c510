"""What scans found, kept in the cache folder: other sizes of a model, and runs that go on, need none of their own."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from residency.errors import FileError
from residency.paths import cache_folder
from residency.quantize.mixed import Costs
from residency.quantize.samples import Tokens
from residency.records import from_data, to_data
from residency.spec.checkpoint import Checkpoint

_VERSION = 3  # changes with the scan's arithmetic


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What each matrix costs in each format."""

    costs: Mapping[str, Mapping[str, float]]


def kept_scan(checkpoint: Checkpoint, ids_ST: Tokens) -> Costs | None:
    """Of the same weights on the same tokens; None where nobody scanned them, or the file is damaged."""
    path = _path(checkpoint, ids_ST)
    try:
        scan = from_data(Scan, json.loads(path.read_text(encoding="utf-8")), what=str(path), error=FileError)
    except (OSError, ValueError, FileError):
        return None
    return {name: dict(costs) for name, costs in scan.costs.items()}


def keep_scan(checkpoint: Checkpoint, ids_ST: Tokens, costs: Costs) -> None:
    """For later. A cache that cannot be written is let be."""
    path = _path(checkpoint, ids_ST)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.part")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(to_data(Scan(costs=costs))), encoding="utf-8")
        scratch.replace(path)


def _path(checkpoint: Checkpoint, ids_ST: Tokens) -> Path:
    digest = hashlib.sha256(f"{_VERSION} {checkpoint.fingerprint} {ids_ST.shape}".encode())
    digest.update(ids_ST.tobytes())
    return cache_folder() / "scans" / f"{digest.hexdigest()[:32]}.json"
