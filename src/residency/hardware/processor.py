"""What Linux says of the first processor."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def processor_fields(root: Path = Path("/")) -> Mapping[str, str]:
    """The first entry of /proc/cpuinfo ("model name", "flags" …); empty where there is none. It is one of hundreds on a
    large machine, each of which Linux would ask its processor for.
    """
    fields: dict[str, str] = {}
    try:
        with (root / "proc" / "cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():
                    break
                key, _, value = line.partition(":")
                fields[key.strip()] = value.strip()
    except OSError:
        pass
    return fields


def instruction_sets(root: Path = Path("/")) -> frozenset[str]:
    """As Linux names them ("avx2", "amx_bf16" …); empty where they are not known."""
    fields = processor_fields(root)
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())
