"""A server on a small random model, and the official client that talks to it."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from support.engines import plan_of
from support.gguf_files import write_gguf
from support.models import small_model
from support.servers import Running, running_server


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3 with a byte tokenizer."""
    return write_gguf(tmp_path_factory.mktemp("models") / "small.gguf", small_model("qwen3"), "Q8_0")


@pytest.fixture(scope="session")
def server(small_gguf: Path) -> Iterator[Running]:
    """Four sequences with a context of 256 tokens."""
    plan = plan_of(small_gguf, context_tokens=256, chunk_tokens=64, max_sequences=4)
    with running_server(plan) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[openai.OpenAI]:
    """Talks to the server."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened
