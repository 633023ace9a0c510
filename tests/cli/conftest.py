"""A command line to call, this machine measured in a blink, and a small model as a file."""

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import residency as residency_package
from residency.cli.main import main
from residency.store.probe import ProbeCost, probe
from support.caches import cache_with_kernels
from support.command import Residency
from support.gguf_files import write_gguf
from support.models import small_model


@pytest.fixture(scope="session")
def measured_cache(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Path:
    """A cache folder in which this machine has been measured, though hardly."""
    folder = cache_with_kernels(tmp_path_factory.mktemp("cli") / "residency", session_cache / "kernels")
    quick = ProbeCost(
        fill_seconds=0.02,
        memory_seconds=0.02,
        least_buffer_bytes=1 << 20,
        most_buffer_bytes=1 << 20,
        disk_seconds=0.02,
        disk_bytes=1 << 16,  # less than a block: the machine has no disk tier
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESIDENCY_CACHE", str(folder))
        probe(
            read_kernel=lambda: lambda address, num_bytes: None,
            measure_runtime=lambda: 80 << 20,
            renew=True,
            cost=quick,
        )
    return folder


@pytest.fixture(autouse=True)
def _in_measured_cache(measured_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESIDENCY_CACHE", str(measured_cache))


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 3 layers that answers nonsense."""
    return write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("llama"))


@pytest.fixture
def residency() -> Residency:
    """Calls the command line in this process; what it raises beside SystemExit fails the test."""

    def call(*arguments: object, input: str | None = None) -> Result:
        result = CliRunner().invoke(main, [str(each) for each in arguments], input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How another process calls the command line, of these sources."""
    sources = str(Path(residency_package.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([sources, os.environ.get("PYTHONPATH", "")]))
    return [sys.executable, "-m", "residency"]
