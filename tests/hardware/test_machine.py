import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from residency.errors import MachineError
from residency.hardware import Cache, Figure, Link, Machine, ReadShare, ThreadRate, Tier, assumed_figures

RAM = Tier(
    name="RAM",
    kind="ram",
    capacity_bytes=24 * 1024**3,
    available_bytes=20 * 1024**3,
    read_rates=(
        ThreadRate(threads=1, bytes_per_second=28e9),
        ThreadRate(threads=2, bytes_per_second=36.5e9),
        ThreadRate(threads=4, bytes_per_second=38e9),
    ),
)
MACHINE = Machine(
    name='the "small" one\\\x7f',
    processor="Paper 9000 ✓",
    threads=4,
    cores=2,
    instruction_sets=("avx2", "fma"),
    caches=(Cache(level=1, kind="data", num_bytes=49152, sharing_threads=1),),
    tiers=(RAM,),
    links=(Link(source="disk", target="RAM", bytes_per_second=2e9, latency_seconds=1e-4),),
    figures={"read_efficiency": Figure(value=0.9, origin="assumed")},
    read_shares={
        "Q4_K": (ReadShare(working_set_bytes=1_000, share=1.0), ReadShare(working_set_bytes=100_000, share=0.8))
    },
)


def test_a_machine_survives_its_json() -> None:
    assert Machine.from_json(MACHINE.to_json()) == MACHINE


def test_a_machine_survives_its_toml() -> None:
    assert Machine.from_toml(MACHINE.to_toml()) == MACHINE


@given(name=st.text(st.characters(codec="utf-8")), value=st.floats(0, 1e18))
def test_any_name_and_value_survive_toml(name: str, value: float) -> None:
    machine = Machine(**{**vars(MACHINE), "name": name, "figures": {name: Figure(value=value, origin="measured")}})
    assert Machine.from_toml(machine.to_toml()) == machine


@pytest.mark.parametrize(("threads", "rate"), [(1, 28e9), (3, 36.5e9), (4, 38e9), (64, 38e9)])
def test_a_rate_is_that_of_the_most_threads_measured_up_to_those_asked_for(threads: int, rate: float) -> None:
    assert RAM.read_bytes_per_second(threads) == rate


CACHED = replace(
    RAM,
    read_rates=tuple(
        ThreadRate(threads=1, bytes_per_second=rate, working_set_bytes=size)
        for size, rate in ((1_000, 100e9), (100_000, 20e9))
    ),
)


@pytest.mark.parametrize(("working_set_bytes", "rate"), [(10, 100e9), (10_000, 60e9), (100_000, 20e9), (None, 20e9)])
def test_a_smaller_working_set_is_read_at_the_rate_of_its_size(working_set_bytes: int | None, rate: float) -> None:
    assert CACHED.read_bytes_per_second(1, working_set_bytes) == pytest.approx(rate)


@pytest.mark.parametrize(("working_set_bytes", "share"), [(10, 1.0), (10_000, 0.9), (1_000_000, 0.8)])
def test_a_format_is_read_at_the_share_of_the_working_set(working_set_bytes: int, share: float) -> None:
    assert MACHINE.read_efficiency("Q4_K", working_set_bytes) == pytest.approx(share)


def test_a_format_that_nobody_measured_is_read_as_usual() -> None:
    assert MACHINE.read_efficiency("Q8_0", 10_000) == 0.9


def test_a_missing_tier_is_named() -> None:
    with pytest.raises(MachineError, match="has no hbm tier"):
        MACHINE.tier("hbm")


def test_a_missing_figure_is_named() -> None:
    with pytest.raises(MachineError, match="gives no 'warp_factor'"):
        MACHINE.figure("warp_factor")


def test_a_measured_figure_takes_the_place_of_an_assumed_one() -> None:
    assert MACHINE.with_measured(read_efficiency=0.95).figures == {
        "read_efficiency": Figure(value=0.95, origin="measured")
    }


def test_a_misspelt_figure_is_refused() -> None:
    with pytest.raises(MachineError, match="'read_eficiency' is not a figure"):
        MACHINE.with_measured(read_eficiency=0.95)


def test_assumed_figures_follow_the_best_instruction_set() -> None:
    name = "matrix_int8_operations_per_second"
    values = [assumed_figures(sets)[name].value for sets in ((), ("avx2",), ("avx2", "avx512_vnni"))]
    assert values == sorted(set(values))


def test_all_assumed_figures_say_so() -> None:
    assert {figure.origin for figure in assumed_figures(("avx2",)).values()} == {"assumed"}


LINK = {"source": "RAM", "target": "RAM", "bytes_per_second": 1e9, "latency_seconds": 1e-6}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(threads=0), "has no processor"),
        (lambda d: d["tiers"][0].update(read_rates=[]), "has no read rate"),
        (lambda d: d["read_shares"]["Q4_K"][0].update(share=0), "reads 'Q4_K' at a share of 0"),
        (lambda d: d["tiers"][0]["read_rates"][0].update(bytes_per_second=0), "has no read rate"),
        (lambda d: d["tiers"][0].update(capacity_bytes=0), "has a capacity_bytes of 0"),
        (lambda d: d["tiers"][0].update(available_bytes=0), "has an available_bytes of 0"),
        (lambda d: d["tiers"][0].update(available_bytes=2**60), "available_bytes of .* capacity_bytes"),
        (lambda d: d["links"].append({**LINK, "joins": 1}), "joins 1, not two or more"),
        (lambda d: d["tiers"][0].update(kind="tape"), "'tiers\\[0\\].kind' is 'tape'"),
        (lambda d: d["figures"].update(x={"value": 1, "origin": "guessed"}), "'figures.x.origin' is 'guessed'"),
        (lambda d: d.update(machine_version=9), "has version 9"),
        (lambda d: d.pop("caches"), "'caches' is missing"),
    ],
)
def test_a_description_that_cannot_be_meant_is_refused(change: Callable[[Any], object], sentence: str) -> None:
    data = json.loads(MACHINE.to_json())
    change(data)
    with pytest.raises(MachineError, match=sentence):
        Machine.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"machine_version": 1}'])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(MachineError):
        Machine.from_json(text)
