"""Where residency keeps what it can make again."""

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
