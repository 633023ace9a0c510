"""Steps of sampled tokens, recorded once for each batch size as a CUDA graph and replayed afterwards.

Replaying costs the host one call where launching costs one for each of some hundred kernels. All arrays are the plan's,
so a graph takes no memory of its own beside its nodes. Prompts, of any length, are launched kernel by kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from residency.engine.cuda.inputs import PADDING
from residency.kernels.device import StepShape
from residency.store.device import DeviceArena

_WARM_UPS = 2  # the first compiles kernels and lets the library choose its own; neither may happen in a recording


class StepGraphs:
    """Runs steps, those that have been recorded from their recording."""

    def __init__(self, run: Callable[[StepShape], None], batch_sizes: Sequence[int], *, captures: bool) -> None:
        self._run = run
        self._batch_sizes = tuple(batch_sizes) if captures else ()
        self._graphs: dict[int, Any] = {}

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
        for size in sorted(self._batch_sizes, reverse=True):
            shape = StepShape(tokens=size, sampled=size, logits=size, items=0)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._run(shape)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            pool = next((each.pool() for each in self._graphs.values()), None)
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                self._run(shape)
            self._graphs[size] = graph

    def run(self, shape: StepShape) -> None:
        """Start a step; what it writes is there for whatever is started after it."""
        graph = self._graphs.get(shape.tokens) if shape.items == 0 and shape.sampled == shape.logits else None
        if graph is None:
            self._run(shape)
        else:
            graph.replay()
