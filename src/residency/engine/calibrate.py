"""Measure this machine with the engine's own kernels, in a process of its own: `python -m residency.engine.calibrate`.

A process that reports its own peak must not have filled the probe's buffers: runs start this one and read its result.
"""

import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from residency import __version__
from residency.engine.workers import Workers
from residency.errors import MachineError
from residency.formats import Q4_1, Format
from residency.hardware import Machine
from residency.kernels.library import Library, kernel_folder
from residency.kernels.matmul import Matrix, linear
from residency.kernels.recorder import Inputs, Launch, Program, Recorder, Rows, address_of
from residency.paths import cache_folder, child_environment
from residency.spec.checkpoint import Checkpoint
from residency.store.memory_rate import ReadBytes, memory_read_rates
from residency.store.probe import is_disturbed, kept_machine, probe, save_machine

RUN_FOOTPRINT = "residency.engine.footprint"  # the program that takes what a run takes beside weights
_TRIALS = 7
_FEW, _MANY = 64, 512  # tokens: what the second number adds is multiplying, the rest of the first is unpacking
_UNNOTICED_RATE = 1e15  # of unpacking, where products unpack on the way
_STREAMED_BYTES = 512 * 1024**2  # more than caches hold, where that is to be had: half in a cache is now fast, now slow
_READING_SECONDS = 0.5
_MEASURING_BYTES = 2 * 1024**3  # twice what the process takes that measures steps
_KERNELS = 200  # of the program that shows what a kernel costs beside its work
KERNELS_PER_LAYER = 12  # in a layer of the models here


def this_machine(*, renew: bool = False) -> Machine:
    """This machine as it was measured at most 30 days ago, or measured now, in another process.

    MachineError if that process fails.
    """
    if not renew and (kept := kept_machine()) is not None:
        return kept
    _in_another_process("residency.engine.calibrate")
    machine = kept_machine()
    if machine is None:
        raise MachineError(
            "what was measured of this machine cannot be kept; set RESIDENCY_CACHE to a folder that can."
        )
    return machine


def measure_formats(formats: Iterable[str]) -> None:
    """Measure steps with those of these number formats whose kernels are compiled, in another process, unless that has
    been done, others keep processors busy, or memory is short. MachineError if that process fails.
    """
    machine = kept_machine()
    if machine is None or is_disturbed(machine) or machine.tier("ram").available_bytes < _MEASURING_BYTES:
        return
    compiled = {name for name in formats if (kernel_folder() / f"matmul.{name}.json").exists()}
    if compiled <= set(machine.read_shares):
        return
    _in_another_process("residency.engine.calibrate_steps", *sorted(compiled))


