"""The command line as a test calls it."""

from typing import Protocol

from click.testing import Result


class Residency(Protocol):
    """Runs the command line in the test's process."""

    def __call__(self, *arguments: object, input: str | None = None) -> Result: ...
