"""The curve of speed against what stays, and the budgets that are run on it."""

import xml.dom.minidom
from pathlib import Path

import pytest

from residency.models.specs import model_spec
from residency.planner import Plan
from residency.spec import open_checkpoint
from residency.verifier.sweep import Stretch, Sweep, SweepPoint, sweep_svg
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.machines import machine_with_disk
from support.models import small_model

PARTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("models") / "m.gguf", small_model("qwen3", num_layers=8), "Q8_0")


@pytest.fixture(scope="module")
def sweep(path: Path) -> Sweep:
    return Sweep.of(plan_at(path, 1 << 30), model_spec(open_checkpoint(path)), 1e9)


def plan_at(path: Path, budget_bytes: int) -> Plan:
    return plan_of(path, machine=machine_with_disk(), budget_bytes=budget_bytes)


def test_more_memory_is_never_forecast_to_be_slower(sweep: Sweep) -> None:
    speeds = [sweep.forecast(part) for part in PARTS]
    assert speeds == sorted(speeds)


def test_every_budget_of_the_sweep_has_a_plan(sweep: Sweep, path: Path) -> None:
    assert all(plan_at(path, sweep.budget_bytes(part)).free_bytes >= 0 for part in PARTS)


def test_ever_more_of_the_weights_stays(sweep: Sweep, path: Path) -> None:
    stays = [sweep.resident_part(plan_at(path, sweep.budget_bytes(part))) for part in PARTS]
    assert stays == sorted(stays)
    assert (stays[0], stays[-1]) == (0.0, 1.0)


def stretch(*, measured: float, forecast: float) -> Stretch:
    return Stretch(tokens_per_second=measured, forecast_tokens_per_second=forecast, disk_bytes_per_second=1e9)


def point(budget_bytes: int, resident_part: float, *stretches: Stretch) -> SweepPoint:
    return SweepPoint(
        budget_bytes=budget_bytes,
        resident_part=resident_part,
        stretches=stretches,
        forecast_peak_bytes=1.0,
        peak_bytes=1.0,
    )


def test_stretches_count_by_the_time_that_their_tokens_take() -> None:
    both = point(1, 0.5, stretch(measured=1.0, forecast=2.0), stretch(measured=3.0, forecast=6.0))
    assert (both.tokens_per_second, both.forecast_tokens_per_second) == pytest.approx((1.5, 3.0))


def test_a_disk_that_is_half_as_fast_halves_the_forecast_where_it_sets_the_pace(sweep: Sweep, path: Path) -> None:
    plan = plan_at(path, sweep.budget_bytes(0.0))
    assert sweep.forecast_of(plan, 1e6) == pytest.approx(sweep.forecast_of(plan, 2e6) / 2, rel=0.01)


def test_where_all_stays_the_disk_does_not_matter(sweep: Sweep, path: Path) -> None:
    plan = plan_at(path, sweep.budget_bytes(1.0))
    assert sweep.forecast_of(plan, None) == pytest.approx(sweep.whole.forecast.decode_tokens_per_second)


def test_every_measurement_is_a_circle(sweep: Sweep) -> None:
    points = [
        point(sweep.budget_bytes(part), part, stretch(measured=sweep.forecast(part), forecast=sweep.forecast(part)))
        for part in PARTS
    ]
    drawn = xml.dom.minidom.parseString(sweep_svg(sweep, points, "a < b"))
    assert len(drawn.getElementsByTagName("circle")) == len(PARTS)
