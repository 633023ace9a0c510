"""A report's figures follow from what was measured."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from residency.engine.report import Bandwidth, Report, Seconds
from residency.planner import MemoryBytes
from support.engines import plan_of


@pytest.fixture
def report(path: Path) -> Report:
    return Report(
        plan=plan_of(path),
        text="hello",
        prompt_tokens=30,
        completion_tokens=11,
        finish_reason="length",
        seconds=Seconds(load=0.5, first_token=0.25, decode=2.0, total=2.25),
        memory=MemoryBytes(weights=1000, kv_cache=200, activations=30, runtime=4),
        bandwidth=Bandwidth(measured_bytes_per_second=20e9, achieved_bytes_per_second=15e9),
    )


def data_of(report: Report) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(json.dumps(report.to_data())))


def test_prefill_is_the_prompt_s_tokens_over_the_time_to_the_first(report: Report) -> None:
    assert report.prefill_tokens_per_second == 120


def test_decode_leaves_out_the_first_token(report: Report) -> None:
    assert report.decode_tokens_per_second == 5


def test_an_answer_of_one_token_has_no_decode_rate(report: Report) -> None:
    alone = Report(
        **{**report.__dict__, "completion_tokens": 1, "seconds": Seconds(load=0, first_token=1, decode=0, total=1)}
    )
    assert alone.decode_tokens_per_second == 0


def test_utilisation_is_the_achieved_part_of_the_measured_bandwidth(report: Report) -> None:
    assert data_of(report)["bandwidth"]["utilisation"] == 0.75


def test_the_measured_peak_is_the_sum_of_its_classes(report: Report) -> None:
    assert data_of(report)["memory_bytes"]["measured"]["peak"] == 1234


def test_the_forecast_is_the_plan_s(report: Report) -> None:
    assert data_of(report)["memory_bytes"]["forecast"]["peak"] == report.plan.memory.peak


def test_the_budget_is_the_plan_s(report: Report) -> None:
    assert data_of(report)["memory_bytes"]["budget"] == report.plan.budget_bytes


def test_a_report_has_the_fields_that_are_promised(report: Report) -> None:
    data = data_of(report)
    classes = {"weights", "kv_cache", "activations", "runtime", "peak"}
    promised = {
        "usage": {"prompt_tokens", "completion_tokens"},
        "seconds": {"load", "first_token", "decode", "total"},
        "tokens_per_second": {"prefill", "decode", "forecast_decode"},
        "bandwidth": {"measured_bytes_per_second", "achieved_bytes_per_second", "utilisation"},
    }
    missing = {name: fields - data[name].keys() for name, fields in promised.items()}
    missing |= {name: classes - data["memory_bytes"][name].keys() for name in ("forecast", "measured")}
    assert not any(missing.values()) and data["text"] == "hello"
