"""Plans of small models whose weights do not fit."""

from pathlib import Path
from typing import Any

from residency.models.specs import model_spec
from residency.planner import Plan
from residency.planner.paging import PAGING_BYTES
from residency.planner.streaming import READING_BYTES
from residency.spec import open_checkpoint
from support.engines import plan_of
from support.machines import machine_with_disk


def streaming_plan(path: Path, *, resident_part: float = 0.5, **options: Any) -> Plan:
    """The plan of the model at `path` where about this part of its weights has room beside two buffers."""
    whole = plan_of(path, machine=machine_with_disk(), **options)
    a_byte_less = plan_of(path, machine=machine_with_disk(), budget_bytes=whole.memory.peak - 1, **options)
    assert a_byte_less.streaming is not None
    least_bytes = 2 * a_byte_less.streaming.slot_bytes
    room_bytes = least_bytes + int(resident_part * (whole.memory.weights - least_bytes))
    budget_bytes = whole.memory.peak - whole.memory.weights + READING_BYTES + room_bytes
    return plan_of(path, machine=machine_with_disk(), budget_bytes=budget_bytes, **options)


def paged_and_streaming_plan(path: Path, *, resident_part: float, **options: Any) -> Plan:
    """The plan of the mixture at `path` with slots for one layer's experts, and this part of the rest in memory."""
    machine = machine_with_disk()
    whole = plan_of(path, machine=machine, **options)
    a_byte_less = plan_of(path, machine=machine, budget_bytes=whole.memory.peak - 1, **options)
    assert a_byte_less.paging is not None
    experts = a_byte_less.paging
    unrouted_bytes = a_byte_less.memory.weights - experts.memory_bytes
    most_experts = max(layer.experts[0].copies for layer in model_spec(open_checkpoint(path)).layers if layer.experts)
    others_bytes = whole.memory.peak - whole.memory.weights + PAGING_BYTES + most_experts * experts.slot_bytes
    most_bytes = others_bytes + unrouted_bytes
    streaming = plan_of(path, machine=machine, budget_bytes=most_bytes - 1, **options).streaming
    assert streaming is not None
    least_bytes = others_bytes + READING_BYTES + 2 * streaming.slot_bytes
    budget_bytes = least_bytes + int(resident_part * (most_bytes - least_bytes))
    return plan_of(path, machine=machine, budget_bytes=budget_bytes, **options)


def paged_plan(path: Path, *, slots: int, **options: Any) -> Plan:
    """The plan of the mixture at `path` with so many slots for its experts."""
    whole = plan_of(path, machine=machine_with_disk(), **options)
    a_byte_less = plan_of(path, machine=machine_with_disk(), budget_bytes=whole.memory.peak - 1, **options)
    paging = a_byte_less.paging
    assert paging is not None
    budget_bytes = a_byte_less.memory.peak - (paging.slots - slots) * paging.slot_bytes
    return plan_of(path, machine=machine_with_disk(), budget_bytes=budget_bytes, **options)
