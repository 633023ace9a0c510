"""What the operating system says about this machine: processor, instruction sets, caches, memory. Nothing measured.

Sources: proc(5), the Linux kernel's ABI/testing/sysfs-devices-system-cpu; sysctl(3) on macOS.
"""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from residency.hardware.container import ContainerLimits, container_limits, host_memory, parse_processor_list
from residency.hardware.machine import Cache
from residency.hardware.processor import instruction_sets, processor_fields

# Those that kernels or forecasts ask for; the operating system lists some hundred.
_INSTRUCTION_SETS = frozenset(
    "sse4_1 sse4_2 avx avx2 fma f16c avx_vnni avx512f avx512bw avx512vl avx512dq avx512_vnni avx512vbmi avx512_bf16 "
    "avx512_fp16 amx_int8 amx_bf16 neon asimd asimdhp asimddp i8mm bf16 sve sve2 fphp".split()
)
_CACHE_KINDS: dict[str, Literal["data", "instruction", "unified"]] = {
    "Data": "data",
    "Instruction": "instruction",
    "Unified": "unified",
}
_SIZE_SUFFIXES = {"K": 1024, "M": 1024**2, "G": 1024**3}
_UNKNOWN_MEMORY_BYTES = 4 * 1024**3  # planned with where the operating system does not say


@dataclass(frozen=True, kw_only=True)
class Host:
    """This machine as the container allows it."""

    processor: str
    instruction_sets: tuple[str, ...]
    threads: int
    cores: int
    caches: tuple[Cache, ...]
    memory_bytes: int
    available_bytes: int


def read_host(root: Path = Path("/"), *, allowed: frozenset[int] | None = None) -> Host:
    """Read in a few milliseconds. `root` is where /proc and /sys are looked for; `allowed` are the processors that
    the process may run on, by default as the operating system says."""
    limits = container_limits(root)
    processors = _allowed_processors() if allowed is None else allowed
    if limits.processor_set is not None:
        processors = processors & limits.processor_set or processors
    threads = len(processors)
    if limits.processors is not None:
        threads = max(1, min(threads, int(limits.processors)))
    cores = min(threads, _count_cores(root, processors))
    memory_bytes, available_bytes = _memory(root, limits)
    name, instruction_sets = _processor(root)
    return Host(
        processor=name,
        instruction_sets=instruction_sets,
        threads=threads,
        cores=cores,
        caches=_caches(root, min(processors)),
        memory_bytes=memory_bytes,
        available_bytes=available_bytes,
    )


def _allowed_processors() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _memory(root: Path, limits: ContainerLimits) -> tuple[int, int]:
    fields = host_memory(root)
    total_bytes = fields.get("MemTotal") or _sysctl_number("hw.memsize") or _UNKNOWN_MEMORY_BYTES
    available_bytes = fields.get("MemAvailable", total_bytes // 2)
    if limits.memory_bytes is not None:
        total_bytes = min(total_bytes, limits.memory_bytes)
    if limits.available_bytes is not None:
        available_bytes = min(available_bytes, limits.available_bytes)
    return total_bytes, available_bytes


def _processor(root: Path) -> tuple[str, tuple[str, ...]]:
    """Name and instruction sets of the first processor."""
    listed = processor_fields(root).get("model name")
    name = listed or _sysctl_text("machdep.cpu.brand_string") or platform.machine() or "unknown"
    flags = set(instruction_sets(root))
    if not flags and sys.platform == "darwin":
        flags = _apple_instruction_sets()
    return name, tuple(sorted(flags & _INSTRUCTION_SETS))


def _apple_instruction_sets() -> set[str]:
    names = {"asimd": "hw.optional.AdvSIMD", "asimddp": "hw.optional.arm.FEAT_DotProd", "avx2": "hw.optional.avx2_0"}
    names["i8mm"] = "hw.optional.arm.FEAT_I8MM"
    return {name for name, key in names.items() if _sysctl_number(key)}


def _caches(root: Path, processor: int) -> tuple[Cache, ...]:
    folder = root / "sys" / "devices" / "system" / "cpu" / f"cpu{processor}" / "cache"
    caches = []
    for index in sorted(folder.glob("index*")):
        level, kind = _line(index / "level"), _CACHE_KINDS.get(_line(index / "type"))
        num_bytes = _size(_line(index / "size"))
        sharing = parse_processor_list(_line(index / "shared_cpu_list"))
        if level.isdigit() and num_bytes and kind is not None:
            caches.append(
                Cache(level=int(level), kind=kind, num_bytes=num_bytes, sharing_threads=len(sharing or (processor,)))
            )
    if not caches and sys.platform == "darwin":
        for level_number, key in ((1, "hw.l1dcachesize"), (2, "hw.l2cachesize"), (3, "hw.l3cachesize")):
            if num_bytes := _sysctl_number(key):
                caches.append(Cache(level=level_number, kind="data", num_bytes=num_bytes, sharing_threads=1))
    return tuple(sorted(caches, key=lambda cache: (cache.level, cache.kind)))


def _count_cores(root: Path, processors: frozenset[int]) -> int:
    """Processors that are no twins: hardware threads of one core list the same siblings."""
    folder = root / "sys" / "devices" / "system" / "cpu"
    siblings = {
        _line(folder / f"cpu{number}" / "topology" / "thread_siblings_list") or str(number) for number in processors
    }
    return len(siblings)


def _size(text: str) -> int:
    digits, suffix = text[:-1], text[-1:]
    if suffix in _SIZE_SUFFIXES and digits.isascii() and digits.isdigit():
        return int(digits) * _SIZE_SUFFIXES[suffix]
    return int(text) if text.isascii() and text.isdigit() else 0


def _line(path: Path) -> str:
    try:
        return path.read_text("ascii", errors="replace").strip()
    except OSError:
        return ""


def _sysctl_text(key: str) -> str:
    if sys.platform != "darwin":
        return ""
    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=1, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _sysctl_number(key: str) -> int:
    text = _sysctl_text(key)
    return int(text) if text.isascii() and text.isdigit() else 0
