"""Memory cgroups, for tests that hold a process to its budget."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CGROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A memory cgroup of exactly that size, version 1 or 2; a skip where none can be made."""
    root = next((each for each in CGROUPS if (each / "cgroup.procs").exists()), CGROUPS[1])
    group = root / f"residency-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        _limit(group, limit_bytes)
        yield group
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Processes that were killed take a moment to leave."""
    for _ in range(100):
        try:
            return group.rmdir()
        except OSError:
            time.sleep(0.1)
    group.rmdir()


def _limit(group: Path, limit_bytes: int) -> None:
    names = ("memory.limit_in_bytes", "memory.max")
    try:
        next(group / name for name in names if (group / name).exists()).write_text(str(limit_bytes))
    except (OSError, StopIteration) as error:
        pytest.skip(f"memory cgroups have no limits here: {error}")


def entering(group: Path | None) -> Callable[[], None] | None:
    """What a process does before it begins (`preexec_fn`), to be in the group."""
    return None if group is None else lambda: _enter(group)


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))
