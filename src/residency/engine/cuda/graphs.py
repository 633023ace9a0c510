"""Steps of sampled tokens, recorded once for each batch size as CUDA graphs and replayed afterwards.

Replaying costs the host one call where launching costs one for each of some hundred kernels. All arrays are the plan's,
so a graph takes no memory of its own beside its nodes. A step is one graph, or, where the host brings experts from the
disk in the middle of it, one up to there and one from there on. Prompts, of any length, are launched kernel by kernel.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch

from residency.engine.cuda.inputs import PADDING
from residency.kernels.device import Between, StepShape, at_once
from residency.store.device import DeviceArena

_WARM_UPS = 2  # the first compiles kernels and lets the library choose its own; neither may happen in a recording


class StepGraph:
    """One step: graphs, and what the host does after each but the last."""

    def __init__(self, run: Callable[[Between], None], pool: Any) -> None:
        """Record what `run` starts on the current stream. What it does between is put off to each replay."""
        self._pool = pool
        self._graphs: list[Any] = []
        self._actions: list[Callable[[], None]] = []
        self._begin()
        try:
            run(self._cut)
        finally:
            self._graphs[-1].capture_end()

    def replay(self) -> None:
        """Start the step on the current stream; returns when its last graph has been started."""
        for graph, action in zip_longest(self._graphs, self._actions):
            graph.replay()
            if action is not None:
                action()

    def _begin(self) -> None:
        self._graphs.append(torch.cuda.CUDAGraph())
        self._graphs[-1].capture_begin(pool=self._pool)

    def _cut(self, action: Callable[[], None]) -> None:
        self._graphs[-1].capture_end()
        self._actions.append(action)
        self._begin()


class StepGraphs:
    """Runs steps, those that have been recorded from their recording."""

    def __init__(
        self, run: Callable[[StepShape, Between], None], batch_sizes: Sequence[int], *, captures: bool
    ) -> None:
        self._run = run
        self._batch_sizes = tuple(batch_sizes) if captures else ()
        self._graphs: dict[int, StepGraph] = {}

    def prepare(self, arena: DeviceArena) -> None:
        """Record a step of each batch size, the largest first, so that all share its pool. No page is written."""
        if not self._batch_sizes:
            return
        with arena.uploading():
            for name in ("positions", "slots"):
                arena.inputs[name].fill(PADDING)
            for name in ("token_ids", "logit_rows", "block_tables"):
                arena.inputs[name].fill(0)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())  # on which inputs and weights are still on their way
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(stream):
            for size in sorted(self._batch_sizes, reverse=True):
                self._graphs[size] = self._recorded(size, pool)
        torch.cuda.synchronize()

    def _recorded(self, size: int, pool: Any) -> StepGraph:
        shape = StepShape(tokens=size, sampled=size, logits=size, items=0)
        for _ in range(_WARM_UPS):
            self._run(shape, at_once)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what is left goes to the pool
        return StepGraph(lambda between: self._run(shape, between), pool)

    def run(self, shape: StepShape) -> None:
        """Start a step; what it writes is there for whatever is started after it."""
        graph = self._graphs.get(shape.tokens) if shape.items == 0 and shape.sampled == shape.logits else None
        if graph is None:
            self._run(shape, at_once)
        else:
            graph.replay()
