import tomllib
from collections import Counter
from pathlib import Path

import pytest

from residency.errors import MachineError
from residency.hardware import Machine
from residency.hardware.assembly import assembled
from residency.hardware.catalog import CATALOG_FOLDER, NOT_COMPARED, DevicePart, load_catalog
from residency.hardware.device import NUMBER_FORMATS
from residency.hardware.written import find_part

CATALOG = load_catalog()
DEVICES = list(CATALOG.devices.items())
SHIPPED = [(name, part) for name, part in DEVICES if part.status == "shipped"]
FIGURES = {
    "devices": ("memory_sizes", "memory_bytes_per_second", "operations_per_second", "cache_bytes"),
    "hosts": ("cores", "ram_bytes", "ram_bytes_per_second"),
    "tiers": ("capacity_bytes", "read_bytes_per_second"),
    "links": ("bytes_per_second", "latency_seconds"),
}


@pytest.mark.parametrize("table", FIGURES)
def test_every_figure_has_a_source(table: str) -> None:
    without = [
        (name, figure)
        for name, part in vars(CATALOG)[table].items()
        for figure in FIGURES[table]
        if getattr(part, figure) is not None and figure not in part.sources
    ]
    assert without == []


@pytest.mark.parametrize("table", FIGURES)
def test_a_source_of_one_word_is_a_document_that_nobody_described(table: str) -> None:
    sources = {source for part in vars(CATALOG)[table].values() for source in part.sources.values()}
    assert [source for source in sources if " " not in source] == []


def test_a_source_that_nobody_compared_says_so() -> None:
    a100, v100 = (CATALOG.devices[name].sources["operations_per_second"] for name in ("A100-80GB", "V100-32GB"))
    assert NOT_COMPARED not in a100 and v100.endswith(NOT_COMPARED)


def test_what_was_compared_is_a_document_or_a_part_of_its_file() -> None:
    for path in CATALOG_FOLDER.glob("*.toml"):
        data = tomllib.loads(path.read_text("utf-8"))
        compared, documents = set(data.pop("compared", ())), data.pop("documents", {})
        assert compared <= {*documents, *(name for parts in data.values() for name in parts)}


@pytest.mark.parametrize(("name", "part"), DEVICES)
def test_a_driver_leaves_most_of_what_is_listed(name: str, part: DevicePart) -> None:
    size = part.memory_sizes[0]
    least = 0.6 if part.kind == "unified" else 0.9
    assert least * size.listed_bytes <= size.usable_bytes <= size.listed_bytes


@pytest.mark.parametrize(("name", "part"), DEVICES)
def test_rates_are_of_this_century(name: str, part: DevicePart) -> None:
    assert 50e9 < part.memory_bytes_per_second < 100e12
    assert all(1e12 < rate < 100e15 for rate in part.operations_per_second.values())


@pytest.mark.parametrize(("name", "part"), DEVICES)
def test_narrower_floats_are_never_slower(name: str, part: DevicePart) -> None:
    widest_first = ("fp32", "tf32", "fp16", "fp8", "fp4")
    rates = [part.operations_per_second[each] for each in widest_first if each in part.operations_per_second]
    assert rates == sorted(rates)


@pytest.mark.parametrize(("name", "part"), SHIPPED)
def test_fp8_is_twice_as_fast_as_fp16_where_there_is_any(name: str, part: DevicePart) -> None:
    rates = part.operations_per_second
    if "fp8" in rates:
        assert rates["fp8"] == pytest.approx(2 * rates["fp16"], rel=0.02)


def test_number_formats_are_those_that_are_known() -> None:
    assert {each for _, part in DEVICES for each in part.operations_per_second} <= set(NUMBER_FORMATS)


@pytest.mark.parametrize(
    ("name", "number_format", "sparse_operations_per_second"),
    [
        ("H100-80GB", "fp16", 1979e12),
        ("H100-80GB", "fp8", 3958e12),
        ("H100-PCIe-80GB", "fp16", 1513e12),
        ("H100-NVL-94GB", "fp16", 1671e12),
        ("H200-141GB", "fp8", 3958e12),
        ("A100-80GB", "fp16", 624e12),
        ("L4-24GB", "fp16", 242e12),
        ("L40S-48GB", "fp8", 1466e12),
        ("B200-180GB", "fp8", 9e15),
        ("GB200-186GB", "fp4", 20e15),
        ("MI300X-192GB", "fp16", 2614.9e12),
        ("RTX-5090", "fp4", 3352e12),
    ],
)
def test_a_rate_is_half_of_what_advertisements_say(
    name: str, number_format: str, sparse_operations_per_second: float
) -> None:
    dense = CATALOG.devices[name].operations_per_second[number_format]
    assert dense == pytest.approx(sparse_operations_per_second / 2, rel=0.01)


def test_an_h100_does_989_teraflops_and_reads_3_35_terabytes_a_second() -> None:
    h100 = CATALOG.devices["H100-80GB"]
    assert (h100.operations_per_second["fp16"], h100.memory_bytes_per_second) == (989.4e12, 3.35e12)


@pytest.mark.parametrize(
    ("name", "both_directions_bytes_per_second"),
    [("A100-80GB", 600e9), ("H100-80GB", 900e9), ("B200-180GB", 1.8e12), ("V100-32GB", 300e9), ("RTX-3090", 112.5e9)],
)
def test_a_link_is_given_in_one_direction(name: str, both_directions_bytes_per_second: float) -> None:
    peer_link = CATALOG.devices[name].peer_link
    assert peer_link is not None
    assert CATALOG.links[peer_link].bytes_per_second == both_directions_bytes_per_second / 2


@pytest.mark.parametrize("name", CATALOG.parts())
def test_every_name_and_alias_leads_to_its_own_part(name: str) -> None:
    aliases = CATALOG.parts()[name].aliases
    assert {find_part(CATALOG, each.lower()) for each in (name, *aliases)} == {name}


@pytest.mark.parametrize(
    "names",
    [*((each,) for each in (*CATALOG.devices, *CATALOG.hosts)), *(("epyc-9654", tier) for tier in CATALOG.tiers)],
)
def test_a_machine_of_the_catalog_survives_its_toml(names: tuple[str, ...]) -> None:
    machine = assembled("of parts", CATALOG, Counter(names))
    assert Machine.from_toml(machine.to_toml()) == machine


@pytest.mark.parametrize("kind", ["announced", "hypothetical"])
def test_what_cannot_be_bought_says_so(kind: str) -> None:
    assert kind in {part.status for part in CATALOG.devices.values()}


def test_a_part_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text("[links.x]\n")
    with pytest.raises(MachineError, match=r"b\.toml cannot be used: links\.x"):
        load_catalog(tmp_path)
