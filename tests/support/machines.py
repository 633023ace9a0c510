"""A machine that nobody measured, so that plans in tests need no probe."""

from dataclasses import replace

from residency.hardware import Machine, ThreadRate, Tier, assumed_figures


def unmeasured_machine() -> Machine:
    """Two threads, 8 GiB, and rates as assumed. No disk, so that what does not fit is refused."""
    ram = Tier(
        name="RAM",
        kind="ram",
        capacity_bytes=8 << 30,
        available_bytes=8 << 30,
        read_rates=(ThreadRate(threads=1, bytes_per_second=1e10),),
    )
    return Machine(
        name="a test's",
        processor="any",
        threads=2,
        cores=2,
        instruction_sets=(),
        caches=(),
        tiers=(ram,),
        links=(),
        figures=assumed_figures(()),
        runtime_bytes=80 << 20,
    )


def machine_with_disk() -> Machine:
    """The same with a disk that reads 1 GB/s."""
    rates = (ThreadRate(threads=1, bytes_per_second=1e9),)
    disk = Tier(name="disk", kind="disk", capacity_bytes=1 << 40, available_bytes=1 << 40, read_rates=rates)
    machine = unmeasured_machine()
    return replace(machine, tiers=(*machine.tiers, disk))
