"""A device's figures are measured once, and kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from residency.store import device_rate
from residency.store.device_rate import DeviceFigures, device_figures
from support.device import DEVICE_FIGURES


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[DeviceFigures]:
    """What has been measured of a device, each time with another overhead of its context."""
    done: list[DeviceFigures] = []

    def measure() -> DeviceFigures:
        done.append(replace(DEVICE_FIGURES, runtime_bytes=DEVICE_FIGURES.runtime_bytes + len(done)))
        return done[-1]

    monkeypatch.setenv("RESIDENCY_CACHE", str(tmp_path))
    monkeypatch.setattr(device_rate, "require_cuda", lambda: DEVICE_FIGURES.name)
    monkeypatch.setattr(device_rate, "measure", measure)
    return done


def test_a_device_is_measured_once(measured: list[DeviceFigures]) -> None:
    assert device_figures() == device_figures() == DEVICE_FIGURES
    assert len(measured) == 1


def test_a_device_is_measured_again_when_somebody_asks(measured: list[DeviceFigures]) -> None:
    first, again = device_figures(), device_figures(renew=True)
    assert again.runtime_bytes == first.runtime_bytes + 1 and device_figures() == again


def test_figures_of_another_device_are_not_believed(
    measured: list[DeviceFigures], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device_figures()
    (kept,) = tmp_path.glob("device-*.json")
    kept.write_text(kept.read_text().replace("a GPU", "another"))
    device_figures()
    assert len(measured) == 2
