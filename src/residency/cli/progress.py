"""Progress on stderr: a bar for work that takes longer than a moment, nothing where nobody looks at a terminal."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from residency.store.fetch import Progress as Stage

QUIET_SECONDS = 0.3  # work that is done by then shows nothing


class Progress:
    """One bar at a time, by the name of what is being done. Call it as the engine does; close it with `with`."""

    def __init__(self) -> None:
        self._visible = sys.stderr is not None and sys.stderr.isatty()
        self._what: str | None = None
        self._started = 0.0
        self._bars: Any = None  # rich.progress.Progress while one is shown
        self._task: Any = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` units of `what`; a total of 0 is not known."""
        if not self._visible:
            return
        if what != self._what:
            self.close()
            self._what, self._started = what, time.monotonic()
        if self._bars is None:
            if time.monotonic() - self._started < QUIET_SECONDS or 0 < total <= done:
                return
            self._show(what, total)
        self._bars.update(self._task, completed=done, total=total or None)

    def stage(self, what: str) -> Stage:
        """The function that reports how far `what` is."""

        def report(done_bytes: int, total_bytes: int) -> None:
            self(what, done_bytes, total_bytes)

        return report

    def say(self, sentence: str) -> None:
        """A sentence on stderr, above the bar."""
        self.close()
        print(f"residency: {sentence}", file=sys.stderr)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Work that cannot say how far it is: a bar that only moves."""
        if not self._visible:
            yield
            return
        ended = threading.Event()
        self(what, 0, 0)

        def show() -> None:
            if not ended.wait(QUIET_SECONDS):
                self(what, 0, 0)

        shower = threading.Thread(target=show, daemon=True)
        shower.start()
        try:
            yield
        finally:
            ended.set()
            shower.join()
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._what = None

    def _show(self, what: str, total: int) -> None:
        from rich.console import Console  # imported here: most runs show no bar
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bars.add_task(what, total=total or None)
        self._bars.start()
