"""A model opened for measuring: its loop and its parts, without tokenizer or text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.engine.device import DeviceExecutor, open_executor
from residency.engine.engine import Progress
from residency.engine.executor import CpuExecutor
from residency.engine.generation import GenerationOptions
from residency.engine.loop import Loop
from residency.engine.planning import planned_spec
from residency.planner.cost import ModelCost
from residency.planner.device_speed import cost_of
from residency.planner.plan import Plan
from residency.spec.model import ModelSpec
from residency.store.weights import Weights, ensure_store


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A plan's model in memory."""

    plan: Plan
    spec: ModelSpec
    weights: Weights | None  # None: they are a device's
    executor: CpuExecutor | DeviceExecutor
    loop: Loop
    random: np.random.Generator

    @property
    def cost(self) -> ModelCost:
        """What the model's steps are made of, in the plan's format of the KV cache."""
        return cost_of(self.plan, self.spec)

    def random_tokens(self, num_tokens: int) -> list[int]:
        """A prompt that no other shares anything with."""
        return [int(token) for token in self.random.integers(0, self.spec.vocabulary, num_tokens)]

    def submit(self, prompt_tokens: int, max_tokens: int) -> int:
        """A request of random tokens that ends only at `max_tokens`; its number."""
        options = GenerationOptions(max_tokens=max_tokens, ignore_eos=True, use_prefix_cache=False)
        return self.loop.submit(self.random_tokens(prompt_tokens), options)


@dataclass(frozen=True, kw_only=True)
class Executing:
    """What computes a plan's batches, and the weights that it maps."""

    executor: CpuExecutor | DeviceExecutor
    weights: Weights | None


@contextmanager
def executing(
    plan: Plan, spec: ModelSpec, progress: Progress | None = None, *, routes: npt.NDArray[np.int32] | None = None
) -> Iterator[Executing]:
    """The executor of a plan, on the processor or a device; for `routes` see CpuExecutor."""

    def stage(name: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(name, done, total)

    if plan.device is not None:
        with open_executor(plan, spec, loading=stage("loading")) as device:
            yield Executing(executor=device, weights=None)
        return
    folder = ensure_store(spec, plan.model_fingerprint, progress=stage("converting"))
    with (
        Weights(spec, folder, plan.streaming, plan.paging) as weights,
        CpuExecutor(plan, spec, weights, routes=routes, compiling=stage("compiling kernels")) as executor,
    ):
        yield Executing(executor=executor, weights=weights)


@contextmanager
def opened(
    plan: Plan, progress: Progress | None = None, *, routes: npt.NDArray[np.int32] | None = None
) -> Iterator[Opened]:
    """The plan's model, ready; closed afterwards. Fails as `Engine.open` does. For `routes` see CpuExecutor."""
    spec = planned_spec(plan)
    with executing(plan, spec, progress, routes=routes) as running:
        loop = Loop(plan, running.executor, eos_ids=frozenset(), weight_read_bytes=cost_of(plan, spec).unrouted_bytes)
        yield Opened(
            plan=plan,
            spec=spec,
            weights=running.weights,
            executor=running.executor,
            loop=loop,
            random=np.random.default_rng(0),
        )
