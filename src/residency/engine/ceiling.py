"""The operating system's own limit, as a net below the budget: what runs away fails alone, not the whole machine."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from residency.planner.plan import Plan

# Stacks and heaps are counted by the system as soon as they are mapped, and most of them is never touched.
UNTOUCHED_BYTES = 64 * 1024**2


@contextmanager
def held_to_budget(plan: Plan, *, untouched_bytes: int = UNTOUCHED_BYTES) -> Iterator[None]:
    """Let the process map no more private memory than its budget leaves; enter it when a model is open.

    Pages, buffers and weights are there already: they are mappings that are shared or read alone, which this limit
    (RLIMIT_DATA) does not count, and the plan has counted them to the byte. What goes past it is a MemoryError. Nothing
    happens where the system does not say what is mapped, or where the budget is of a device's memory.
    """
    mapped_bytes = None if plan.device is not None else _status_bytes("VmData")
    if mapped_bytes is None:
        yield
        return
    arenas_bytes = plan.memory.peak - plan.memory.runtime
    left_bytes = max(0, plan.budget_bytes - arenas_bytes - (_status_bytes("RssAnon") or 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = mapped_bytes + left_bytes + untouched_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _status_bytes(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
