"""Products are the same on processors with other instructions, which kernels can be compiled for by name."""

import os
from pathlib import Path

import numpy as np
import pytest

from residency.formats import FORMATS, pack_rows
from residency.formats.tiles import tile_rows
from residency.kernels.library import Library, kernel_folder
from residency.kernels.matmul import Matrix, linear, reference
from residency.spec.state import KvName
from support.attending import attended, case, decode
from support.steps import Runner, Step

INTEGER_FORMATS = ["Q2_K", "Q3_K", "Q4_1", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"]  # codes of each kind


def flags() -> set[str]:
    text = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    return set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())


@pytest.mark.parametrize(("cpu", "needed"), [("x86-64-v3", "avx2"), ("alderlake", "avx_vnni")])
def test_products_on_another_processor_are_those_of_the_definition(
    cpu: str, needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if needed not in flags():
        pytest.skip(f"this processor has no {needed}")
    monkeypatch.setenv("RESIDENCY_CPU", cpu)
    kernel_folder.cache_clear()
    library = Library([*(f"matmul.{name}" for name in INTEGER_FORMATS), "step.run", "step.serve"])
    kernel_folder.cache_clear()
    run = Runner(library)
    rng = np.random.default_rng(5)
    for name in INTEGER_FORMATS:
        rows_RB = pack_rows(FORMATS[name], rng.standard_normal((32, 512)).astype(np.float32))
        x_TC = rng.standard_normal((5, 512)).astype(np.float32)
        step = Step(num_tokens=5)
        out_TR = step.poisoned(5, 32)
        tiles = step.given(tile_rows(FORMATS[name], rows_RB))
        linear(
            step.recorder,
            step.rows(x_TC),
            Matrix(format=FORMATS[name], rows=32, columns=512, tiles=tiles),
            out_TR,
        )
        run(step, 2)
        expected = reference.linear(x_TC, FORMATS[name], rows_RB)
        np.testing.assert_allclose(out_TR, expected, rtol=1e-4, atol=1e-4)
    run.close()


@pytest.mark.parametrize("number_format", ["INT8", "INT4"])
def test_attention_to_codes_on_another_processor_is_that_of_the_definition(
    number_format: KvName, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "avx2" not in flags():
        pytest.skip("this processor has no avx2")
    monkeypatch.setenv("RESIDENCY_CPU", "x86-64-v3")
    kernel_folder.cache_clear()
    library = Library([f"attention.attend_{number_format}", "attention.combine", "step.run", "step.serve"])
    kernel_folder.cache_clear()
    run = Runner(library)
    made = case(3, 2, 64, *decode(150, 20), number_format=number_format)
    np.testing.assert_allclose(attended(run, made, 2, splits=2).values, made.expected_TX, rtol=0, atol=3e-4)
    run.close()
