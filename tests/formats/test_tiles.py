"""Tiles hold the bits of their rows, and nothing else."""

import numpy as np
import numpy.typing as npt
import pytest

from residency.formats import Format
from residency.formats.tiles import tile_rows, untile_rows
from residency.spec.layout import tiled_bytes
from support.steps import MATRICES

COLUMNS = 512


def random_rows(number_format: Format, rows: int) -> npt.NDArray[np.uint8]:
    shape = (rows, number_format.bytes_of((COLUMNS,)))
    return np.random.default_rng(rows).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("name", MATRICES)
def test_rows_come_back_from_their_tiles(name: str, rows: int) -> None:
    rows_RB = random_rows(MATRICES[name], rows)
    back_RB = untile_rows(MATRICES[name], tile_rows(MATRICES[name], rows_RB), np.arange(rows))
    np.testing.assert_array_equal(back_RB, rows_RB)


@pytest.mark.parametrize("name", MATRICES)
def test_rows_come_back_in_the_order_in_which_they_are_asked_for(name: str) -> None:
    rows_RB = random_rows(MATRICES[name], 40)
    asked = np.array([39, 0, 17, 17])
    np.testing.assert_array_equal(
        untile_rows(MATRICES[name], tile_rows(MATRICES[name], rows_RB), asked), rows_RB[asked]
    )


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("name", MATRICES)
def test_tiles_take_the_bytes_that_the_layout_gives_them(name: str, rows: int) -> None:
    tiles_TB = tile_rows(MATRICES[name], random_rows(MATRICES[name], rows))
    assert tiles_TB.nbytes == tiled_bytes(MATRICES[name], rows, COLUMNS)


@pytest.mark.parametrize("name", [name for name in MATRICES if name != "Q8_0"])
def test_rows_missing_from_the_last_tile_are_zero(name: str) -> None:
    tiles_TB = tile_rows(MATRICES[name], random_rows(MATRICES[name], 17))
    missing_RB = untile_rows(MATRICES[name], tiles_TB, np.arange(17, 32))
    assert not missing_RB.any()
