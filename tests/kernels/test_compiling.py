"""Kernels are compiled where there is memory for that."""

from pathlib import Path

import pytest

from residency.errors import BudgetError
from residency.kernels import library
from residency.kernels.library import compile_kernels


def test_too_little_memory_for_a_compiler_is_told_before_one_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "COMPILER_BYTES", 1 << 60)
    with pytest.raises(BudgetError, match=r"compiling kernels takes .* are free; run residency prepare where"):
        compile_kernels(["step.run"], tmp_path)


def test_where_memory_is_short_every_kernel_is_still_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "GROWN_COMPILER_BYTES", 1 << 60)
    told: list[tuple[int, int]] = []
    compile_kernels(["stream.read", "step.stamp"], tmp_path, lambda done, total: told.append((done, total)))
    assert sorted(path.name for path in tmp_path.glob("*.o")) == ["step.stamp.o", "stream.read.o"]
    assert told[-1] == (2, 2)
