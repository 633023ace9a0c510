"""Compile kernels with Numba into native objects.

Run in a process of its own: `python -m residency.kernels.simd.compile`.

A kernel is a Python function whose parameters are addresses and integers (float64 where annotated `float`),
the last two being `thread` and `threads`. Its parameters come to it as a block of 64-bit words; the entry point
that unpacks them is written here, so that every kernel has the one native signature (words, thread, threads).
"""

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from numba import njit, types

from residency.kernels.simd.language import load_f64, load_i64
from residency.kernels.simd.target import cpu_features, cpu_name

FLAGS = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def entry_of(function: Callable[..., None]) -> tuple[Callable[..., None], list[str]]:
    """The function that unpacks a kernel's words and calls it, and the words' names (ending in ":f" for floats)."""
    parameters = list(inspect.signature(function).parameters.values())[:-2]
    words = [p.name + (":f" if p.annotation is float else "") for p in parameters]
    loads = [f"load_{'f64' if w.endswith(':f') else 'i64'}(words + {8 * i})" for i, w in enumerate(words)]
    scope: dict[str, Any] = {"body": njit(**FLAGS)(function), "load_i64": load_i64, "load_f64": load_f64}
    exec(f"def entry(words, thread, threads):\n    body({', '.join([*loads, 'thread', 'threads'])})\n", scope)
    return scope["entry"], words


def native_object(function: Callable[..., None], num_arguments: int) -> tuple[bytes, str]:
    """A relocatable object of `function`, which takes 64-bit integers, and the symbol of its entry."""
    signature = types.void(*[types.int64] * num_arguments)
    compiled = njit(signature, **FLAGS)(function).overloads[signature.args]
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu_name(),
        features=cpu_features(),
        opt=3,
        reloc="pic",
        codemodel="small",
    )
    module = compiled.library._final_module
    return target.emit_object(module), compiled.fndesc.llvm_func_name


def compile_kernel(name: str, folder: Path) -> None:
    """Compile the kernel called "operator.variant" (KERNELS["variant"] of the operator's cpu.py) into `folder`.

    Leaves NAME.o and NAME.json, each written whole or not at all.
    """
    operator, variant = name.split(".")
    kernel = importlib.import_module(f"residency.kernels.{operator}.cpu").KERNELS[variant]
    if getattr(kernel, "is_driver", False):
        words: list[str] = []
        code, symbol = native_object(kernel, len(inspect.signature(kernel).parameters))
    else:
        entry, words = entry_of(kernel)
        code, symbol = native_object(entry, 3)
    _write_whole(folder / f"{name}.o", code)
    _write_whole(folder / f"{name}.json", json.dumps({"symbol": symbol, "words": words}).encode())


def _write_whole(path: Path, content: bytes) -> None:
    scratch = path.with_suffix(f"{path.suffix}.{os.getpid()}")
    scratch.write_bytes(content)
    scratch.replace(path)


def main() -> None:
    """Compile the kernels named on the command line into the folder named first; print each when done."""
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        compile_kernel(name, folder)
        print(name, flush=True)


if __name__ == "__main__":
    main()
