"""Measure this machine with the engine's own kernels. Run in a process of its own: `python -m residency.engine.calibrate`.

A process that reports its own peak must not have filled the probe's buffers, so runs start this one and read its result.
"""

import ctypes
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from residency.errors import MachineError
from residency.formats import Q4_1, Format
from residency.hardware import Machine
from residency.kernels.library import Library
from residency.kernels.recorder import Inputs, Recorder, Rows, address_of
from residency.kernels.matmul import Matrix, linear
from residency.store.memory_rate import ReadBytes
from residency.store.probe import load_machine, probe, save_machine

_COLUMNS = 1024
_TRIALS = 7


def this_machine(*, renew: bool = False) -> Machine:
    """This machine as it was measured at most 30 days ago, or measured now, in another process.

    MachineError if that process fails.
    """
    command = [sys.executable, "-m", "residency.engine.calibrate", *(["--renew"] if renew else [])]
    kept = None if renew else load_machine()
    if kept is not None and kept.runtime_bytes is not None:
        return probe(read_kernel=_never)
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    machine = load_machine()
    if finished.returncode or machine is None:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineError(f"measuring this machine failed ({last}); run residency probe --renew to see it again.")
    return machine


def _never() -> ReadBytes:
    raise MachineError("this machine changed while it was being read; run the command again.")


def read_kernel() -> ReadBytes:
    """The kernel that reads memory, for the probe."""
    read = Library(["stream.read"]).driver("stream.read", 3)
    sink = np.zeros(64, np.int64)

    def read_bytes(address: int, num_bytes: int) -> None:
        read(address, num_bytes // 512 * 512, address_of(sink))

    return read_bytes


def runtime_bytes() -> int:
    """Resident bytes of a process without a model: the peak of one that does nothing else."""
    command = [sys.executable, "-m", "residency.engine.footprint"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineError(f"the runtime could not be measured: {last}.")
    return int(finished.stdout)
