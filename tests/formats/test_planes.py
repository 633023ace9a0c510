"""Planes hold a matrix' bits, no more, and stand for the values that its blocks stand for."""

import numpy as np
import numpy.typing as npt
import pytest

from residency.formats import BF16, F32, FORMATS, GroupedFormat, grouped, pack_rows, unpack_rows
from residency.formats.planes import PLANE_LAYOUTS, plane_layout, to_planes
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


@pytest.mark.parametrize(
    "fmt",
    [
        grouped(bits=4, group=128),
        grouped(bits=8, group=32, scales=F32),
        grouped(bits=4, group=64, has_zero=True),
        grouped(bits=8, group=128, has_zero=True, scales=F32),
    ],
    ids=lambda fmt: fmt.name,
)
def test_planes_of_integers_in_groups_stand_for_their_values(fmt: GroupedFormat) -> None:
    rows_RB = pack_rows(fmt, np.random.default_rng().standard_normal((6, 768)).astype(np.float32))
    layout, planes = plane_layout(fmt), to_planes(fmt, rows_RB)
    assert layout is not None
    np.testing.assert_allclose(unpack_planes(layout, planes), unpack_rows(fmt, rows_RB), rtol=1e-6, atol=1e-6)
    assert {k: p.shape for k, p in planes.items()} == {k: s.shape for k, s in layout.shapes(6, 768).items()}
    assert sum(plane.nbytes for plane in planes.values()) == rows_RB.nbytes


def test_scales_in_bfloat16_are_kept_as_their_bits() -> None:
    fmt = grouped(bits=4, group=32, scales=BF16)
    rows_RB = pack_rows(fmt, np.random.default_rng().standard_normal((2, 64)).astype(np.float32))
    kept = to_planes(fmt, rows_RB)["scales"]
    np.testing.assert_array_equal(kept.view(np.uint8).ravel(), rows_RB.reshape(2, 2, -1)[:, :, -2:].ravel())


def test_integers_of_three_bits_lie_in_no_planes() -> None:
    assert plane_layout(grouped(bits=3, group=128)) is None
