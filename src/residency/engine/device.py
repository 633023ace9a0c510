"""The way to a CUDA device: PyTorch is imported behind these functions, and only by a run that asks for the device."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from residency.engine.executor import Executor
from residency.engine.stamps import LaunchTime
from residency.engine.swap import SwapSpace
from residency.errors import UsageError
from residency.hardware.host import read_host
from residency.ledger import KvPages
from residency.models.made_up import made_up, made_up_spec
from residency.models.specs import model_spec
from residency.planner.device_needs import DeviceRequest
from residency.planner.device_speed import LinkedDevice
from residency.planner.on_device import plan_on_device, runtime_beside
from residency.planner.plan import MemoryBytes, Plan
from residency.scheduler import Batch
from residency.spec.model import ModelSpec
from residency.spec.opening import open_checkpoint
from residency.store.fetch import resolve
from residency.store.paging import PagingCounts

if TYPE_CHECKING:
    from residency.store.device_rate import DeviceFigures

_NEEDED = ("torch", "triton")
PINNED_PART = 0.8  # of the RAM that is free, at most

Progress = Callable[[int, int], None]


class DeviceExecutor(Executor, Protocol):
    """What an engine needs of an executor whose memory is a device's."""

    @property
    def activation_bytes(self) -> int:
        """Bytes of the activation buffers."""

    @property
    def expert_counts(self) -> PagingCounts | None:
        """How often experts were on the device when they were needed; None where all of them are."""

    def reserve_swap(self, space: SwapSpace) -> None:
        """Let preempted sequences wait in pinned RAM. MachineError where there is not so much."""

    def measured_memory(self, kv_cache_bytes: int) -> MemoryBytes:
        """Memory by class on the device, with so many bytes of pages in use."""

    def profile(
        self, batch: Batch, pages: KvPages, tokens: npt.NDArray[np.int64], *, repeats: int
    ) -> tuple[LaunchTime, ...]:
        """UnsupportedError: a device's own profilers show its kernels."""


def this_device(*, renew: bool = False) -> "DeviceFigures":
    """The first CUDA device, measured now if it has not been. UsageError where PyTorch or Triton is missing,
    MachineError where there is no device.
    """
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--device cuda needs {name}; install it with: pip install 'residency[gpu]'.")
    from residency.store.device_rate import device_figures

    return device_figures(renew=renew)


def linked_device() -> LinkedDevice:
    """The first CUDA device, to forecast with; as `this_device` where there is none."""
    figures = this_device()
    return LinkedDevice(device=figures.device(), ways=figures.ways())


def plan_for_device(model: str | Path, asked: DeviceRequest) -> Plan:
    """The plan of running `model` on the first CUDA device; see plan_on_device for what is refused.

    With made-up weights it may be a published model, of which there is no file.
    """
    figures = this_device()
    path = Path(model)
    if asked.random_weights is None or path.exists():
        checkpoint = open_checkpoint(resolve(str(model)))
        spec, path, fingerprint = model_spec(checkpoint), checkpoint.path.absolute(), checkpoint.fingerprint
        if asked.random_weights is not None:
            spec = made_up(spec, asked.random_weights)
    else:
        spec, fingerprint = made_up_spec(model, asked.random_weights), "made up"
    return plan_on_device(
        spec,
        asked,
        device=figures.device(),
        multiprocessors=figures.multiprocessors,
        runtime_bytes=runtime_beside(figures.runtime_bytes, asked.max_sequences),
        ram_bytes=int(read_host().available_bytes * PINNED_PART),
        ways=figures.ways(),
        model_path=path,
        fingerprint=fingerprint,
    )


def pinned_swap(num_bytes: int) -> SwapSpace:
    """So much RAM for the pages of preempted sequences, as quick as the device copies to it and from there."""
    figures = this_device()
    rate = min(figures.pinned_to_device, figures.pinned_from_device)
    return SwapSpace(folder=None, num_bytes=num_bytes, bytes_per_second=rate)


@contextmanager
def open_executor(plan: Plan, spec: ModelSpec, *, loading: Progress | None = None) -> Iterator[DeviceExecutor]:
    """The executor of a plan that has a device. As `this_device` where there is none."""
    this_device()
    from residency.engine.cuda.executor import CudaExecutor

    with CudaExecutor(plan, spec, loading=loading) as executor:
        yield executor
