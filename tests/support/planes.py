"""Planes back to values, in plain NumPy: written from their description, apart from what packs them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.formats.planes import PlaneLayout, PlaneShape

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


def unpack_planes(layout: PlaneLayout, planes: Mapping[str, Array]) -> Floats:
    """The values (rows, columns) that planes stand for."""
    codes = _codes(layout, planes)
    rows, columns = codes.shape
    groups = np.arange(columns) // layout.group_columns
    scales = planes["scales"]
    if layout.scales == "half":
        values = scales[:, groups].astype(np.float32) * (codes - layout.zero)
    elif layout.scales == "zero":
        values = scales[:, groups].astype(np.float32) * (codes - planes["zeros"][:, groups].astype(np.float32))
    elif layout.scales == "half-minimum":
        values = scales[:, groups, 0].astype(np.float32) * codes + scales[:, groups, 1].astype(np.float32)
    else:
        supers = planes["supers"][:, np.arange(columns) // 256].astype(np.float32)
        if layout.scales == "byte":
            values = supers[..., 0] * scales[:, groups].astype(np.float32) * (codes - layout.zero)
        else:
            low, least, high = np.moveaxis(scales[:, np.arange(columns) // 256].view(np.uint32), 2, 0)
            place = (groups % 8).astype(np.uint32)
            scale = low >> 4 * place & 15 | (high >> 2 * place & 3) << 4
            minimum = least >> 4 * place & 15 | (high >> 2 * place + 16 & 3) << 4
            values = supers[..., 0] * scale * codes - supers[..., 1] * minimum
    return np.asarray(values, np.float32).reshape(rows, columns)


def random_planes(layout: PlaneLayout, rows: int, columns: int, rng: np.random.Generator) -> dict[str, Array]:
    """Planes of random codes and small scales."""
    return {name: _random(plane, rng) for name, plane in layout.shapes(rows, columns).items()}


def _random(plane: PlaneShape, rng: np.random.Generator) -> Array:
    if plane.dtype in ("float16", "float32"):
        return (rng.standard_normal(plane.shape) * 0.1).astype(plane.dtype)
    return rng.integers(0, 256, plane.num_bytes, dtype=np.uint8).view(plane.dtype).reshape(plane.shape)


def _codes(layout: PlaneLayout, planes: Mapping[str, Array]) -> npt.NDArray[np.float32]:
    packed = planes["codes"]
    if layout.code_bits == 8:
        return packed.astype(np.float32)
    chunks = packed.reshape(len(packed), -1, 16)
    codes = np.concatenate([chunks & 15, chunks >> 4], axis=2).reshape(len(packed), -1).astype(np.uint32)
    if layout.code_bits > 4:
        bits = layout.code_bits - 4
        column = np.arange(codes.shape[1])
        words = planes["high"].view(np.uint32)[:, column * bits // 32]
        codes |= (words >> (column * bits % 32).astype(np.uint32) & (2**bits - 1)) << 4
    return codes.astype(np.float32)
