"""What users see of residency's own faults."""

from pathlib import Path

import pytest

import residency.cli.plan
from support.command import Residency


@pytest.fixture(autouse=True)
def _broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(*arguments: object, **options: object) -> None:
        raise KeyError("a fault\nof ours")

    monkeypatch.setattr(residency.cli.plan, "local_plan", planned)


def test_a_fault_is_one_sentence(residency: Residency, model_path: Path) -> None:
    result = residency("plan", model_path)
    assert result.stderr.count("\n") == 1 and "RESIDENCY_DEBUG=1" in result.stderr


def test_a_fault_has_its_own_exit_code(residency: Residency, model_path: Path) -> None:
    assert residency("plan", model_path).exit_code == 70


def test_a_fault_shows_its_traceback_on_demand(
    residency: Residency, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESIDENCY_DEBUG", "1")
    assert "Traceback" in residency("plan", model_path).stderr
