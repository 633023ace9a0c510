"""Plans weigh formats by what was measured on the model itself, where something was."""

from pathlib import Path

import pytest

from residency.models.specs import named_spec
from residency.planner.quality import WEIGHT_LOSSES, MeasuredLoss, keep_loss, loss_of, measured_losses
from support.deployments import told

MEASURED = MeasuredLoss(label="q4_k_m", part=0.2, tokens=510, text="mine.txt")


def test_another_models_figure_is_taken_where_nothing_was_measured() -> None:
    assert loss_of("Q4_K_M", "F16", measured_losses(MODEL)) == WEIGHT_LOSSES["q4_k_m"].part


def test_what_was_measured_is_found_again() -> None:
    keep_loss(MODEL, MEASURED)
    assert loss_of("Q4_K_M", "F16", measured_losses(MODEL)) == 0.2


def test_it_counts_for_the_same_model_alone() -> None:
    keep_loss(MODEL, MEASURED)
    assert "q4_k_m" not in measured_losses(named_spec("meta-llama/Llama-3.2-3B"))


def test_a_later_measurement_replaces_an_earlier() -> None:
    keep_loss(MODEL, MEASURED)
    keep_loss(MODEL, MeasuredLoss(label="q4_k_m", part=0.1, tokens=510, text="mine.txt"))
    assert measured_losses(MODEL)["q4_k_m"].part == 0.1


@pytest.mark.parametrize(("label", "engine", "option"), [("awq", None, "awq"), ("q5_0", "llama.cpp", "Q5_0")])
def test_a_format_that_was_measured_is_offered_with_its_figure(label: str, engine: str | None, option: str) -> None:
    keep_loss(MODEL, MeasuredLoss(label=label, part=0.012, tokens=510, text="mine.txt"))
    rises = {each.option: each.perplexity_rise for each in told("meta-llama/Llama-3.2-1B", "L4", engine=engine).changes}
    assert rises[f"--quant {option}"] == 0.012


def test_a_plan_says_whose_figure_it_has() -> None:
    keep_loss(MODEL, MEASURED)
    found = told("meta-llama/Llama-3.2-1B", "L4", engine="llama.cpp", quant="q4_k_m")
    assert "510 tokens of mine.txt" in found.origins["perplexity_rise"].how


def test_a_damaged_file_is_as_none(own_cache: Path) -> None:
    keep_loss(MODEL, MEASURED)
    (kept,) = (own_cache / "quality").iterdir()
    kept.write_text("[{")
    assert measured_losses(MODEL) == {}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path))
    return tmp_path


MODEL = named_spec("meta-llama/Llama-3.2-1B")
