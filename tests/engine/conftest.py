"""An engine on a small model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from residency.engine.engine import Engine
from support.engines import plan_of
from support.gguf_files import write_gguf
from support.models import small_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3 with a byte tokenizer."""
    return write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("qwen3"), "Q8_0")


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    """The small model with a context of 128 tokens, in chunks of 32."""
    with Engine.open(plan_of(path, context_tokens=128, chunk_tokens=32)) as opened:
        yield opened