def _in_another_process(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineError(f"measuring this machine failed ({last}); run residency probe --renew to see it again.")


def read_kernel() -> ReadBytes:
    """The kernel that reads memory, for the probe."""
    read = Library(["stream.read"]).driver("stream.read", 3)
    sink = np.zeros(64, np.int64)

    def read_bytes(address: int, num_bytes: int) -> None:
        read(address, num_bytes // 512 * 512, address_of(sink))

    return read_bytes


def runtime_bytes(checkpoint: Checkpoint | None = None, *, program: str = RUN_FOOTPRINT) -> int:
    """Resident bytes of a process without weights: the peak of one that does nothing else.

    With a checkpoint, of one that also holds its headers and tokenizer; measured once and kept in the cache folder.
    `program`: the module that does what is measured and prints the bytes; words after it are told to it after the
    model. MachineError if that process fails.
    """
    if checkpoint is None:
        return _footprint(program, [])
    kept_at = cache_folder() / "runtimes" / f"{checkpoint.fingerprint[:32]}-{__version__}-{program.replace(' ', '-')}"
    with suppress(OSError, ValueError):
        return int(kept_at.read_text())
    _footprint(program, [str(checkpoint.path)])  # makes what is kept of the tokenizer, whose making must not be counted
    measured_bytes = _footprint(program, [str(checkpoint.path)])
    with suppress(OSError):
        kept_at.parent.mkdir(parents=True, exist_ok=True)
        kept_at.write_text(str(measured_bytes))
    return measured_bytes


def _footprint(program: str, arguments: list[str]) -> int:
    module, *more = program.split()
    command = [sys.executable, "-m", module, *arguments, *more]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise MachineError(f"the runtime could not be measured: {last}.")
    return int(finished.stdout)


def figures(library: Library, machine: Machine) -> dict[str, float]:
    """Figures of the cost model, from the engine's own kernels: see hardware/assumed.toml for what each means.

    Where others keep processors busy, only what one thread shows.
    """
    columns, values = 1024, 1024 * 1024
    with Workers(library, 1) as alone:

        def seconds(tokens: int, *, of_prompt: bool) -> float:
            return best_seconds(alone, product(library, rows=1024, columns=columns, tokens=tokens, of_prompt=of_prompt))

        sampled = seconds(_FEW, of_prompt=False)
        few, many = (seconds(tokens, of_prompt=True) for tokens in (_FEW, _MANY))
    a_token = (many - few) / (_MANY - _FEW)
    rates = {
        "matrix_int8_operations_per_second": 2 * values * _FEW / sampled,
        "prompt_matrix_operations_per_second": 2 * values / a_token,
        "prompt_unpacked_values_per_second": values / max(few - _FEW * a_token, values / _UNNOTICED_RATE),
    }
    if is_disturbed(machine):
        return rates
    streamed_bytes = _streamed_bytes(machine)
    (*_, beside) = memory_read_rates(
        read_kernel(), max_threads=machine.threads, buffer_bytes=streamed_bytes, limit_seconds=_READING_SECONDS
    )
    with Workers(library, machine.threads) as workers:
        streamed = product(library, rows=streamed_bytes // Q4_1.bytes_of((16, columns)) * 16, columns=columns, tokens=1)
        streamed_rate = streamed_bytes / best_seconds(workers, streamed)
        tiny_seconds = best_seconds(workers, product(library, rows=16, columns=32, tokens=1, kernels=_KERNELS))
    return {
        **rates,
        "read_efficiency": min(1.0, streamed_rate / beside.bytes_per_second),
        "layer_overhead_seconds": tiny_seconds / _KERNELS * KERNELS_PER_LAYER,
    }


def _streamed_bytes(machine: Machine) -> int:
    """The most that the machine's memory was read by, up to the usual."""
    sets = [rate.working_set_bytes or _STREAMED_BYTES for rate in machine.tier("ram").read_rates]
    return min(max(sets), _STREAMED_BYTES)


def product(
    library: Library,
    *,
    rows: int,
    columns: int,
    tokens: int,
    kernels: int = 1,
    of_prompt: bool = False,
    number_format: Format = Q4_1,
    tiles: npt.NDArray[np.uint8] | None = None,
) -> Program:
    """The product of a matrix (`tiles` or a made-up one) and activations, a prompt's or not, `kernels` times."""
    counts = np.array([tokens, 0 if of_prompt else tokens], np.int64)
    at = address_of(counts)
    inputs = Inputs(
        num_tokens=at,
        num_int8=at + 8,
        num_logits=at,
        num_items=at,
        most_splits=at,
        splits=at,
        logit_rows=at,
        items=at,
        positions=at,
        sequences=at,
    )
    step = Recorder(inputs, {"counts": counts})
    maker = Launch("none", {"together": 1}, meet=False)
    x = Rows(np.zeros((tokens, columns), np.float32), np.zeros((tokens, columns // 32 * 64), np.uint8), maker)
    if tiles is None:
        tiles = np.ones(number_format.bytes_of((rows, columns)), np.uint8)
    out = np.zeros((tokens, rows), np.float32)
    for _ in range(kernels):
        linear(step, x, Matrix(format=number_format, rows=rows, columns=columns, tiles=tiles), out)
    program = step.finish(library)
    program.blocks.append((counts, x, tiles, out))
    return program


def best_seconds(workers: Workers, program: Program, *, least_seconds: float = 0.0) -> float:
    """The quickest of some runs, which go on for `least_seconds`."""
    runs: list[float] = []
    while len(runs) < _TRIALS or sum(runs) < least_seconds:
        started = time.perf_counter()
        workers.run(program)
        runs.append(time.perf_counter() - started)
    return min(runs)


def main() -> None:
    """Measure, and keep the result where `this_machine` finds it."""
    library = Library(["stream.read", "step.run", "step.serve", "matmul.Q4_1"])
    machine = probe(read_kernel=read_kernel, measure_runtime=runtime_bytes, renew=True)
    save_machine(machine.with_measured(**figures(library, machine)))


if __name__ == "__main__":
    main()
