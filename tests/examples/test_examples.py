"""What the documentation shows is what happens, here with a small random model in place of a real one."""

import re
import runpy
from pathlib import Path

import pytest

from support.gguf_files import write_gguf
from support.models import small_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("qwen2"), "Q8_0"))


def test_the_example_prints_measurements_beside_forecasts(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "generate.py"))["main"](model, "hello")
    printed = capsys.readouterr().out
    assert re.search(r"^\d+ tokens/s, forecast \d+$", printed, re.MULTILINE)
    assert re.search(r"^\d+ MiB at most, forecast \d+ MiB$", printed, re.MULTILINE)


def test_the_readmes_python_runs(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    exec(program.replace('"smollm2-135m"', repr(model)), {})
    assert re.search(r" \d+ \d+$", capsys.readouterr().out)
