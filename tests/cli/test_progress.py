"""Bars: for work that takes longer than a moment, on a terminal, and nowhere else."""

import io
import sys
import time

import pytest

from residency.cli.progress import QUIET_SECONDS, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quick_work_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with Progress() as progress:
        progress("converting", 1, 2)
        progress("converting", 2, 2)
    assert screen.getvalue() == ""


def test_slow_work_shows_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with Progress() as progress:
        progress("converting", 1, 3)
        time.sleep(QUIET_SECONDS)
        progress("converting", 2, 3)
    assert "converting" in screen.getvalue()


def test_waiting_shows_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with Progress() as progress, progress.waiting("measuring this machine"):
        time.sleep(2 * QUIET_SECONDS)
    assert "measuring this machine" in screen.getvalue()


def test_nothing_is_shown_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    with Progress() as progress:
        progress("converting", 1, 3)
        time.sleep(QUIET_SECONDS)
        progress("converting", 2, 3)
    assert pipe.getvalue() == ""
