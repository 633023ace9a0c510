"""Compiled kernels by name: found in the cache, compiled by a subprocess where missing, and linked into memory.

A kernel is called "operator.variant" ("matmul.Q4_K"). Its object is kept under the cache folder in a folder whose
name is a hash of the kernels' sources, the compiler's versions and the processor: a change of any compiles anew.
"""

import ctypes
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from residency.errors import BudgetError, StoreError, UnsupportedError
from residency.hardware.host import read_host
from residency.hardware.processor import instruction_sets, processor_fields
from residency.kernels.simd.link import Image
from residency.kernels.simd.tiles import has_tiles
from residency.paths import cache_folder, child_environment
from residency.units import binary_bytes

COMPILER_BYTES = 400 * 1024**2  # of a process that compiles one kernel; the largest takes 321 MB
GROWN_COMPILER_BYTES = 1024**3  # of one that compiles many, and keeps what it knows of each
_NEEDED_INSTRUCTIONS = ("avx2", "fma", "f16c")  # as Linux names them

Progress = Callable[[int, int], None]  # kernels compiled, kernels to compile


@dataclass(frozen=True)
class Kernel:
    """A linked kernel: the address of its entry, and the names of the words it takes."""

    address: int
    words: tuple[str, ...]

    def pack(self, values: dict[str, int | float]) -> Any:
        """The kernel's words as an array of 64-bit integers. KeyError names a word that is missing."""
        block = (ctypes.c_int64 * max(1, len(self.words)))()
        for i, word in enumerate(self.words):
            if word.endswith(":f"):
                ctypes.c_double.from_buffer(block, 8 * i).value = values.pop(word[:-2])
            else:
                block[i] = int(values.pop(word))
        if values:
            raise TypeError(f"a kernel without the words {sorted(values)}; it takes {self.words}")
        return block


class Library:
    """The kernels of one process. Opening links what is in the cache and compiles the rest first."""

    def __init__(self, names: Iterable[str], progress: Progress | None = None) -> None:
        _refuse_other_machines()
        wanted = sorted(set(names))
        folder = kernel_folder()
        missing = [name for name in wanted if not all((folder / f"{name}.{end}").exists() for end in ("o", "json"))]
        if missing:
            compile_kernels(missing, folder, progress)
        manifests = [_manifest(folder / f"{name}.json") for name in wanted]
        objects = [(folder / f"{name}.o").read_bytes() for name in wanted]
        self._image = Image(objects, [manifest["symbol"] for manifest in manifests])
        self._kernels = {
            name: Kernel(address, manifest["words"])
            for name, address, manifest in zip(wanted, self._image.addresses, manifests, strict=True)
        }

    def __getitem__(self, name: str) -> Kernel:
        return self._kernels[name]

    def driver(self, name: str, num_arguments: int) -> Callable[..., None]:
        """A kernel that Python calls itself, with 64-bit integers; the call releases the GIL."""
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * num_arguments)
        function = prototype(self._kernels[name].address)
        unused = (ctypes.c_int64 * 8)()
        place = ctypes.addressof(unused)

        def call(*arguments: int) -> None:
            function(place, place, *arguments)

        call.__dict__["keeps"] = (self, unused)
        return call


def _manifest(path: Path) -> dict[str, Any]:
    """A kernel's symbol, and the words it takes as a tuple. StoreError if the file is damaged."""
    try:
        manifest = json.loads(path.read_bytes())
        return {"symbol": str(manifest["symbol"]), "words": tuple(map(str, manifest["words"]))}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"a compiled kernel in the cache is damaged ({path.name}); delete {path.parent}.") from error


def compile_kernels(names: list[str], folder: Path, progress: Progress | None = None) -> None:
    """Compile `names` into `folder`, in as many processes as there are processors; where memory is short, one kernel
    after another, each in a process of its own. StoreError if one fails, BudgetError where there is no room for one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workers = min(len(names), os.cpu_count() or 1)
    parts = [names[i::workers] for i in range(workers)]
    free_bytes = read_host().available_bytes
    if free_bytes < COMPILER_BYTES:
        raise BudgetError(
            f"compiling kernels takes {binary_bytes(COMPILER_BYTES)}, once, and {binary_bytes(free_bytes)} are free; "
            f"run residency prepare where there is more memory, with the same cache folder ({cache_folder()})."
        )
    if free_bytes >= workers * GROWN_COMPILER_BYTES:
        _follow([_compiler(folder, part) for part in parts], folder, names, progress)
        return
    for name in names:
        _follow([_compiler(folder, [name])], folder, names, progress)


def _compiler(folder: Path, names: list[str]) -> "subprocess.Popen[str]":
    environment = child_environment()
    if cpu := os.environ.get("RESIDENCY_CPU"):  # what Numba itself must compile for
        environment |= {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "residency.kernels.simd.compile", str(folder), *names]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)


def _follow(running: list["subprocess.Popen[str]"], folder: Path, names: list[str], progress: Progress | None) -> None:
    """Wait for the compilers, and tell how many of all `names` are done."""
    while any(process.poll() is None for process in running):
        if progress:
            progress(sum((folder / f"{name}.json").exists() for name in names), len(names))
        try:
            running[-1 if running[0].poll() is not None else 0].wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
    for process in running:
        _, problems = process.communicate()
        if process.returncode:
            last = (problems.strip().splitlines() or ["no message"])[-1]
            raise StoreError(f"compiling the kernels failed ({last}); check that numba works in this Python.")
    if progress:
        progress(sum((folder / f"{name}.json").exists() for name in names), len(names))


@cache
def kernel_folder() -> Path:
    """Where this machine's kernels of this version are kept; of $RESIDENCY_CPU's, where that is set."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for source in sorted([*here.glob("*/cpu*.py"), *here.glob("simd/*.py")]):
        digest.update(source.read_bytes())
    for package in ("numba", "llvmlite"):
        digest.update(_installation(package).encode())
    processor = os.environ.get("RESIDENCY_CPU") or f"{_processor()} {has_tiles()}"
    digest.update(f"{sys.version_info[:2]} {platform.machine()} {processor}".encode())
    return cache_folder() / "kernels" / digest.hexdigest()[:16]


def _refuse_other_machines() -> None:
    """UnsupportedError where kernels cannot be linked, or would need instructions that there are not."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UnsupportedError(
            f"models run on Linux on x86-64 and this is {sys.platform} on {platform.machine()}; "
            "plan and inspect work here, run does not."
        )
    known = instruction_sets()
    missing = [each for each in _NEEDED_INSTRUCTIONS if each not in known]
    if missing and known:
        raise UnsupportedError(
            f"models need a processor with {', '.join(_NEEDED_INSTRUCTIONS)} and this one lacks {', '.join(missing)}; "
            "plan and inspect work here, run does not."
        )


def _installation(package: str) -> str:
    """Changes with the package's version; reading the version itself would take 20 ms."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise StoreError(f"compiling kernels needs {package}, which is not installed; install residency anew.")
    status = Path(found.origin).with_name("_version.py").stat()
    return f"{package} {status.st_size} {status.st_mtime_ns}"


def _processor() -> str:
    """What the compiler would look at: the processor's model and instruction sets."""
    return f"{processor_fields().get('model name') or platform.processor()} {sorted(instruction_sets())}"
