"""A cycle of reads into a ring of slots."""

import ctypes
import threading
import time
from collections.abc import Callable

import pytest

from residency.errors import StoreError
from residency.store.arena import Arena
from residency.store.direct import BLOCK_BYTES
from residency.store.stream import Range, Stream

CYCLE = [Range(offset=4096 * number, num_bytes=4096) for number in range(5)]


def numbered(into: memoryview, offset: int) -> None:
    """A disk whose pages hold their numbers."""
    into[:] = bytes([offset // 4096 % 256]) * len(into)


def slots_of(arena: Arena, num_bytes: int = 4096) -> list[memoryview]:
    return [arena.memory[start : start + num_bytes] for start in range(0, arena.num_bytes, num_bytes)]


def until(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.001)
    return happened()


def release(stream: Stream, count: int) -> None:
    """What a step's kernel does."""
    ctypes.c_int64.from_address(stream.words.released).value = count
    ctypes.CDLL(None).eventfd_write(stream.words.bell, ctypes.c_uint64(1))


def test_as_many_reads_as_there_are_slots_are_made_ahead() -> None:
    with Stream(numbered, CYCLE, slots_of(Arena(3 * 4096)), readers=4) as stream:
        assert until(lambda: stream.num_arrived == 3)
        time.sleep(0.02)
        assert stream.num_arrived == 3


def test_slots_given_back_are_filled_round_and_round() -> None:
    arena = Arena(3 * 4096)
    with Stream(numbered, CYCLE, slots_of(arena), readers=4) as stream:
        for count in range(1, 24):
            release(stream, count)
            assert until(lambda expected=count + 3: stream.num_arrived == expected)  # type: ignore[misc]
            held = [arena.memory[number % 3 * 4096] for number in range(count, count + 3)]
            assert held == [number % 5 for number in range(count, count + 3)]


def test_whole_cycles_are_read_for_a_rate() -> None:
    taken: list[int] = []
    with Stream(lambda into, offset: taken.append(offset), CYCLE, slots_of(Arena(3 * 4096)), readers=1) as stream:
        assert until(lambda: stream.num_arrived == 3)
        assert stream.read_rate(0.01) > 0
        assert len(taken) % len(CYCLE) == 3


def test_a_step_after_a_rate_begins_with_the_first_read_of_the_cycle() -> None:
    arena = Arena(3 * 4096)
    with Stream(numbered, CYCLE, slots_of(arena), readers=4) as stream:
        stream.read_rate(0.01)
        assert arena.memory[stream.slot_of_next * 4096] == 0


def test_a_read_has_arrived_when_all_before_it_have() -> None:
    """The first read waits; those after it are done long before."""
    first = threading.Event()

    def read(into: memoryview, offset: int) -> None:
        if offset == 0:
            first.wait(10)
        numbered(into, offset)

    with Stream(read, CYCLE, slots_of(Arena(3 * 4096)), readers=3) as stream:
        time.sleep(0.02)
        assert stream.num_arrived == 0
        first.set()
        assert until(lambda: stream.num_arrived == 3)


def test_a_range_of_many_blocks_has_arrived_when_all_of_them_have() -> None:
    length = 3 * BLOCK_BYTES + 4096
    arena = Arena(length)
    with Stream(numbered, [Range(offset=0, num_bytes=length)], [arena.memory], readers=4) as stream:
        assert until(lambda: stream.num_arrived == 1)
        starts = [start // 4096 % 256 for start in range(0, length, BLOCK_BYTES)]
        assert [arena.memory[start] for start in range(0, length, BLOCK_BYTES)] == starts


def faulty(into: memoryview, offset: int) -> None:
    if offset == 4096 * 3:
        raise StoreError("the disk failed.")
    numbered(into, offset % (256 * 4096))


def test_a_failure_lets_steps_that_wait_run_to_their_end() -> None:
    with Stream(faulty, CYCLE, slots_of(Arena(4 * 4096)), readers=2) as stream:
        assert until(lambda: stream.num_arrived > 1 << 60)


def test_a_failure_is_told_to_every_step_from_then_on() -> None:
    with Stream(faulty, CYCLE, slots_of(Arena(4 * 4096)), readers=2) as stream:
        until(lambda: stream.num_arrived > 1 << 60)
        for tell in (stream.check, stream.begin, stream.check):
            with pytest.raises(StoreError, match="the disk failed"):
                tell()


def test_any_other_exception_of_a_read_is_a_store_error() -> None:
    def broken(into: memoryview, offset: int) -> None:
        raise ZeroDivisionError("1 / 0")

    with Stream(broken, CYCLE, slots_of(Arena(4096)), readers=1) as stream:
        until(lambda: stream.num_arrived > 1 << 60)
        with pytest.raises(StoreError, match="could not be read: 1 / 0"):
            stream.check()


def test_closing_ends_readers_that_wait() -> None:
    before = threading.active_count()
    with Stream(numbered, CYCLE, slots_of(Arena(2 * 4096)), readers=4) as stream:
        until(lambda: stream.num_arrived == 2)
    assert threading.active_count() == before
