"""What is measured of steps can be divided by."""

import math

import pytest

from residency.engine.calibrate_steps import read_shares, step_figures
from residency.hardware import assumed_figures
from support.machines import unmeasured_machine


@pytest.fixture(scope="module")
def figures() -> dict[str, float]:
    return step_figures(unmeasured_machine())


def test_every_figure_is_one_of_a_machine_s(figures: dict[str, float]) -> None:
    assert figures.keys() <= assumed_figures(()).keys()


def test_every_figure_is_a_positive_number(figures: dict[str, float]) -> None:
    assert all(0 < value < math.inf for value in figures.values())


def test_a_layer_takes_longer_than_its_launches_and_less_than_a_millisecond(figures: dict[str, float]) -> None:
    assert 1e-7 < figures["layer_overhead_seconds"] < 1e-3


def test_a_format_is_read_at_a_part_of_the_memory_s_rate() -> None:
    assert all(0.01 < each.share <= 1 for each in read_shares(unmeasured_machine(), ["Q4_1"])["Q4_1"])
