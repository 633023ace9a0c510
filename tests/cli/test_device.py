"""--device cuda: without a device one sentence that says what to do, and a device's figures in words."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from residency.cli.probe import device_in_words
from support.command import Residency
from support.device import DEVICE, DEVICE_FIGURES, HAS_GPU
from support.gguf_files import write_gguf
from support.models import small_model


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("verb", ["run", "plan", "serve", "probe", "bench", "verify", "evaluate"])
def test_without_a_device_one_sentence_says_so(residency: Residency, model_path: Path, verb: str) -> None:
    more = {"run": ["hi"], "evaluate": ["--text", __file__]}.get(verb, [])
    refused = residency(verb, *([] if verb == "probe" else [model_path, *more]), "--device", "cuda")
    assert refused.exit_code == 2 and refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert "no CUDA device" in line and "--device cpu" in line


def test_formats_of_a_device_s_cache_are_refused_on_the_processor(residency: Residency, model_path: Path) -> None:
    refused = residency("run", model_path, "hi", "--kv", "fp8")
    assert refused.exit_code == 2 and "--device cuda" in refused.stderr


def test_a_device_s_figures_are_told_in_words() -> None:
    told = device_in_words(DEVICE_FIGURES)
    assert "132 multiprocessors" in told and "3.00 TB/s" in told and "55.0 GB/s" in told


def test_a_device_s_figures_make_a_device_to_plan_with() -> None:
    device = DEVICE_FIGURES.device()
    assert (device.usable_bytes, device.memory_bytes_per_second) == (80 << 30, 3.0e12)
    assert device.figure("matrix_efficiency") == 1.0 and device.figures["matrix_efficiency"].origin == "measured"


BRIEFLY = ("--prompt", 8, "--context", 4, "--batch", 2, "--decode-tokens", 1, "--repeat", 1)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device: the one that is here, or Triton's interpreter as if it were a GPU."""
    from residency.engine.cuda.executor import CudaExecutor

    if not HAS_GPU:
        monkeypatch.setattr("residency.engine.device.this_device", lambda renew=False: DEVICE_FIGURES)
        monkeypatch.setattr("residency.engine.cuda.executor.CudaExecutor", partial(CudaExecutor, device=DEVICE))


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of one layer, narrow: the interpreter is slow."""
    model = small_model("llama", hidden=64, intermediate=64, num_layers=1, head_dim=16)
    return write_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", model)


@pytest.mark.usefixtures("device")
def test_a_run_on_a_device_reports_what_it_took(residency: Residency, tiny_path: Path) -> None:
    told = residency("run", tiny_path, "hi", "--device", "cuda", "--context", 32, "--max-tokens", 2, "--json")
    memory = json.loads(told.stdout)["memory_bytes"]
    assert memory["measured"]["weights"] == memory["forecast"]["weights"] > 0


@pytest.mark.usefixtures("device")
def test_verify_holds_a_device_s_memory_against_its_forecast(residency: Residency, tiny_path: Path) -> None:
    told = residency("verify", tiny_path, "--device", "cuda", "--context", 32, "--answer-tokens", 2, "--json")
    compared = {each["name"]: each for each in json.loads(told.stdout)["comparisons"]}
    assert compared["weights"]["difference"] == compared["kv_cache"]["difference"] == 0
    assert 0 <= compared["activations"]["difference"] < 256 * 24  # arrays begin at multiples of 256 bytes


@pytest.mark.usefixtures("device")
def test_bench_measures_a_device_beside_its_forecast(residency: Residency, tiny_path: Path) -> None:
    """With weights that are made up, which it says."""
    told = residency("bench", tiny_path, "--device", "cuda", "--random-weights", "int4", *BRIEFLY, "--json")
    measured = json.loads(told.stdout)
    assert measured["made_up"] and "no meaning" in told.stderr
    speeds = measured["speeds"]
    assert [each["kind"] for each in speeds] == ["prefill", "decode", "decode"]
    assert all(each["tokens_per_second"]["forecast"] > 0 for each in speeds)


@pytest.mark.usefixtures("device")
def test_a_device_gives_a_text_the_perplexity_that_the_processor_gives_it(
    residency: Residency, tiny_path: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the tide rises and falls twice a day " * 3)
    words = ("evaluate", tiny_path, "--text", text, "--context", 32, "--chunks", 1, "--kv", "F32", "--json")
    device, processor = (
        json.loads(residency(*words, *more).stdout)["perplexity"]["value"] for more in (("--device", "cuda"), ())
    )
    assert device == pytest.approx(processor, rel=0.02)  # activations in bfloat16


@pytest.mark.usefixtures("device")
def test_made_up_weights_are_said_to_mean_nothing(residency: Residency, tiny_path: Path) -> None:
    made_up = ("--device", "cuda", "--random-weights", "int4")
    ran = residency("run", tiny_path, "hi", *made_up, "--context", 32, "--max-tokens", 1)
    assert "no meaning" in ran.stdout


def test_made_up_weights_are_a_device_s(residency: Residency, model_path: Path) -> None:
    refused = residency("run", model_path, "hi", "--random-weights", "int4")
    assert refused.exit_code == 2 and "--device cuda" in refused.stderr
