"""On real models the methods come in the order that their papers report, by far."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from residency.cli.main import main
from support.real_models import real_model, wikitext

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module", params=["int4", "int3"])
def bits(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def rounded(bits: str, tmp_path_factory: pytest.TempPathFactory) -> float:
    return divergence(bits, "rtn", tmp_path_factory.mktemp(bits))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_methods_lose_at_most_three_fifths_of_what_rounding_loses(
    bits: str, method: str, rounded: float, tmp_path: Path
) -> None:
    assert divergence(bits, method, tmp_path) <= 0.6 * rounded


@pytest.mark.parametrize("model", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_eight_bits_are_within_half_a_percent_of_the_perplexity(model: str, tmp_path: Path) -> None:
    data = quantized(model, tmp_path, "--to", "int8")
    assert data["perplexity"]["value"] == pytest.approx(data["reference_perplexity"]["value"], rel=0.005)


def divergence(bits: str, method: str, folder: Path) -> float:
    options = ["--to", bits, "--method", method, "--layout", "gptq"]
    if method != "rtn":
        options += ["--calibration", str(wikitext().with_name("valid-tokenized.txt"))]
    return float(quantized("smollm2-135m", folder, *options)["kl_divergence"]["mean"])


def quantized(model: str, folder: Path, *options: str) -> dict[str, Any]:
    arguments = ["quantize", str(real_model(model)), "-o", str(folder / "out"), "--text", str(wikitext()), "--json"]
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exit_code == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return data
