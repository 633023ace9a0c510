"""The Python API: what `import residency` gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import residency
from support.gguf_files import write_gguf
from support.machines import unmeasured_machine
from support.models import small_model


def test_importing_loads_nothing_else() -> None:
    script = "import sys, residency; print('numpy' in sys.modules, 'residency.engine' in sys.modules)"
    sources = str(Path(residency.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": sources}, capture_output=True, text=True
    )
    assert result.stdout == "False False\n"


@pytest.mark.parametrize("name", residency.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(residency, name) is not None


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="'colour'"):
        residency.colour  # noqa: B018


def test_a_model_is_planned_opened_and_answers(plan: residency.Plan) -> None:
    with residency.Engine.open(plan) as engine:
        assert engine.generate("hello", max_tokens=5).completion_tokens in range(1, 6)


def test_a_stream_gives_the_text_of_its_report(plan: residency.Plan) -> None:
    with residency.Engine.open(plan) as engine:
        stream = engine.stream("hello", max_tokens=5)
        assert "".join(stream) == stream.report.text


def test_equal_seeds_give_equal_text(plan: residency.Plan) -> None:
    sampling = residency.Sampling(temperature=1.0, seed=3)
    with residency.Engine.open(plan) as engine:
        texts = {engine.generate("hello", max_tokens=5, sampling=sampling).text for _ in range(2)}
    assert len(texts) == 1


def test_what_does_not_fit_is_a_residency_error(model_path: Path) -> None:
    with pytest.raises(residency.ResidencyError, match="The cheapest change"):
        residency.plan(model_path, memory="10MiB", machine=unmeasured_machine())


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("llama"))


@pytest.fixture
def plan(model_path: Path) -> residency.Plan:
    return residency.plan(model_path, memory="300MiB", context=128, machine=unmeasured_machine())
