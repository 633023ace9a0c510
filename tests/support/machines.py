"""A machine that nobody measured, so that plans in tests need no probe."""

from residency.hardware import Machine, ThreadRate, Tier, assumed_figures


def unmeasured_machine() -> Machine:
    """Two threads, 8 GiB, and rates as assumed."""
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
