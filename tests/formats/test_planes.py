"""Planes hold a matrix' bits, no more, and stand for the values that its blocks stand for."""

import numpy as np
import numpy.typing as npt
import pytest

from residency.formats import FORMATS, pack_rows, unpack_rows
from residency.formats.planes import PLANE_LAYOUTS, to_planes
from support.planes import unpack_planes

Bytes = npt.NDArray[np.uint8]


def rows_of(name: str) -> Bytes:
    """Random rows whose codes and group scales take every value that there is."""
    rng = np.random.default_rng(5)
    fmt = FORMATS[name]
    rows_RB = pack_rows(fmt, rng.standard_normal((6, 768)).astype(np.float32))
    blocks = rows_RB.reshape(-1, fmt.block_bytes)
    first = {"Q4_1": 4, "Q5_1": 4, "Q4_K": 4, "Q5_K": 4, "Q6_K": 0}.get(name, 2)
    last = 208 if name == "Q6_K" else fmt.block_bytes
    blocks[:, first:last] = rng.integers(0, 256, (len(blocks), last - first))
    return rows_RB


@pytest.mark.parametrize("name", PLANE_LAYOUTS)
def test_planes_stand_for_the_values_of_the_blocks(name: str) -> None:
    rows_RB = rows_of(name)
    values = unpack_planes(PLANE_LAYOUTS[name], to_planes(FORMATS[name], rows_RB))
    np.testing.assert_allclose(values, unpack_rows(FORMATS[name], rows_RB), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PLANE_LAYOUTS)
def test_planes_have_as_many_bytes_as_the_blocks(name: str) -> None:
    rows_RB = rows_of(name)
    assert sum(plane.nbytes for plane in to_planes(FORMATS[name], rows_RB).values()) == rows_RB.nbytes


@pytest.mark.parametrize("name", PLANE_LAYOUTS)
def test_planes_have_the_shapes_that_are_planned(name: str) -> None:
    planes = to_planes(FORMATS[name], rows_of(name))
    shapes = PLANE_LAYOUTS[name].shapes(6, 768)
    assert {k: (p.shape, p.dtype.name) for k, p in planes.items()} == {k: (s.shape, s.dtype) for k, s in shapes.items()}
