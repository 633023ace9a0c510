"""Named arrays in one arena, and how much of a mapping is resident."""

import math
import re
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from residency.planner.plan import Buffer
from residency.store.arena import Arena

_ALIGNMENT = 64
_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")


def activation_arena(buffers: Iterable[Buffer]) -> tuple[Arena, dict[str, npt.NDArray[Any]]]:
    """The plan's buffers as arrays of one arena."""
    listed = tuple(buffers)
    arena = Arena(sum(-(-buffer.num_bytes // _ALIGNMENT) * _ALIGNMENT for buffer in listed))
    arrays, offset = {}, 0
    for buffer in listed:
        part = arena.bytes[offset : offset + buffer.num_bytes]
        arrays[buffer.name] = part.view(buffer.dtype).reshape(buffer.shape)
        offset += -(-math.prod(buffer.shape) * part.view(buffer.dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
    return arena, arrays


def resident_bytes(address: int, num_bytes: int) -> int:
    """Bytes of this process's mappings inside a range that are in memory, as the operating system counts them.

    Where there is no /proc/self/smaps, all of the range.
    """
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return num_bytes
    resident, inside = 0, False
    for line in lines:
        if match := _RANGE.match(line):
            start, end = int(match[1], 16), int(match[2], 16)
            inside = start < address + num_bytes and end > address
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return min(resident, num_bytes)


def peak_resident_bytes() -> int:
    """The most memory that this process ever had resident, as the operating system counts it."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
