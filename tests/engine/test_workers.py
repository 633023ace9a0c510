"""Threads run a step together, sleep between steps, and end."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from residency.engine.workers import Workers
from residency.kernels.library import Library
from residency.kernels.norm import rms_norm_add
from support.steps import Step

COLUMNS = 64


@pytest.fixture(scope="module")
def library(session_cache: Path) -> Library:
    return Library(["norm.rms", "step.run", "step.serve"])


class Counting:
    """A step of two dependent kernels: it adds 1 to one array and then its norm, 1 as well, to another."""

    def __init__(self, library: Library, tokens: int, shares: int = 1) -> None:
        self.step = Step(num_tokens=tokens)
        ones = self.step.given(np.ones((tokens, COLUMNS), np.float32))
        weight = self.step.given(np.ones(COLUMNS, np.float32))
        self.first, self.second = (self.step.given(np.zeros((tokens, COLUMNS), np.float32)) for _ in range(2))
        rms_norm_add(self.step.recorder, ones, weight, 0.0, self.first)
        rms_norm_add(self.step.recorder, self.first, weight, 0.0, self.second)
        for launch in self.step.recorder.launches:
            launch.shares = shares
        self.program = self.step.recorder.finish(library)

    def counted(self, times: int) -> bool:
        return bool((self.first == times).all() and (self.second == times).all())


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("residency-")]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_each_step_is_done_when_run_returns(library: Library, tokens: int, threads: int) -> None:
    counting = Counting(library, tokens)
    with Workers(library, threads) as workers:
        for _ in range(200):
            workers.run(counting.program)
        assert counting.counted(200)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
def test_where_a_thread_stays_no_two_share_a_processor(library: Library) -> None:
    allowed = os.sched_getaffinity(0)
    counting = Counting(library, tokens=2)
    held: list[set[int]] = []

    def serve(workers: Workers) -> None:
        workers.stay()
        workers.run(counting.program)
        others = [thread.native_id or 0 for thread in threading.enumerate() if thread.name.startswith("residency-")]
        held.extend(os.sched_getaffinity(thread) for thread in (0, *others))

    with Workers(library, len(allowed)) as workers:
        serving = threading.Thread(target=serve, args=(workers,))
        serving.start()
        serving.join()
    assert counting.counted(1)
    assert sorted(map(list, held)) == [[processor] for processor in sorted(allowed)]
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("busy", [0, 2])
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_each_share_is_done_once_whoever_takes_it(library: Library, threads: int, busy: int) -> None:
    counting = Counting(library, tokens=16, shares=16)
    with busy_processes(busy), Workers(library, threads) as workers:
        for _ in range(200):
            workers.run(counting.program)
    assert counting.counted(200)


def test_threads_that_fell_asleep_wake_for_the_next_step(library: Library) -> None:
    counting = Counting(library, 2)
    with Workers(library, 2) as workers:
        for _ in range(5):
            workers.run(counting.program)
            time.sleep(0.02)
    assert counting.counted(5)


def test_idle_threads_sleep(library: Library) -> None:
    counting = Counting(library, 2)
    with Workers(library, 2) as workers:
        workers.run(counting.program)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.02


def test_busy_processes_beside_it_do_not_hang_a_step(library: Library) -> None:
    counting = Counting(library, 2)
    with busy_processes(4), Workers(library, 2) as workers:
        started = time.perf_counter()
        for _ in range(50):
            workers.run(counting.program)
        assert time.perf_counter() - started < 10
    assert counting.counted(50)


def test_two_sets_of_threads_run_beside_each_other(library: Library) -> None:
    first, second = Counting(library, 2), Counting(library, 2)
    with Workers(library, 2) as ours, Workers(library, 2) as theirs:
        for _ in range(50):
            ours.run(first.program)
            theirs.run(second.program)
    assert first.counted(50) and second.counted(50)


def test_closing_ends_the_threads(library: Library) -> None:
    before = our_threads()
    with Workers(library, 4) as workers:
        workers.run(Counting(library, 2).program)
    assert our_threads() == before


def test_threads_that_never_ran_a_step_end_too(library: Library) -> None:
    before = our_threads()
    Workers(library, 4).close()
    assert our_threads() == before
