"""--device cuda: without a device one sentence that says what to do, and a device's figures in words."""

from pathlib import Path

import pytest
import torch

from residency.cli.probe import device_in_words
from residency.store.device_rate import DeviceFigures
from support.command import Residency

FIGURES = DeviceFigures(
    name="a GPU",
    total_bytes=80 << 30,
    multiprocessors=132,
    runtime_bytes=600 << 20,
    copy_bytes_per_second=3.0e12,
    bf16_operations_per_second=7.5e14,
    int8_operations_per_second=1.4e15,
    pinned_to_device=5.5e10,
    pinned_from_device=5.4e10,
    pageable_to_device=1.2e10,
    pageable_from_device=1.1e10,
    measured_unix_seconds=1,
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("verb", ["run", "plan", "serve", "probe"])
def test_without_a_device_one_sentence_says_so(residency: Residency, model_path: Path, verb: str) -> None:
    words = {"run": (model_path, "hi"), "plan": (model_path,), "serve": (model_path,), "probe": ()}[verb]
    refused = residency(verb, *words, "--device", "cuda")
    assert refused.exit_code == 2 and refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert "no CUDA device" in line and "--device cpu" in line


def test_formats_of_a_device_s_cache_are_refused_on_the_processor(residency: Residency, model_path: Path) -> None:
    refused = residency("run", model_path, "hi", "--kv", "fp8")
    assert refused.exit_code == 2 and "--device cuda" in refused.stderr


def test_a_device_s_figures_are_told_in_words() -> None:
    told = device_in_words(FIGURES)
    assert "132 multiprocessors" in told and "3.00 TB/s" in told and "55.0 GB/s" in told


def test_a_device_s_figures_make_a_device_to_plan_with() -> None:
    device = FIGURES.device()
    assert (device.usable_bytes, device.memory_bytes_per_second) == (80 << 30, 3.0e12)
    assert device.figure("matrix_efficiency") == 1.0 and device.figures["matrix_efficiency"].origin == "measured"
