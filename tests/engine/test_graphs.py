"""Recorded steps: what the host does in the middle of one comes between the graphs that it was recorded between."""

from collections.abc import Callable

import pytest

from residency.engine.cuda.graphs import StepGraph
from residency.kernels.device import Between

told: list[str] = []


class Graph:
    """A CUDA graph that tells what is done with it."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self._name = f"graph {self.made}"

    def capture_begin(self, pool: object) -> None:
        """What is started now is recorded."""
        told.append(f"{self._name} begins in {pool}")

    def capture_end(self) -> None:
        """And now no more."""
        told.append(f"{self._name} ends")

    def replay(self) -> None:
        """What was recorded is started."""
        told.append(f"{self._name} again")


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr(Graph, "made", 0)
    told.clear()


def saying(what: str) -> Callable[[], None]:
    return lambda: told.append(what)


def run(between: Between) -> None:
    told.append("kernels")
    between(saying("the host"))
    told.append("more kernels")


def test_a_step_is_cut_where_the_host_takes_part() -> None:
    StepGraph(run, "a pool")
    assert told == [
        "graph 1 begins in a pool", "kernels", "graph 1 ends",
        "graph 2 begins in a pool", "more kernels", "graph 2 ends",
    ]  # fmt: skip


def test_the_host_does_its_part_in_every_replay() -> None:
    step = StepGraph(run, "a pool")
    told.clear()
    step.replay()
    step.replay()
    assert told == ["graph 1 again", "the host", "graph 2 again"] * 2


def test_a_step_that_needs_no_host_is_one_graph() -> None:
    step = StepGraph(lambda between: None, "a pool")
    told.clear()
    step.replay()
    assert told == ["graph 1 again"]


def test_a_recording_that_fails_is_ended() -> None:
    def fails(between: Between) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        StepGraph(fails, "a pool")
    assert told[-1] == "graph 1 ends"
