"""The processor that kernels are compiled for: this one, or one named by $RESIDENCY_CPU, to try what others run."""

import os

import llvmlite.binding as llvm

from residency.errors import UsageError

# LLVM's names, with what decides between instructions here. All have AVX2, FMA and F16C, without which nothing runs.
NAMED = {
    "x86-64-v3": frozenset({"avx2"}),
    "x86-64-v4": frozenset({"avx2"}),
    "alderlake": frozenset({"avx2", "avxvnni"}),
}


def cpu_name() -> str:
    """LLVM's name of the processor."""
    chosen = os.environ.get("RESIDENCY_CPU")
    if chosen and chosen not in NAMED:
        raise UsageError(f"RESIDENCY_CPU={chosen} is not a processor to compile for; there are {', '.join(NAMED)}.")
    return chosen or str(llvm.get_host_cpu_name())


def cpu_features() -> str:
    """LLVM's list of features beside those that the name implies."""
    return "" if os.environ.get("RESIDENCY_CPU") else str(llvm.get_host_cpu_features().flatten())


def has(feature: str) -> bool:
    """Whether the processor has an instruction set, by LLVM's name of it."""
    chosen = os.environ.get("RESIDENCY_CPU")
    return feature in NAMED[cpu_name()] if chosen else bool(llvm.get_host_cpu_features().get(feature))
