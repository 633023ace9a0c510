"""What `residency evaluate` prints."""

import json
from pathlib import Path

import pytest

from support.command import Residency
from support.gguf_files import write_gguf
from support.models import small_model


def test_a_model_alone_has_a_perplexity(residency: Residency, model_path: Path, text: Path) -> None:
    data = json.loads(residency("evaluate", model_path, "--text", text, "--chunks", 1, "--json").stdout)
    assert set(data["perplexity"]) == {"value", "error", "chunks"} and "kl_divergence" not in data


def test_a_format_of_fewer_bits_diverges_from_its_source(residency: Residency, text: Path, tmp_path: Path) -> None:
    paths = {name: write_gguf(tmp_path / f"{name}.gguf", small_model("llama"), name) for name in ("F32", "Q4_0")}
    printed = residency(
        "evaluate", paths["Q4_0"], "--text", text, "--against", paths["F32"], "--chunks", 2, "--json"
    ).stdout
    data = json.loads(printed)
    assert 0 < data["kl_divergence"]["mean"] < data["kl_divergence"]["p99"]
    assert 0 < data["top1_agreement"] < 1 and len(data["by_chunk"]) == 2


def test_against_itself_in_exact_keys_and_values_nothing_diverges(
    residency: Residency, model_path: Path, text: Path
) -> None:
    options = ("--text", text, "--against", model_path, "--chunks", 1, "--kv", "F32", "--json")
    assert json.loads(residency("evaluate", model_path, *options).stdout)["kl_divergence"]["mean"] == 0


def test_chunks_are_as_long_as_the_context(residency: Residency, model_path: Path, text: Path) -> None:
    options = ("--text", text, "--context", 128, "--json")
    found = json.loads(residency("evaluate", model_path, *options).stdout)["perplexity"]["chunks"]
    assert (
        found
        > 4 * json.loads(residency("evaluate", model_path, *options, "--context", 512).stdout)["perplexity"]["chunks"]
        - 1
    )


def test_people_see_an_interval(residency: Residency, model_path: Path, text: Path) -> None:
    first, *_ = residency("evaluate", model_path, "--text", text, "--chunks", 1).stdout.splitlines()
    assert first.startswith("perplexity") and "±" in first


def test_a_reference_with_another_vocabulary_is_refused(residency: Residency, model_path: Path, text: Path) -> None:
    other = write_gguf(text.with_name("other.gguf"), small_model("llama", vocabulary=352), "F32")
    result = residency("evaluate", model_path, "--text", text, "--against", other)
    assert result.exit_code == 2 and "same vocabulary" in result.stderr


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the other one in the garden " * 150)
    return path
