"""Integers in groups stand for scale times code less zero point, in as few bits as that takes."""

import itertools

import numpy as np
import pytest

from residency.formats import BF16, F16, F32, Format, GroupedFormat, format_named, grouped, pack_rows, unpack_rows
from residency.formats.grouped import BITS, GROUPS, assembled

ALL = [
    grouped(bits=bits, group=group, scales=scales, has_zero=has_zero)
    for bits, group, scales, has_zero in itertools.product(BITS, GROUPS, (F16, BF16, F32), (False, True))
]


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_a_format_is_found_by_its_name(fmt: GroupedFormat) -> None:
    assert format_named(fmt.name) == fmt


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_values_are_scales_times_codes_less_zero_points(fmt: GroupedFormat) -> None:
    rng = np.random.default_rng(1)
    groups = 256 // fmt.block_values
    codes = rng.integers(0, 2**fmt.bits, (3, 256), np.uint8)
    zeros = rng.integers(0, 2**fmt.bits + 1, (3, groups)).clip(0, 255).astype(np.uint8)
    scales = rng.standard_normal((3, groups)).astype(np.float32)
    in_bytes = pack_rows(fmt.scales, scales).reshape(3, groups, -1)
    kept = unpack_rows(fmt.scales, in_bytes.reshape(3, -1))
    rows = assembled(fmt, codes, in_bytes, zeros if fmt.has_zero else None)
    offsets = codes.reshape(3, groups, -1).astype(float) - (
        zeros[:, :, None] if fmt.has_zero else 2.0 ** (fmt.bits - 1)
    )
    expected = (kept[:, :, None] * offsets).reshape(3, 256)
    np.testing.assert_array_equal(unpack_rows(fmt, rows), expected.astype(np.float32))


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
def test_a_packed_value_is_within_a_step_of_the_value(fmt: GroupedFormat) -> None:
    values = np.random.default_rng(3).normal(size=(4, 1024)).astype(np.float32)
    step = 2 * np.abs(values).max() / (2**fmt.bits - 1)
    assert np.abs(unpack_rows(fmt, pack_rows(fmt, values)) - values).max() <= step


@pytest.mark.parametrize(
    ("fmt", "bits"),
    [
        (grouped(bits=4, group=128), 4.125),
        (grouped(bits=4, group=128, has_zero=True), 4.1875),
        (grouped(bits=3, group=128, scales=BF16), 3.125),
        (grouped(bits=8, group=128, scales=F32), 8.25),
    ],
)
def test_a_value_takes_its_bits_and_its_share_of_the_scale(fmt: Format, bits: float) -> None:
    assert fmt.bits_per_value == bits
