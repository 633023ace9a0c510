"""Decoding in stretches, by a process of its own that waits between them, so that the machine can be measured there.

Run: `python -m residency.cli.stretches PLAN.json TOKENS`. Each line on standard input asks for one thing and
is answered with a line: "decode" for tokens per second of so many tokens, "read" for bytes per second of what streams,
where something does, into the very buffers of the steps. At the input's end a line of JSON compares memory.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import residency.cli.run  # noqa: F401  (its peak is that of a run, with all that one imports)
from residency.engine.engine import Engine
from residency.engine.planning import read_plan
from residency.errors import ResidencyError
from residency.paths import child_environment
from residency.planner import Plan
from residency.verifier.forecast import Comparison, Tolerances, compare_memory, memory_run, speed_run

READING_SECONDS = 0.4


class Stretches:
    """A process that decodes when it is asked to."""

    def __init__(self, process: "subprocess.Popen[str]", errors: IO[str]) -> None:
        self._process = process
        self._errors = errors

    def decode(self) -> float:
        """Tokens per second of one more stretch, the first of which is not counted. ResidencyError where it fails."""
        return float(self._asked("decode"))

    def read(self) -> float:
        """Bytes per second of what streams, while nothing is computed. ResidencyError where it fails."""
        return float(self._asked("read"))

    def end(self) -> tuple[Comparison, ...]:
        """Memory by class and in all, forecast and measured. ResidencyError where it fails."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return tuple(Comparison(**each) for each in json.loads(self._answer()))

    def _asked(self, what: str) -> str:
        assert self._process.stdin is not None
        try:
            print(what, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it has ended, and says why
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        self._process.wait()
        self._errors.seek(0)
        raise ResidencyError(self._errors.read().strip() or "a run of the sweep was killed.")


@contextmanager
def stretches(plan: Plan, *, tokens: int) -> Iterator[Stretches]:
    """The process that runs `plan`; it has ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="residency-") as folder, tempfile.TemporaryFile("w+") as errors:
        path = Path(folder) / "plan.json"
        path.write_text(plan.to_json(), "utf-8")
        with subprocess.Popen(
            [sys.executable, "-m", "residency.cli.stretches", str(path), str(tokens)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=child_environment(),
        ) as process:
            try:
                yield Stretches(process, errors)
            except BaseException:
                process.kill()
                raise


def main() -> None:
    """What the process does."""
    path, tokens = Path(sys.argv[1]), int(sys.argv[2])
    try:
        with Engine.open(read_plan(path)) as engine:
            for line in sys.stdin:
                reads = line.strip() == "read"
                answer = engine.read_rate(READING_SECONDS) if reads else speed_run(engine, tokens).tokens_per_second
                print(answer, flush=True)
            compared = compare_memory(memory_run(engine, tokens), Tolerances())
    except ResidencyError as error:
        sys.exit(str(error))
    print(json.dumps([vars(each) for each in compared]))


if __name__ == "__main__":
    main()
