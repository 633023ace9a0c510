from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from residency.errors import MachineError
from residency.hardware import Machine
from residency.hardware.written import parse_machine

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "device", "count"),
    [
        ("2xH100-80GB", "H100-80GB", 2),
        ("8 x h100", "H100-80GB", 8),
        ("4xA100-80GB", "A100-80GB", 4),
        ("4×A100-40GB", "A100-40GB", 4),
        ("rtx4090", "RTX-4090", 1),
        ("NVIDIA GeForce RTX 4090", "RTX-4090", 1),
        ("m3-max-64gb", "M3-Max-64GB", 1),
        ("M3 Max 36GB", "M3-Max-30core-36GB", 1),
        ("a100", "A100-80GB", 1),
        ("h100+h100", "H100-80GB", 2),
        ("gb10", "DGX-Spark-128GB", 1),
        ("AMD Ryzen AI Max+ 395", "Strix-Halo-128GB", 1),
        ("AMD Instinct MI300X", "MI300X-192GB", 1),
        ("NVIDIA H100 80GB HBM3", "H100-80GB", 1),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB", 1),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB", 1),
    ],
)
def test_a_device_is_found_however_it_is_written(text: str, device: str, count: int) -> None:
    (found,) = parse_machine(text).devices
    assert (found.name, found.count) == (device, count)


def test_a_processor_alone_is_a_machine_without_devices() -> None:
    machine = parse_machine("epyc-9654")
    assert (machine.devices, machine.cores) == ((), 96)


def test_a_processor_alone_computes_as_a_device_of_kind_cpu() -> None:
    (device,) = parse_machine("epyc-9654").compute_devices()
    assert (device.kind, device.memory_bytes_per_second) == ("cpu", 460.8e9)


def test_two_sockets_have_twice_the_memory_and_its_rate() -> None:
    one, two = (parse_machine(text).tier("ram") for text in ("epyc-9654", "2xepyc-9654"))
    assert (two.capacity_bytes, two.read_bytes_per_second(384)) == (2 * one.capacity_bytes, 2 * 460.8e9)


def test_sixteen_devices_are_in_two_hosts_and_meet_over_a_network() -> None:
    machine = parse_machine("16xh100")
    link = machine.peer_link(machine.devices[0], 16)
    assert (machine.processor[:1], link.bytes_per_second) == ("2", 50e9)


def test_eight_devices_meet_over_nvlink() -> None:
    machine = parse_machine("8xh100")
    assert machine.peer_link(machine.devices[0], 8).bytes_per_second == 450e9


def test_fewer_devices_of_a_mesh_have_fewer_wires() -> None:
    machine = parse_machine("8xmi300x")
    rates = [machine.peer_link(machine.devices[0], count).bytes_per_second for count in (2, 8)]
    assert rates == [64e9, 448e9]


def test_devices_without_a_bridge_meet_over_pcie() -> None:
    machine = parse_machine("2xl40s")
    assert machine.peer_link(machine.devices[0], 2).kind == "PCIe 4.0 x16"


def test_a_single_device_has_no_peers() -> None:
    machine = parse_machine("h100")
    with pytest.raises(MachineError, match="joins 2 of 'H100-80GB'"):
        machine.peer_link(machine.devices[0], 2)


def test_a_device_with_the_host_s_memory_needs_no_link() -> None:
    machine = parse_machine("m3-max-64gb")
    assert machine.host_link(machine.devices[0]) is None


def test_unified_memory_is_the_host_s() -> None:
    machine = parse_machine("m3-max-64gb")
    assert machine.tier("ram").capacity_bytes == machine.devices[0].listed_bytes == 64 * GIB


@pytest.mark.parametrize("ram_bytes", [64 * GIB, 64 * 10**9])
def test_the_size_of_unified_memory_may_be_said_as_ram(ram_bytes: int) -> None:
    assert parse_machine("m3-max", ram_bytes=ram_bytes).devices[0].name == "M3-Max-64GB"


def test_ram_and_disk_are_as_large_as_asked() -> None:
    machine = parse_machine("rtx4090", ram_bytes=96 * GIB, disk_bytes=4 * 10**12)
    assert [tier.capacity_bytes for tier in machine.tiers] == [96 * GIB, 4 * 10**12]


def test_further_memory_lies_between_ram_and_disk() -> None:
    assert [tier.kind for tier in parse_machine("rtx4090 + cxl-256gb + nvme-gen5").tiers] == ["ram", "cxl", "disk"]


def test_striped_disks_add_up() -> None:
    disk = parse_machine("desktop + 4xnvme-gen5").tier("disk")
    assert disk.read_bytes_per_second(1) == 4 * 14.5e9


