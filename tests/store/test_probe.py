import ctypes
import json
import os
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from residency.hardware import Machine
from residency.store.direct import BLOCK_BYTES
from residency.store.disk_rate import disk_read_rates
from residency.store.memory_rate import ReadBytes, memory_read_rates, thread_counts
from residency.store.probe import (
    DISTURBED_MAX_AGE_SECONDS,
    MAX_AGE_SECONDS,
    ProbeCost,
    age_seconds,
    load_machine,
    probe,
    save_machine,
)

CHEAP = ProbeCost(
    memory_seconds=0.02,
    least_buffer_bytes=1024**2,
    most_buffer_bytes=1024**2,
    disk_seconds=0.02,
    disk_bytes=2 * BLOCK_BYTES,
)


def read_with_numpy(address: int, num_bytes: int) -> int:
    memory = (ctypes.c_uint8 * num_bytes).from_address(address)
    return int(np.frombuffer(memoryview(memory), dtype=np.uint64).sum())


def kernel() -> ReadBytes:
    return read_with_numpy


def no_kernel() -> ReadBytes:
    raise AssertionError("measured again")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("RESIDENCY_CACHE", str(folder))
    return folder


def measured() -> Machine:
    return probe(read_kernel=kernel, cost=CHEAP)


def test_a_machine_is_measured_once() -> None:
    machine = measured()
    again = probe(read_kernel=no_kernel)
    assert again.tier("ram").read_rates == machine.tier("ram").read_rates


def test_renewing_measures_again() -> None:
    measured()
    with pytest.raises(AssertionError, match="measured again"):
        probe(read_kernel=no_kernel, renew=True)


def test_the_runtime_is_measured_with_the_machine_and_kept() -> None:
    probe(read_kernel=kernel, cost=CHEAP, measure_runtime=lambda: 123)
    assert probe(read_kernel=no_kernel).runtime_bytes == 123


def test_a_figure_that_was_measured_later_is_kept() -> None:
    save_machine(measured().with_measured(read_efficiency=0.95))
    assert probe(read_kernel=no_kernel).figure("read_efficiency") == 0.95


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"machine_version": 99}', b"[" * 100_000])
def test_a_damaged_file_is_measured_anew(cache: Path, content: bytes) -> None:
    cache.mkdir()
    (cache / "machine.json").write_bytes(content)
    assert measured() == load_machine()


def test_a_file_of_another_processor_is_measured_anew(cache: Path) -> None:
    save_machine(replace(measured(), processor="another"))
    assert measured().processor != "another"


def test_a_file_of_fewer_threads_is_measured_anew(cache: Path) -> None:
    measured()
    data = json.loads((cache / "machine.json").read_text())
    data["tiers"][0]["read_rates"] = [{"threads": 0, "bytes_per_second": 1.0}]
    (cache / "machine.json").write_text(json.dumps(data))
    assert measured().tier("ram").read_bytes_per_second(1) > 1.0


@pytest.mark.parametrize("age", [MAX_AGE_SECONDS + 1, None])
def test_a_file_that_is_old_or_of_no_age_is_measured_anew(age: int | None) -> None:
    then = None if age is None else int(time.time()) - age
    save_machine(replace(measured(), measured_unix_seconds=then))
    assert (age_seconds(measured()) or 0.0) < 60


def test_free_memory_is_as_it_is_now_not_as_it_was(cache: Path) -> None:
    machine = measured()
    ram = replace(machine.tier("ram"), capacity_bytes=1, available_bytes=1)
    save_machine(replace(machine, tiers=(ram,)))
    assert probe(read_kernel=no_kernel).tier("ram").capacity_bytes > 1


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    machine = measured()
    assert (machine.threads >= 1, load_machine()) == (True, None)


def test_nothing_but_the_machine_is_left_in_the_cache(cache: Path) -> None:
    measured()
    assert os.listdir(cache) == ["machine.json"]


@pytest.mark.parametrize(
    ("threads", "counts"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))]
)
def test_thread_counts_double_up_to_all(threads: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(threads) == counts


def test_each_thread_reads_its_own_part_and_nothing_beyond() -> None:
    seen: list[tuple[int, int]] = []

    def read(address: int, num_bytes: int) -> None:
        seen.append((address, num_bytes))

    memory_read_rates(read, max_threads=3, buffer_bytes=64 * 4096, limit_seconds=0.001)
    spans = sorted(set(seen[-3:]))
    first = min(address for address, _ in seen)
    assert all(address + num_bytes <= first + 64 * 4096 for address, num_bytes in seen)
    assert all(begin[0] + begin[1] <= end[0] for begin, end in pairwise(spans))


def test_a_rate_is_bytes_over_the_time_they_take() -> None:
    def read(address: int, num_bytes: int) -> None:
        time.sleep(0.02)

    (rate,) = memory_read_rates(read, max_threads=1, buffer_bytes=1_000 * 4096, limit_seconds=0.001)
    assert 0.5 < rate.bytes_per_second / (1_000 * 4096 / 0.02) <= 1.0


def test_a_disk_is_read_on_one_thread_and_on_several(tmp_path: Path) -> None:
    rates = disk_read_rates(tmp_path, max_bytes=2 * BLOCK_BYTES, limit_seconds=0.1)
    assert [rate.threads for rate in rates] == [1, 4]


def test_a_folder_that_is_not_there_has_no_rate(tmp_path: Path) -> None:
    assert disk_read_rates(tmp_path / "missing", max_bytes=2 * BLOCK_BYTES, limit_seconds=0.1) == ()


def test_a_disk_without_room_has_no_rate(tmp_path: Path) -> None:
    assert disk_read_rates(tmp_path, max_bytes=0, limit_seconds=0.1) == ()


def test_what_was_measured_beside_others_is_measured_again_soon() -> None:
    machine = measured()
    ram = machine.tier("ram")
    rates = tuple(replace(rate, processor_share=0.5) for rate in ram.read_rates)
    then = int(time.time()) - DISTURBED_MAX_AGE_SECONDS - 1
    save_machine(replace(machine, tiers=(replace(ram, read_rates=rates),), measured_unix_seconds=then))
    assert (age_seconds(measured()) or 0.0) < 60
