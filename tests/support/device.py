"""Operators on a device: a CUDA GPU where there is one, else Triton's interpreter, which computes with NumPy."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from residency.formats import Format
from residency.formats.planes import PLANE_LAYOUTS, PlaneLayout, to_planes
from residency.kernels.device import DeviceMatrix, DeviceStep, StepShape
from residency.store.device_rate import DeviceFigures

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels' modules are imported
DEVICE = "cuda" if HAS_GPU else "cpu"
MULTIPROCESSORS = 4  # of the grids here: contexts are cut into several parts
DEVICE_FIGURES = DeviceFigures(
    name="a GPU",
    total_bytes=80 << 30,
    multiprocessors=132,
    runtime_bytes=600 << 20,
    copy_bytes_per_second=3.0e12,
    bf16_operations_per_second=7.5e14,
    int8_operations_per_second=1.4e15,
    pinned_to_device=5.5e10,
    pinned_from_device=5.4e10,
    pageable_to_device=1.2e10,
    pageable_from_device=1.1e10,
    pinned_by_kernels=4.8e10,
    disk_to_pinned=3.0e9,
    measured_unix_seconds=1,
)

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


def tensor(values: Array, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The values on the device."""
    made = torch.from_numpy(np.array(values)).to(DEVICE)
    return made if dtype is None else made.to(dtype)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """An array of NaN."""
    return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)


def values_of(made: torch.Tensor) -> Floats:
    """What is in a tensor, as float32."""
    return made.float().cpu().numpy()


def step_of(
    *, tokens: int, sampled: int | None = None, logits: int = 0, items: int = 0, **buffers: torch.Tensor
) -> DeviceStep:
    """A step of so many tokens, all sampled unless it is said, with these buffers."""
    shape = StepShape(tokens=tokens, sampled=tokens if sampled is None else sampled, logits=logits, items=items)
    return DeviceStep(dict(buffers), shape, multiprocessors=MULTIPROCESSORS)


def matrix_of(number_format: Format, rows_RB: npt.NDArray[np.uint8], columns: int) -> DeviceMatrix:
    """A matrix in a block format, in planes on the device."""
    layout = PLANE_LAYOUTS[number_format.name]
    return planes_matrix(layout, to_planes(number_format, rows_RB), len(rows_RB), columns)


def planes_matrix(layout: PlaneLayout, planes: Mapping[str, Array], rows: int, columns: int) -> DeviceMatrix:
    """A matrix of these planes."""
    made = {name: tensor(plane) for name, plane in planes.items()}
    return DeviceMatrix(rows=rows, columns=columns, layout=layout, planes=made)


def plain_matrix(values: Floats, dtype: torch.dtype = torch.float32) -> DeviceMatrix:
    """A matrix of plain values."""
    rows, columns = values.shape
    return DeviceMatrix(rows=rows, columns=columns, layout=None, planes={"codes": tensor(values, dtype)})
