"""Measure this machine with the engine's own kernels. Run in a process of its own: `python -m residency.engine.calibrate`.

A process that reports its own peak must not have filled the probe's buffers, so runs start this one and read its result.
"""

import subprocess
import sys
import time

import numpy as np

from residency.errors import MachineError
from residency.formats import Q4_1
from residency.hardware import Machine
from residency.kernels.library import Library
from residency.kernels.matmul import Matrix, linear
from residency.kernels.recorder import Inputs, Launch, Recorder, Rows, address_of
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


def matrix_rates(library: Library) -> dict[str, float]:
    """Measured figures of the cost model: what one thread's matrix kernels reach from cache."""
    tokens = 64
    seconds = _seconds_of_product(library, rows=1024, tokens=tokens)
    return {"matrix_int8_operations_per_second": 2 * 1024 * _COLUMNS * tokens / seconds}


def _seconds_of_product(library: Library, *, rows: int, tokens: int) -> float:
    """The best time of one thread for a Q4_1 matrix times so many rows of activations."""
    counts = np.array([tokens, 0, 0, 0], np.int64)
    at = address_of(counts)
    inputs = Inputs(
        num_tokens=at, num_logits=at, num_items=at, splits=at, logit_rows=at, items=at, positions=at, sequences=at
    )
    tiles = np.zeros(Q4_1.bytes_of((rows, _COLUMNS)), np.uint8)
    x = Rows(np.zeros((tokens, _COLUMNS), np.float32), np.zeros((tokens, _COLUMNS // 32 * 48), np.uint8))
    step = Recorder(inputs, {})
    x.launch = Launch("none", {}, meet=False)
    matrix = Matrix(format=Q4_1, rows=rows, columns=_COLUMNS, tiles=tiles)
    linear(step, x, matrix, np.zeros((tokens, rows), np.float32))
    program = step.finish(library)
    run = library.driver("step.run", 5)
    meeting = np.zeros(32, np.int64)
    best = float("inf")
    for _ in range(_TRIALS):
        started = time.perf_counter()
        run(program.address, 1, address_of(meeting), 0, 1)
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    """Measure, and keep the result where `this_machine` finds it."""
    library = Library(["stream.read", "step.run", "matmul.Q4_1"])
    machine = probe(read_kernel=read_kernel, measure_runtime=runtime_bytes, renew="--renew" in sys.argv[1:])
    save_machine(machine.with_measured(**matrix_rates(library)))


if __name__ == "__main__":
    main()
