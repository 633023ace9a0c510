"""A model opened for measuring: its loop and its parts, without tokenizer or text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.engine.engine import Progress
from residency.engine.executor import CpuExecutor
from residency.engine.generation import GenerationOptions
from residency.engine.loop import Loop
from residency.engine.planning import open_planned
from residency.planner.cost import ModelCost
from residency.planner.plan import Plan
from residency.spec.layout import unrouted_read_bytes
from residency.spec.model import ModelSpec
from residency.spec.state import KV_FORMATS
from residency.store.weights import Weights, ensure_store


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A plan's model in memory."""

    plan: Plan
    spec: ModelSpec
    weights: Weights
    executor: CpuExecutor
    loop: Loop
    random: np.random.Generator

    @property
    def cost(self) -> ModelCost:
        """What the model's steps are made of, in the plan's format of the KV cache."""
        return ModelCost.of(self.spec, kv=KV_FORMATS[self.plan.kv_format])

    def random_tokens(self, num_tokens: int) -> list[int]:
        """A prompt that no other shares anything with."""
        return [int(token) for token in self.random.integers(0, self.spec.vocabulary, num_tokens)]

    def submit(self, prompt_tokens: int, max_tokens: int) -> int:
        """A request of random tokens that ends only at `max_tokens`; its number."""
        options = GenerationOptions(max_tokens=max_tokens, ignore_eos=True, use_prefix_cache=False)
        return self.loop.submit(self.random_tokens(prompt_tokens), options)


@contextmanager
def opened(
    plan: Plan, progress: Progress | None = None, *, routes: npt.NDArray[np.int32] | None = None
) -> Iterator[Opened]:
    """The plan's model, ready; closed afterwards. Fails as `Engine.open` does. For `routes` see CpuExecutor."""

    def stage(name: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    _, spec = open_planned(plan)
    folder = ensure_store(spec, plan.model_fingerprint, progress=stage("converting"))
    with (
        Weights(spec, folder, plan.streaming, plan.paging) as weights,
        CpuExecutor(plan, spec, weights, routes=routes, compiling=stage("compiling kernels")) as executor,
    ):
        loop = Loop(plan, executor, eos_ids=frozenset(), weight_read_bytes=unrouted_read_bytes(spec))
        yield Opened(
            plan=plan, spec=spec, weights=weights, executor=executor, loop=loop, random=np.random.default_rng(0)
        )
