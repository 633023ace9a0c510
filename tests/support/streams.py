"""Plans of small models whose weights do not fit."""

from pathlib import Path
from typing import Any

from residency.planner import Plan
from support.engines import plan_of
from support.machines import machine_with_disk


def streaming_plan(path: Path, *, resident_part: float = 0.5, **options: Any) -> Plan:
    """The plan of the model at `path` where about this part of its weights has room beside two buffers."""
    whole = plan_of(path, machine=machine_with_disk(), **options)
    a_byte_less = plan_of(path, machine=machine_with_disk(), budget_bytes=whole.memory.peak - 1, **options)
    assert a_byte_less.streaming is not None
    least_bytes = 2 * a_byte_less.streaming.slot_bytes
    room_bytes = least_bytes + int(resident_part * (whole.memory.weights - least_bytes))
    budget_bytes = whole.memory.peak - whole.memory.weights + room_bytes
    return plan_of(path, machine=machine_with_disk(), budget_bytes=budget_bytes, **options)


def paged_plan(path: Path, *, slots: int, **options: Any) -> Plan:
    """The plan of the mixture at `path` with so many slots for its experts."""
    whole = plan_of(path, machine=machine_with_disk(), **options)
    a_byte_less = plan_of(path, machine=machine_with_disk(), budget_bytes=whole.memory.peak - 1, **options)
    paging = a_byte_less.paging
    assert paging is not None
    budget_bytes = a_byte_less.memory.peak - (paging.slots - slots) * paging.slot_bytes
    return plan_of(path, machine=machine_with_disk(), budget_bytes=budget_bytes, **options)
