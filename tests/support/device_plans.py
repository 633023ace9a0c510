"""Plans of runs on a device, and executors of them: on a GPU where there is one, else in Triton's interpreter."""

from pathlib import Path

from residency.engine.cuda.executor import CudaExecutor
from residency.hardware import Device
from residency.hardware.figures import assumed_device_figures
from residency.models.specs import model_spec
from residency.planner.device_needs import DeviceRequest
from residency.planner.device_speed import Ways
from residency.planner.on_device import plan_on_device
from residency.planner.plan import Plan
from residency.spec import open_checkpoint
from support.device import DEVICE, MULTIPROCESSORS

WAYS = Ways(copied=5e10, gathered=4e10, disk=2e9)


def some_device(usable_bytes: int = 1 << 30) -> Device:
    """A small GPU that nobody has."""
    return Device(
        name="a test's GPU",
        kind="gpu",
        listed_bytes=usable_bytes,
        usable_bytes=usable_bytes,
        memory_bytes_per_second=1e12,
        operations_per_second={"bf16": 1e14, "fp32": 1e13},
        figures=assumed_device_figures("gpu"),
    )


def device_plan_of(path: Path, asked: DeviceRequest, *, usable_bytes: int = 1 << 30, ram_bytes: int = 1 << 30) -> Plan:
    """The plan of the model at `path`."""
    checkpoint = open_checkpoint(path)
    return plan_on_device(
        model_spec(checkpoint),
        asked,
        device=some_device(usable_bytes),
        multiprocessors=MULTIPROCESSORS,
        runtime_bytes=1 << 20,
        ram_bytes=ram_bytes,
        ways=WAYS,
        model_path=checkpoint.path,
        fingerprint=checkpoint.fingerprint,
    )


def executor_of(plan: Plan) -> CudaExecutor:
    """An executor of the plan."""
    return CudaExecutor(plan, model_spec(open_checkpoint(plan.model_path)), device=DEVICE)
