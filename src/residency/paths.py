"""Where residency keeps what it can make again, and where its own processes find it."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """$RESIDENCY_CACHE, else the platform's folder for caches. Not created here."""
    if chosen := os.environ.get("RESIDENCY_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "residency"
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "residency"
    return Path.home() / ".cache" / "residency"


def child_environment() -> dict[str, str]:
    """The environment in which another Python finds this very package."""
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
