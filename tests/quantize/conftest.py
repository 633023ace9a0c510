"""A small model's folder and matrices that are like a model's: few columns with strong inputs."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from support.folders import write_folder
from support.models import small_model

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("source") / "small", small_model("llama", num_layers=2))


@pytest.fixture
def weights() -> Floats:
    return np.random.default_rng(1).standard_normal((48, 160)).astype(np.float32)


@pytest.fixture
def inputs() -> Floats:
    """Correlated, and some channels much stronger than others."""
    rng = np.random.default_rng(2)
    mixed = rng.standard_normal((600, 160)) @ (np.eye(160) + 0.15 * rng.standard_normal((160, 160)))
    return (mixed * np.exp(rng.standard_normal(160))).astype(np.float32)
