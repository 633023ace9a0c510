"""Memory and processors as the container allows them: control groups, versions 1 and 2.

Sources: the Linux kernel's admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, scheduler/sched-bwc.rst and proc(5).
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT_BYTES = 2**60  # version 1 writes "no limit" as a number near 2^63, rounded down to pages


@dataclass(frozen=True, kw_only=True)
class ContainerLimits:
    """What the process may use. None: nothing that limits it was found."""

    memory_bytes: int | None  # the least limit of the process's group and those around it
    available_bytes: int | None  # what the tightest of them leaves free, reclaimable file cache counted as free
    processors: float | None  # quota of processor time over its period: 1.5 is one and a half processors
    processor_set: frozenset[int] | None


@dataclass(frozen=True)
class _Hierarchy:
    """One mounted tree of control groups, and where in it the process is."""

    version: int
    mount: Path
    group: Path  # at the mount point or below it

    def groups(self) -> Iterator[Path]:
        """The process's group and those around it, innermost first."""
        yield self.group
        for parent in self.group.parents:
            if self.group == self.mount or not parent.is_relative_to(self.mount):
                return
            yield parent


def container_limits(root: Path = Path("/")) -> ContainerLimits:
    """What the control groups of this process allow. `root` is where /proc and /sys are looked for.

    Files that are missing or make no sense limit nothing.
    """
    memory_limits: list[int] = []
    free_bytes: list[int] = []
    quotas: list[float] = []
    processor_set: frozenset[int] | None = None
    for controller in ("memory", "cpu", "cpuset"):
        for hierarchy in _hierarchies(root, controller):
            for group in hierarchy.groups():
                if controller == "memory" and (limit := _memory_limit(hierarchy.version, group)) is not None:
                    memory_limits.append(limit)
                    free_bytes.append(max(0, limit - _memory_in_use(hierarchy.version, group)))
                if controller == "cpu" and (quota := _quota(hierarchy.version, group)) is not None:
                    quotas.append(quota)
                if controller == "cpuset" and processor_set is None:
                    processor_set = _processor_set(hierarchy.version, group)
    return ContainerLimits(
        memory_bytes=min(memory_limits, default=None),
        available_bytes=min(free_bytes, default=None),
        processors=min(quotas, default=None),
        processor_set=processor_set,
    )


def host_memory(root: Path = Path("/")) -> dict[str, int]:
    """/proc/meminfo in bytes, by its names ("MemTotal", "MemAvailable"); empty where there is none."""
    fields = {}
    for line in _text(root / "proc" / "meminfo").splitlines():
        match = re.match(r"(\w+):\s+(\d+) kB", line)
        if match:
            fields[match[1]] = int(match[2]) * 1024
    return fields


def parse_processor_list(text: str) -> frozenset[int] | None:
    """The processors of "0-3,8"; None for an empty or foreign text."""
    processors: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if match is None:
            return None
        processors.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(processors) or None


def _hierarchies(root: Path, controller: str) -> Iterator[_Hierarchy]:
    paths = _group_paths(root)
    for line in _text(root / "proc" / "self" / "mountinfo").splitlines():
        before, separator, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == "cgroup2":
            version, path = 2, paths.get("")
        elif kinds[0] == "cgroup" and controller in kinds[2].split(","):
            version, path = 1, paths.get(controller)
        else:
            continue
        if path is not None:
            mount = root / _unescaped(fields[4]).lstrip("/")
            yield _Hierarchy(version, mount, _below(mount, mount_root=_unescaped(fields[3]), path=path))


def _group_paths(root: Path) -> dict[str, str]:
    """The process's group by controller, from /proc/self/cgroup; version 2's under the empty name."""
    paths = {}
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            paths.update(dict.fromkeys(parts[1].split(","), parts[2]))
    return paths


def _below(mount: Path, *, mount_root: str, path: str) -> Path:
    """Where the group `path` is seen under a mount that shows `mount_root` and what is below it.

    In a container the mount often shows just the container's own group, which is then the mount point itself.
    """
    relative = os.path.relpath(path, mount_root)
    if relative == "." or relative.startswith(".."):
        return mount
    group = mount / relative
    return group if group.is_dir() else mount


def _memory_limit(version: int, group: Path) -> int | None:
    limit = _number(group / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
    return None if limit is None or limit >= _NO_LIMIT_BYTES else limit


def _memory_in_use(version: int, group: Path) -> int:
    """Bytes charged to the group that the kernel cannot simply drop."""
    used = _number(group / ("memory.current" if version == 2 else "memory.usage_in_bytes")) or 0
    name = "inactive_file" if version == 2 else "total_inactive_file"
    match = re.search(rf"^{name} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
    return max(0, used - int(match[1])) if match else used


def _quota(version: int, group: Path) -> float | None:
    if version == 2:
        parts = _text(group / "cpu.max").split()
        quota, period = (parts[0], parts[1]) if len(parts) == 2 else ("max", "0")
    else:
        quota, period = _text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip()
    if not (quota.isascii() and quota.isdigit() and period.isascii() and period.isdigit()):
        return None  # "max" and "-1" are no limit
    return int(quota) / int(period) if int(quota) and int(period) else None


def _processor_set(version: int, group: Path) -> frozenset[int] | None:
    names = ("cpuset.cpus.effective",) if version == 2 else ("cpuset.effective_cpus", "cpuset.cpus")
    for name in names:
        if (processors := parse_processor_list(_text(group / name))) is not None:
            return processors
    return None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _unescaped(field: str) -> str:
    """A field of mountinfo, in which a space is written \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