def test_a_machine_is_as_announced_as_its_newest_part() -> None:
    assert parse_machine("h100 + cxl-1tb").status == "announced"


def test_a_format_without_a_rate_is_computed_in_the_next_wider() -> None:
    (a100,) = parse_machine("a100").devices
    assert (a100.computing_format("fp8"), a100.computing_format("int4")) == ("bf16", "int4")


def test_a_machine_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(parse_machine("2xrtx3090").to_toml())
    assert parse_machine(str(path)) == parse_machine("2xrtx3090")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0xH100", "asks for 0 × H100-80GB; a machine has 1 to 1024"),
        ("100000xH100", "asks for 100000 × H100-80GB"),
        ("600xh100+600xh100", "asks for 1200 × H100-80GB"),
        ("rtx4070", "no machine 'rtx4070'; the nearest are RTX-4"),
        ("m3-max", "several sizes of memory; write one of M3-Max-30core-36GB"),
        ("nvme-gen4", "no processor and no device"),
        ("desktop+epyc-9654", "names 2 hosts"),
        ("2xm3-max-64gb", "sold as one machine"),
        ("m3-max-64gb+h100", "sold as one machine"),
        ("", "'' is no machine"),
        ("h100++h100", "'' is no machine"),
        ("nowhere.toml", r"nowhere\.toml cannot be read"),
        ("./nowhere", "nowhere cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(MachineError, match=sentence):
        parse_machine(text)


def test_unified_memory_of_another_size_is_refused() -> None:
    with pytest.raises(MachineError, match=r"shares its 64\.0 GiB"):
        parse_machine("m3-max-64gb", ram_bytes=32 * GIB)


def test_a_machine_without_ram_is_refused() -> None:
    with pytest.raises(MachineError, match="0 B of RAM"):
        parse_machine("rtx4090", ram_bytes=0)


TOML = parse_machine("2xrtx4090").to_toml()


@pytest.mark.parametrize(
    ("line", "instead", "sentence"),
    [
        ("memory_bytes_per_second = 1008000000000.0", "", "'devices[0].memory_bytes_per_second' is missing"),
        ("usable_bytes = ", "usable_bytes = -", "'devices[0].usable_bytes' is -25"),
        ("usable_bytes = ", 'usable_bytes = "24G" # ', "'usable_bytes': '24G' can be read in two ways"),
        ("usable_bytes = ", 'usable_bytes = "25GiB" # ', "26843545600 usable_bytes of 25769803776 listed_bytes"),
        ("count = 2", "count = 0", "has a count of 0, not 1 to 1024"),
        ("count = 2", "cuont = 2", "'devices[0].cuont' is not a field"),
        ("fp16 = 165", "fp17 = 165", "a rate for 'fp17', not one of fp32"),
        ("fp16 = 165", "fp16 = nan # ", "'devices[0].operations_per_second.fp16' is nan"),
        ("bytes_per_second = 31500000000.0", "bytes_per_second = 0", "link from 'RAM' has a bytes_per_second of 0"),
        ('kind = "gpu"', 'kind = "tpu"', "'devices[0].kind' is 'tpu'"),
        ("machine_version = 1", "machine_version = 2", "has version 2"),
        ("threads = 32", "threads = 0", "has no processor"),
        ("link_efficiency = ", "lnik_efficiency = ", "'lnik_efficiency' is not a figure of a device"),
        ("[[links]]", "[[links]", "is not TOML"),
    ],
)
def test_a_fault_in_a_file_is_named_with_the_file(line: str, instead: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert line in TOML
    path.write_text(TOML.replace(line, instead, 1))
    with pytest.raises(MachineError) as caught:
        parse_machine(str(path))
    assert str(caught.value).startswith(str(path)) and sentence in str(caught.value)


def test_figures_that_a_file_leaves_out_are_assumed() -> None:
    without = TOML.split("[devices.figures]")[0]
    assert Machine.from_toml(without).devices[0].figures == parse_machine("rtx4090").devices[0].figures


@given(st.data())
def test_a_damaged_file_is_a_machine_or_refused_in_one_sentence(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(TOML)))
    length = data.draw(st.integers(0, 40))
    put = data.draw(st.text(max_size=12) | st.sampled_from(["-1", '""', "[]", "{}", "1e999", "true", "[[tiers]]\n"]))
    try:
        Machine.from_toml(TOML[:start] + put + TOML[start + length :])
    except MachineError as error:
        assert "\n" not in str(error)


@settings(max_examples=40)
@given(st.text(max_size=40))
def test_any_text_is_a_machine_or_refused(text: str) -> None:
    try:
        parse_machine(text)
    except MachineError as error:
        assert str(error)
