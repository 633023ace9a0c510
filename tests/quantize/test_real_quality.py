"""On a real model the methods come in the order that their papers report, by far."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from residency.cli.main import main
from support.real_models import real_model, wikitext

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("bits", ["int4", "int3"])
def test_gptq_and_awq_lose_at_most_three_fifths_of_what_rounding_loses(bits: str, tmp_path: Path) -> None:
    rounded = divergence(bits, "rtn", tmp_path)
    assert divergence(bits, "gptq", tmp_path) <= 0.6 * rounded
    assert divergence(bits, "awq", tmp_path) <= 0.6 * rounded


def test_eight_bits_are_within_half_a_percent_of_the_perplexity(tmp_path: Path) -> None:
    data = quantized(tmp_path / "int8", "--to", "int8")
    assert data["perplexity"]["value"] == pytest.approx(data["reference_perplexity"]["value"], rel=0.005)


def divergence(bits: str, method: str, folder: Path) -> float:
    calibration = wikitext().with_name("valid-tokenized.txt")
    options = ("--to", bits, "--method", method, "--layout", "gptq", "--calibration", calibration)
    return float(quantized(folder / f"{bits}-{method}", *options)["kl_divergence"]["mean"])


def quantized(out: Path, *options: object) -> dict[str, Any]:
    arguments = ["quantize", real_model("smollm2-135m"), "-o", out, "--text", wikitext(), "--chunks", 8, "--json"]
    result = CliRunner().invoke(main, [str(each) for each in (*arguments, *options)])
    assert result.exit_code == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return data
