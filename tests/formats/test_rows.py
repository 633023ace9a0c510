"""Packing and unpacking against the gguf package's."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from residency.formats import FORMATS, Format, pack_rows, unpack_rows

gguf = pytest.importorskip("gguf", reason="the gguf package is the other side of the comparison")

FINITE_HALF_FIELDS = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2]}
FINITE_HALF_FIELDS |= {"Q2_K": [80, 82], "Q3_K": [108], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0]}
QUANTIZED_BY_GGUF = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "F32", "BF16", "MXFP4"]


def random_blocks(number_format: Format, seed: int) -> npt.NDArray[np.uint8]:
    """Rows of blocks with any code at all and finite scales."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (7 * 3, number_format.block_bytes), np.uint8)
    for offset in FINITE_HALF_FIELDS.get(number_format.name, []):
        blocks[:, offset : offset + 2] = rng.normal(size=(len(blocks), 1)).astype("<f2").view(np.uint8)
    if number_format.name == "MXFP4":
        blocks[:, 0] = np.minimum(blocks[:, 0], 250)  # larger exponents leave float32's range
    return blocks.reshape(7, -1)


def gguf_type(number_format: Format) -> Any:
    return gguf.GGMLQuantizationType[number_format.name]


@pytest.mark.parametrize("number_format", FORMATS.values(), ids=FORMATS)
def test_unpacking_is_bit_for_bit_that_of_gguf(number_format: Format) -> None:
    rows = random_blocks(number_format, seed=1)
    theirs = np.asarray(gguf.quants.dequantize(rows, gguf_type(number_format)), np.float32)
    np.testing.assert_array_equal(unpack_rows(number_format, rows).view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("name", QUANTIZED_BY_GGUF)
def test_packing_is_bit_for_bit_that_of_gguf(name: str) -> None:
    values = np.random.default_rng(2).normal(size=(5, 512)).astype(np.float32)
    values[0, :32] = 0
    theirs = np.ascontiguousarray(gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])).view(np.uint8)
    np.testing.assert_array_equal(pack_rows(FORMATS[name], values), theirs)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *[("Q2_K", 3), ("Q3_K", 6), ("Q4_K", 15), ("Q5_K", 31), ("Q6_K", 62)],
        *[("Q4_0", 15), ("Q5_1", 31), ("Q8_0", 254), ("IQ4_NL", 8), ("IQ4_XS", 8), ("MXFP4", 6)],
    ],
)
def test_a_packed_value_is_within_a_step_of_the_value(name: str, steps: int) -> None:
    values = np.random.default_rng(3).normal(size=(4, 1024)).astype(np.float32)
    unpacked = unpack_rows(FORMATS[name], pack_rows(FORMATS[name], values))
    step = 2 * np.abs(values).max() / steps
    assert np.abs(unpacked - values).max() <= step


@pytest.mark.parametrize("number_format", FORMATS.values(), ids=FORMATS)
def test_zeros_stay_zeros(number_format: Format) -> None:
    zeros = np.zeros((2, 256), np.float32)
    np.testing.assert_array_equal(unpack_rows(number_format, pack_rows(number_format, zeros)), zeros)


@pytest.mark.parametrize("number_format", FORMATS.values(), ids=FORMATS)
def test_a_packed_row_has_the_bytes_that_its_format_says(number_format: Format) -> None:
    packed = pack_rows(number_format, np.ones((3, 512), np.float32))
    assert packed.shape == (3, number_format.bytes_of((512,)))
