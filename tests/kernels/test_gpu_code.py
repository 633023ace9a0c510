"""The device's kernels compile for an H100, keep to its registers, and use what they are written for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import support.device  # noqa: F401 - before Triton, which decides when it is imported whether it interprets

pytest.importorskip("triton.backends.nvidia")
pytestmark = pytest.mark.slow

TILED = ("_multiply_tiles", "multiply_tiles_of_experts", "_attend_prompts")
FEW = ("_multiply_few", "multiply_few_of_experts")
MOST_SHARED_BYTES = 227 * 1024  # of one block on an H100 (CUDA C++ Programming Guide, compute capability 9.0)


@pytest.fixture(scope="module")
def kernels() -> list[dict[str, Any]]:
    """What every kernel takes."""
    here = Path(__file__).parents[1]
    paths = [str(here), str(here.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": "0"}
    finished = subprocess.run(
        [sys.executable, "-m", "support.hopper"], capture_output=True, text=True, env=environment, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


def test_no_kernel_spills_registers(kernels: list[dict[str, Any]]) -> None:
    assert [each for each in kernels if each["stack"] or each["LDL"] or each["STL"]] == []


def test_kernels_fit_into_shared_memory(kernels: list[dict[str, Any]]) -> None:
    assert max(each["shared"] for each in kernels) <= MOST_SHARED_BYTES


def test_tiles_and_prompts_go_through_a_warpgroup_s_tensor_cores(kernels: list[dict[str, Any]]) -> None:
    tiled = [each for each in kernels if each["kernel"] in TILED]
    assert tiled and all(each["HGMMA"] for each in tiled)


def test_few_rows_are_multiplied_from_reads_of_sixteen_bytes(kernels: list[dict[str, Any]]) -> None:
    few = [each for each in kernels if each["kernel"] in FEW]
    assert few and all(each["LDG.E.128"] for each in few)
