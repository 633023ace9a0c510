"""Routes from a file: what a file may hold, and that measured hit rates are the simulated ones."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from residency.errors import FileError, UsageError
from residency.models.specs import model_spec
from residency.spec import ModelSpec, open_checkpoint
from residency.verifier.expert_trace import read_trace, trace_speed
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.machines import machine_with_disk
from support.models import small_model
from support.streams import paged_plan


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers of six experts, two a token."""
    return write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("mixtral"), "Q4_K")


@pytest.fixture(scope="module")
def spec(path: Path) -> ModelSpec:
    return model_spec(open_checkpoint(path))


def skewed(steps: int) -> npt.NDArray[np.uint8]:
    drawn = np.log(np.arange(1.0, 7)[::-1] ** 1.5) + np.random.default_rng(0).gumbel(size=(steps, 3, 6))
    return np.argsort(-drawn, axis=2)[:, :, :2].astype(np.uint8)


def saved(folder: Path, trace: npt.NDArray[np.generic]) -> Path:
    np.save(folder / "routes.npy", trace)
    return folder / "routes.npy"


def test_measured_hits_are_those_of_the_simulation(path: Path, spec: ModelSpec) -> None:
    found = trace_speed(paged_plan(path, slots=7), spec, machine_with_disk(), skewed(120), None)
    assert found.hit_rate == pytest.approx(found.forecast.frequent, abs=0.03)


def test_a_trace_is_read_as_it_was_saved(spec: ModelSpec, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_trace(saved(tmp_path, skewed(20)), spec), skewed(20))


@pytest.mark.parametrize(
    "trace",
    [np.zeros((20, 2, 2), np.uint8), np.zeros((20, 3, 2)), np.zeros((3, 3, 2), int)],
    ids=["layers", "floats", "short"],
)
def test_a_trace_of_another_shape_is_refused(spec: ModelSpec, tmp_path: Path, trace: npt.NDArray[np.generic]) -> None:
    with pytest.raises(UsageError, match="mixture layers, experts of a token"):
        read_trace(saved(tmp_path, trace), spec)


def test_an_expert_that_there_is_not_is_refused(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names an expert"):
        read_trace(saved(tmp_path, np.full((20, 3, 2), 6, np.uint8)), spec)


def test_a_file_that_is_no_array_is_refused(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "routes.npy").write_bytes(b"\x80\x04pickled")
    with pytest.raises(FileError, match="could not be read"):
        read_trace(tmp_path / "routes.npy", spec)


def test_a_plan_that_holds_all_experts_is_refused(path: Path, spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match="all experts fit"):
        trace_speed(plan_of(path), spec, machine_with_disk(), skewed(20), None)
