"""A CUDA device, measured: its memory's copy rate, its matrix rates, and the way between it and RAM; kept in the cache
folder, as a machine is.
"""

import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from residency.errors import MachineError
from residency.hardware import Device
from residency.hardware.figures import Figure, assumed_device_figures
from residency.kernels.device import on_device
from residency.paths import cache_folder
from residency.planner.device_speed import Ways
from residency.records import from_data, to_data
from residency.store.disk_rate import disk_read_rates
from residency.store.pinned import PinnedBytes

_REPEATS = 10
_MOST_COPIED_BYTES = 2 << 30
_LINK_BYTES = 256 << 20
_GATHERED, _EXPERT_BYTES = 8, 16 << 20
_DISK_BYTES, _DISK_SECONDS = 2 << 30, 4.0
_MATRIX = 8192  # rows and columns of the product whose rate is measured


@dataclass(frozen=True, kw_only=True)
class DeviceFigures:
    """What was measured of one device; rates of copies count what is read and what is written."""

    name: str
    total_bytes: int
    multiprocessors: int
    runtime_bytes: int  # of the context and the libraries, before anything is allocated
    copy_bytes_per_second: float
    bf16_operations_per_second: float
    int8_operations_per_second: float
    pinned_to_device: float  # bytes a second, one way
    pinned_from_device: float
    pageable_to_device: float
    pageable_from_device: float
    pinned_by_kernels: float  # to the device, read by kernels themselves
    disk_to_pinned: float  # 0 where the cache folder cannot be written to
    measured_unix_seconds: int

    def ways(self) -> Ways:
        """How weights come to the device that are not in its memory."""
        return Ways(copied=self.pinned_to_device, gathered=self.pinned_by_kernels, disk=self.disk_to_pinned)

    def device(self) -> Device:
        """The device as plans see it. Rates are what was reached, so that no efficiency is taken off them again but
        what kernels lose that compute while they read.
        """
        reached = Figure(value=1.0, origin="measured")
        return Device(
            name=self.name,
            kind="gpu",
            listed_bytes=self.total_bytes,
            usable_bytes=self.total_bytes,
            memory_bytes_per_second=self.copy_bytes_per_second,
            operations_per_second={
                "bf16": self.bf16_operations_per_second,
                "int8": self.int8_operations_per_second,
            },
            figures={**assumed_device_figures("gpu"), "matrix_efficiency": reached, "link_efficiency": reached},
        )


def device_figures(*, renew: bool = False) -> DeviceFigures:
    """The first CUDA device, from the file that keeps it or measured now. MachineError where there is none."""
    name = require_cuda()
    if not renew and (kept := _kept(name)) is not None:
        return kept
    figures = measure()
    with suppress(OSError):
        _path(name).parent.mkdir(parents=True, exist_ok=True)
        _path(name).write_text(json.dumps(to_data(figures), indent=2) + "\n")
    return figures


def require_cuda() -> str:
    """The first CUDA device's name. MachineError where PyTorch sees none."""
    if not torch.cuda.is_available():
        raise MachineError(
            "PyTorch sees no CUDA device here; see what nvidia-smi says, or run on the processor with --device cpu."
        )
    return str(torch.cuda.get_device_name(0))


def measure() -> DeviceFigures:
    """Measure the first CUDA device; takes some seconds and most of its memory for a moment."""
    properties = torch.cuda.get_device_properties(0)
    bf16, int8 = _matrix_rates()
    torch.cuda.empty_cache()
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    # what is still allocated is the library's workspace, which runs have, too
    runtime_bytes = total_bytes - free_bytes - torch.cuda.memory_reserved() + torch.cuda.memory_allocated()
    links = [rate for pinned in (True, False) for rate in _link_rates(pinned=pinned)]
    return DeviceFigures(
        name=properties.name,
        total_bytes=total_bytes,
        multiprocessors=properties.multi_processor_count,
        runtime_bytes=runtime_bytes,
        copy_bytes_per_second=copy_rate(min(_MOST_COPIED_BYTES, free_bytes // 4)),
        bf16_operations_per_second=bf16,
        int8_operations_per_second=int8,
        pinned_to_device=links[0],
        pinned_from_device=links[1],
        pageable_to_device=links[2],
        pageable_from_device=links[3],
        pinned_by_kernels=_gather_rate(properties.multi_processor_count),
        disk_to_pinned=_disk_rate(),
        measured_unix_seconds=int(time.time()),
    )


def _matrix_rates() -> tuple[float, float]:
    """Operations a second of products in bf16 and in int8, of random values: others need less power and run faster."""
    operations = 2.0 * _MATRIX**3
    values = torch.randn((_MATRIX, _MATRIX), dtype=torch.bfloat16, device="cuda")
    codes = torch.randint(-128, 128, (_MATRIX, _MATRIX), dtype=torch.int8, device="cuda")
    bf16 = _seconds(lambda: torch.mm(values, values))
    return operations / bf16, operations / _seconds(lambda: torch._int_mm(codes, codes.t()))


def copy_rate(num_bytes: int) -> float:
    """Bytes read and written each second by a copy of so many inside the device's memory."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source))
    return 2 * num_bytes / seconds


def _link_rates(*, pinned: bool) -> tuple[float, float]:
    """Bytes a second to the device and from it."""
    host = torch.zeros(_LINK_BYTES, dtype=torch.uint8, pin_memory=pinned)
    there = torch.zeros(_LINK_BYTES, dtype=torch.uint8, device="cuda")
    to = _seconds(lambda: there.copy_(host, non_blocking=True))
    back = _seconds(lambda: host.copy_(there, non_blocking=True))
    return _LINK_BYTES / to, _LINK_BYTES / back


def _gather_rate(multiprocessors: int, device: str = "cuda") -> float:
    """Bytes a second of experts that kernels copy from pinned RAM."""
    homes = PinnedBytes(_GATHERED * _EXPERT_BYTES, device)
    try:
        source = homes.tensor.view(torch.int64).view(_GATHERED, -1)
        slots = torch.zeros(source.shape, dtype=torch.int64, device=device)
        each = torch.arange(_GATHERED, dtype=torch.int32, device=device)
        copies = torch.cat([torch.full((1,), _GATHERED, dtype=torch.int32, device=device), each, each])
        copy_experts = on_device("experts").copy_experts
        seconds = _seconds(lambda: copy_experts(source, slots, copies, source.shape[1], multiprocessors))
    finally:
        homes.close()
    return _GATHERED * _EXPERT_BYTES / seconds


def _disk_rate() -> float:
    """Bytes a second of direct reads under the cache folder, as layers are read."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    rates = disk_read_rates(cache_folder(), max_bytes=_DISK_BYTES, limit_seconds=_DISK_SECONDS)
    return rates[-1].bytes_per_second if rates else 0.0


def _seconds(work: Callable[[], object]) -> float:
    """The median time of some repetitions, by the device's own clock."""
    work()
    times: list[float] = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def _kept(name: str) -> DeviceFigures | None:
    try:
        data = json.loads(_path(name).read_text())
        kept = from_data(DeviceFigures, data, what="the device's figures", error=MachineError)
    except (OSError, ValueError, MachineError):
        return None
    return kept if kept.name == name else None


def _path(name: str) -> Path:
    words = "".join(each if each.isalnum() else "-" for each in name)
    return cache_folder() / f"device-{words}.json"
