"""The kernels, linked once for all tests here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.steps import Runner


@pytest.fixture(scope="session")
def run(session_cache: Path) -> Iterator[Runner]:
    """Runs a step on so many threads."""
    runner = Runner()
    yield runner
    runner.close()
