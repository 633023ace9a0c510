"""Kernels are compiled once, kept, and linked; what is wrong is named."""

import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from residency.errors import StoreError
from residency.kernels.library import Kernel, Library, kernel_folder
from residency.kernels.simd.link import Image

COMPILED_ONCE = """
from residency.kernels.library import Library
told = []
for _ in range(2):
    Library(["stream.read"], lambda done, total: told.append((done, total)))
    print(told[-1] if told else None)
    told.clear()
"""


@pytest.fixture
def fresh_folder() -> Iterator[Callable[[], Path]]:
    """The folder of kernels as a process that has just started would name it."""

    def fresh() -> Path:
        kernel_folder.cache_clear()
        return kernel_folder()

    yield fresh
    kernel_folder.cache_clear()


@pytest.fixture(scope="module")
def compiled(session_cache: Path) -> bytes:
    """A compiled kernel's object."""
    Library(["stream.read"])
    return (kernel_folder() / "stream.read.o").read_bytes()


def python(code: str, cache: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RESIDENCY_CACHE": str(cache)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()


def test_a_kernel_is_compiled_once_with_its_progress_told(tmp_path: Path) -> None:
    assert python(COMPILED_ONCE, tmp_path) == ["(1, 1)", "None"]


def test_a_damaged_manifest_is_refused(compiled: bytes) -> None:
    path = kernel_folder() / "stream.read.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    try:
        with pytest.raises(StoreError, match=r"stream\.read\.json"):
            Library(["stream.read"])
    finally:
        path.write_bytes(whole)


def test_a_kernel_without_its_object_is_compiled_anew(compiled: bytes) -> None:
    (kernel_folder() / "stream.read.o").unlink()
    Library(["stream.read"])
    assert (kernel_folder() / "stream.read.o").exists()


def test_linking_loads_no_compiler(session_cache: Path, compiled: bytes) -> None:
    code = "import sys; from residency.kernels.library import Library; Library(['stream.read'])\n"
    code += "print(sorted({'numba', 'llvmlite', 'torch'} & set(sys.modules)))"
    assert python(code, session_cache) == ["[]"]


def test_a_kernel_that_cannot_be_compiled_is_a_store_error(session_cache: Path) -> None:
    with pytest.raises(StoreError, match=r"compiling the kernels failed \(KeyError: 'Q9_9'\)"):
        Library(["matmul.Q9_9"])


def test_a_missing_word_is_named() -> None:
    with pytest.raises(KeyError, match="rows"):
        Kernel(0, ("columns", "rows")).pack({"columns": 1})


def test_a_word_that_the_kernel_does_not_take_is_named() -> None:
    with pytest.raises(TypeError, match="'stride'"):
        Kernel(0, ("columns",)).pack({"columns": 1, "stride": 2})


def test_words_are_packed_in_the_kernel_s_order() -> None:
    assert list(Kernel(0, ("b", "a")).pack({"a": 1, "b": 2})) == [2, 1]


def test_a_word_that_is_a_float_keeps_its_bits() -> None:
    block = Kernel(0, ("epsilon:f",)).pack({"epsilon": 1e-5})
    assert ctypes.c_double.from_buffer(block).value == 1e-5


@pytest.mark.parametrize("package", ["numba", "llvmlite"])
def test_another_compiler_compiles_anew(
    package: str, fresh_folder: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fresh_folder()
    (tmp_path / "_version.py").write_text("another version")
    other = ModuleSpec(package, None, origin=str(tmp_path / "__init__.py"))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: other if name == package else found(name))
    assert fresh_folder() != before


def test_another_cache_folder_has_its_own_kernels(
    fresh_folder: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path))
    assert fresh_folder().parent == tmp_path / "kernels"


def test_a_linked_kernel_reads_what_it_is_given(compiled: bytes) -> None:
    library = Library(["stream.read"])
    source, sink = (ctypes.c_uint8 * 1024)(*([0] * 600 + [7] + [0] * 423)), (ctypes.c_int64 * 8)()
    library.driver("stream.read", 3)(ctypes.addressof(source), 1024, ctypes.addressof(sink))
    assert sink[0] == 7


@pytest.mark.parametrize("content", [b"", b"nonsense", b"MZ" * 100, b"\x7fELF\x01\x01" + bytes(100)])
def test_a_foreign_object_is_refused(content: bytes) -> None:
    with pytest.raises(StoreError, match="delete the cache folder"):
        Image([content], ["entry"])


def test_an_object_for_another_processor_is_refused(compiled: bytes) -> None:
    aarch64 = compiled[:18] + (183).to_bytes(2, "little") + compiled[20:]
    with pytest.raises(StoreError, match="is not an x86-64 object"):
        Image([aarch64], ["entry"])


@pytest.mark.parametrize("part", [0.01, 0.3, 0.9])
def test_an_object_that_lost_its_end_is_refused(compiled: bytes, part: float) -> None:
    with pytest.raises(StoreError, match="delete the cache folder"):
        Image([compiled[: int(len(compiled) * part)]], ["entry"])


def test_an_object_without_its_entry_is_refused(compiled: bytes) -> None:
    with pytest.raises(StoreError, match="delete the cache folder"):
        Image([compiled], ["nobody"])
