"""This machine, measured: memory and disk read rates, kept in the cache folder as machine.json."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from residency.errors import MachineError
from residency.hardware import Machine, Tier, assumed_figures
from residency.hardware.host import Host, read_host
from residency.paths import cache_folder
from residency.store.disk_rate import disk_read_rates
from residency.store.memory_rate import PIECE_ALIGNMENT, ReadBytes, memory_read_rates

MAX_AGE_SECONDS = 30 * 24 * 3600
DISTURBED_MAX_AGE_SECONDS = 600  # of what was measured while others kept a processor busy
_UNDISTURBED_SHARE = 0.85  # on average; one busy neighbour of two threads leaves 0.75


@dataclass(frozen=True, kw_only=True)
class ProbeCost:
    """What measuring may take: together less than 3 s."""

    fill_seconds: float = 0.6  # of the buffer that is read
    memory_seconds: float = 1.0
    least_buffer_bytes: int = 256 * 1024**2  # of a quarter of the free memory at most
    most_buffer_bytes: int = 1024**3
    disk_seconds: float = 0.8
    disk_bytes: int = 256 * 1000**2


def probe(
    *,
    read_kernel: Callable[[], ReadBytes],
    measure_runtime: Callable[[], int] | None = None,
    renew: bool = False,
    cost: ProbeCost | None = None,
) -> Machine:
    """This machine, from machine.json where that is of this machine and at most 30 days old; else measured.

    `read_kernel` gives the kernel that reads memory and is called only to measure; so is `measure_runtime`, which
    gives the bytes of a process without a model. `renew` measures in any case. Threads, memory and free bytes are
    always as they are now. A machine.json that is damaged or of another machine is replaced; where it cannot be
    written, the next call measures again. Measuring touches the buffer's bytes, which a process that reports its
    own peak will want to have done in another.
    """
    if not renew and (kept := kept_machine()) is not None:
        return kept
    machine = _measure(read_host(), read_kernel(), cost or ProbeCost())
    if measure_runtime is not None:
        machine = replace(machine, runtime_bytes=measure_runtime())
    save_machine(machine)
    return machine


def kept_machine() -> Machine | None:
    """What machine.json says where it still holds, with threads, memory and free bytes as they are now."""
    host, kept = read_host(), load_machine()
    return _as_it_is_now(kept, host) if kept is not None and _describes(kept, host) else None


def load_machine() -> Machine | None:
    """What machine.json says, as it was measured; None where there is none that can be used."""
    try:
        return Machine.from_json(_machine_path().read_text("utf-8"))
    except (OSError, UnicodeDecodeError, MachineError):
        return None


def save_machine(machine: Machine) -> bool:
    """Write machine.json whole or not at all; whether that was possible."""
    path = _machine_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix="machine-", delete=False, encoding="utf-8"
        ) as file:
            try:
                file.write(machine.to_json())
                file.close()
                os.replace(file.name, path)
            except OSError:
                with suppress(OSError):
                    os.unlink(file.name)
                return False
    except OSError:
        return False
    return True


def age_seconds(machine: Machine) -> float | None:
    """How long ago the machine was measured; None where it was not."""
    return None if machine.measured_unix_seconds is None else max(0.0, time.time() - machine.measured_unix_seconds)


def is_disturbed(machine: Machine) -> bool:
    """Whether others kept processors busy while the machine was measured, so that it is soon measured again."""
    rates = machine.tier("ram").read_rates
    most_threads = max(rate.threads for rate in rates)
    shares = [rate.processor_share for rate in rates if rate.threads == most_threads]
    return sum(shares) / len(shares) < _UNDISTURBED_SHARE


def _machine_path() -> Path:
    return cache_folder() / "machine.json"


def _measure(host: Host, read: ReadBytes, cost: ProbeCost) -> Machine:
    rates = memory_read_rates(
        read,
        max_threads=host.threads,
        buffer_bytes=_buffer_bytes(host, cost),
        limit_seconds=cost.memory_seconds,
        fill_seconds=cost.fill_seconds,
    )
    ram = Tier(
        name="RAM",
        kind="ram",
        capacity_bytes=host.memory_bytes,
        available_bytes=host.available_bytes,
        read_rates=rates,
    )
    disk = _disk(cost)
    return Machine(
        name=platform.node() or "this machine",
        processor=host.processor,
        threads=host.threads,
        cores=host.cores,
        instruction_sets=host.instruction_sets,
        caches=host.caches,
        tiers=(ram,) if disk is None else (ram, disk),
        links=(),
        figures=assumed_figures(host.instruction_sets),
        measured_unix_seconds=int(time.time()),
    )


def _disk(cost: ProbeCost) -> Tier | None:
    folder = cache_folder()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        usage = shutil.disk_usage(folder)
        max_bytes = min(cost.disk_bytes, usage.free // 4)
        if rates := disk_read_rates(folder, max_bytes=max_bytes, limit_seconds=cost.disk_seconds):
            return Tier(
                name="disk", kind="disk", capacity_bytes=usage.total, available_bytes=usage.free, read_rates=rates
            )
    return None


def _buffer_bytes(host: Host, cost: ProbeCost) -> int:
    """Twice the largest cache, so that little of it is found there again, but never more than memory allows."""
    cache_bytes = max((cache.num_bytes for cache in host.caches), default=0)
    wanted_bytes = min(max(cost.least_buffer_bytes, 2 * cache_bytes), cost.most_buffer_bytes, host.available_bytes // 4)
    return max(wanted_bytes // PIECE_ALIGNMENT, host.threads) * PIECE_ALIGNMENT


def _describes(machine: Machine, host: Host) -> bool:
    """Whether what was measured still holds: lately, all of it, on this processor, with at least as many threads."""
    age = age_seconds(machine)
    rates = [rate for tier in machine.tiers if tier.kind == "ram" for rate in tier.read_rates]
    return (
        age is not None
        and age < (DISTURBED_MAX_AGE_SECONDS if is_disturbed(machine) else MAX_AGE_SECONDS)
        and (machine.processor, machine.instruction_sets) == (host.processor, host.instruction_sets)
        and max((rate.threads for rate in rates), default=0) >= host.threads
        and assumed_figures(()).keys() <= machine.figures.keys()  # measured by a version that knew them all
    )


def _as_it_is_now(machine: Machine, host: Host) -> Machine:
    tiers = []
    for tier in machine.tiers:
        if tier.kind == "ram":
            tier = replace(tier, capacity_bytes=host.memory_bytes, available_bytes=host.available_bytes)
        elif tier.kind == "disk":
            with suppress(OSError):
                tier = replace(tier, available_bytes=shutil.disk_usage(cache_folder()).free)
        tiers.append(tier)
    return replace(machine, threads=host.threads, cores=host.cores, tiers=tuple(tiers))
