"""The loop's device: arrays, the recorded step and the threads that replay it."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from residency.engine.arena import activation_arena, resident_bytes
from residency.engine.inputs import StepInputs
from residency.engine.sampler import Draw
from residency.engine.stamps import LaunchTime, StampedStep
from residency.engine.steps import STREAM_KERNELS, ResidentSteps, StreamedSteps
from residency.engine.tiers import NextTier
from residency.engine.workers import Workers
from residency.errors import StoreError, UsageError
from residency.kernels.embed import embed
from residency.kernels.experts import Experts
from residency.kernels.library import Library
from residency.kernels.recorder import Recorder
from residency.kernels.rotary import LayerPages
from residency.kernels.sample import likeliest
from residency.ledger import KvPages, PageCopy
from residency.models.layers import Parts
from residency.models.registry import forward_of
from residency.planner.plan import Plan
from residency.scheduler import Batch
from residency.spec.layout import stored_copy_bytes
from residency.spec.model import ModelSpec
from residency.store.arena import Arena
from residency.store.faults import HANDLER
from residency.store.weights import Weights

DRIVERS = ("step.run", "step.serve")
Progress = Callable[[int, int], None]


class DeviceLogits(Protocol):
    """Rows of logits that are elsewhere: read when somebody looks at them, or drawn from where they are."""

    def rows(self) -> npt.NDArray[np.float32]:
        """The logits (rows, vocabulary)."""

    def drawn(self, draws: Sequence[Draw]) -> list[int]:
        """A token of each row."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[np.float32]:
        """The logits, for NumPy."""


Logits = npt.NDArray[np.float32] | DeviceLogits


class Executor(Protocol):
    """What the loop needs of a device; see CpuExecutor."""

    compute_seconds: float  # of all steps so far, in kernels

    @property
    def most_logits(self) -> int:
        """Rows of logits that there are at one time."""

    @property
    def routed_bytes(self) -> int:
        """Bytes of the experts that the last step's tokens were sent to."""

    def compute(
        self,
        batch: Batch,
        pages: KvPages,
        tokens: npt.NDArray[np.int64],
        *,
        every_logit: bool = False,
        before_run: Callable[[], None] = lambda: None,
    ) -> Logits:
        """Run one step; `before_run` is called when nothing of it is left to be done in Python. BudgetError where there
        is no memory for it: it has not happened.
        """

    def likeliest(self, num_rows: int) -> Sequence[int]:
        """The token with the largest logit, of equals the first, in each of the rows that the last step gave."""

    def more_logits(self, rows: Sequence[int]) -> Logits:
        """The logits of further tokens of the last step."""

    def copy_pages(self, copies: Iterable[PageCopy], tier: NextTier | None = None) -> list[PageCopy]:
        """Make a batch's copies; those that failed."""


def _experts(spec: ModelSpec, weights: Weights, routes: npt.NDArray[np.int32] | None) -> dict[int, Experts]:
    """Of each layer that has some; where routes are given, these say where tokens go."""
    found = {index: weights.experts(index) for index, layer in enumerate(spec.layers) if layer.experts}
    if routes is None:
        return found
    return {index: replace(each, given=routes[index]) for index, each in found.items()}


class CpuExecutor:
    """Computes batches of a plan's model on this machine's processor."""

    def __init__(
        self,
        plan: Plan,
        spec: ModelSpec,
        weights: Weights,
        *,
        routes: npt.NDArray[np.int32] | None = None,
        compiling: Progress | None = None,
    ) -> None:
        """`routes` (layers, tokens, experts of a token), where there are any, say where each step sends its tokens.

        UsageError for a plan of another device.
        """
        if plan.device is not None:
            raise UsageError(
                f"this is computed on the processor, and the plan is for {plan.device.name}; plan it anew."
            )
        self._plan, self._weights = plan, weights
        self.compute_seconds = 0.0
        with ExitStack() as opened:
            self._activations, buffers = activation_arena(plan.buffers)
            opened.callback(self._activations.close)
            arenas = [Arena(group.num_bytes) for group in plan.kv_groups]
            for arena in arenas:
                opened.callback(arena.close)
            self._kv_arenas = arenas
            self._kv_pages = [
                arena.bytes[: group.num_bytes].reshape(len(group.layers), group.num_pages, group.page_bytes)
                for group, arena in zip(plan.kv_groups, arenas, strict=True)
            ]
            opened.callback(self._kv_pages.clear)
            self._inputs = StepInputs(spec, buffers, plan.page_tokens)
            self._token_ids, self._logits = buffers["token_ids"], buffers["logits"]
            residents = weights.residents
            in_step = spec.tied and residents is None  # whether tokens are looked up by a kernel, not in the file
            self._hidden = None if in_step else buffers["hidden"][:, : spec.hidden]
            self._vocabulary = spec.vocabulary
            step = Recorder(self._inputs.addresses, buffers)
            self._inputs.record(step)
            self._experts = _experts(spec, weights, routes)
            self._experts_used = buffers.get("experts_used", np.zeros((len(spec.layers), 0), np.int32))
            self._expert_bytes = np.array([sum(map(stored_copy_bytes, layer.experts)) for layer in spec.layers])
            if weights.pager is not None:
                weights.pager.watch(self._experts_used)
            parts = Parts(
                spec=spec,
                weights=weights,
                caches=self._layer_pages(),
                angles=self._inputs.angles,
                experts=self._experts,
            )
            if in_step:
                embed(step, weights.head, spec.embedding_scale, buffers["hidden"])
            forward_of(spec)(step, parts)
            self._likeliest = likeliest(step, self._logits, spec.vocabulary)
            self._kernels = step.kernels
            self._library = Library([*step.kernels, *DRIVERS, *STREAM_KERNELS, HANDLER], compiling)
            weights.watch()
            self._steps = (
                ResidentSteps(step, self._library)
                if residents is None
                else StreamedSteps(step, self._library, weights, residents)
            )
            self._workers = opened.enter_context(Workers(self._library, plan.threads))
            self._opened = opened.pop_all()

    def __enter__(self) -> "CpuExecutor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads and give the memory back."""
        self._opened.close()

    def stay(self) -> None:
        """The calling thread computes steps and does nothing else from now on; see Workers."""
        self._workers.stay()

    @property
    def activation_bytes(self) -> int:
        """Bytes of the activation buffers that are in memory."""
        return resident_bytes(self._activations.address, self._activations.num_bytes)

    def compute(
        self,
        batch: Batch,
        pages: KvPages,
        tokens: npt.NDArray[np.int64],
        *,
        every_logit: bool = False,
        before_run: Callable[[], None] = lambda: None,
    ) -> npt.NDArray[np.float32]:
        """Run one step on the batch's `tokens`, entry after entry.

        `before_run` is called before the kernels, which let go of Python's lock, begin. Returns the logits (rows,
        vocabulary) of the entries that need them, in order, or with `every_logit` of all tokens; a view that the next
        step overwrites. StoreError where weights cannot be read.
        """
        self._start(tokens)
        rows = self._inputs.write(batch, pages, every_logit=every_logit)
        before_run()
        self._run()
        return self._logits[: len(rows), : self._vocabulary]

    def likeliest(self, num_rows: int) -> list[int]:
        """See Executor."""
        return self._likeliest.of_rows(num_rows)

    @property
    def most_logits(self) -> int:
        """Rows of logits that there are at one time."""
        return len(self._logits)

    @property
    def routed_bytes(self) -> int:
        """Bytes of the experts that the last step's tokens were sent to."""
        if not self._experts:
            return 0
        return int((self._experts_used > 0).sum(axis=1) @ self._expert_bytes)

    def more_logits(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits (rows, vocabulary) of further tokens of the last step, by their place in it, at most
        `most_logits`; in the place of those that there were.
        """
        self._inputs.write_logit_rows(rows)
        self._run(only_logits=True)
        return self._logits[: len(rows), : self._vocabulary]

    def copy_pages(self, copies: Iterable[PageCopy], tier: NextTier | None = None) -> list[PageCopy]:
        """Make a batch's copies in their order, before it is computed; those that failed, for the disk is not to be
        relied on. Those to and from the next tier need it.
        """
        failed = []
        for copy in copies:
            pages_LPB = self._kv_pages[copy.group]  # layers, pages, bytes
            if copy.way == "within":
                pages_LPB[:, copy.target] = pages_LPB[:, copy.source]
                continue
            assert tier is not None, "nothing is copied to a tier that is not there"
            try:
                if copy.way in ("out", "save"):
                    tier.write(copy, pages_LPB[:, copy.source])
                else:
                    tier.read(copy, pages_LPB[:, copy.target])
            except (OSError, StoreError):
                failed.append(copy)
        return failed

    def drop_pages(self, group: int, pages: Sequence[int]) -> None:
        """Give the memory of a group's pages back, which hold nothing."""
        layers, num_pages, page_bytes = self._kv_pages[group].shape
        ordered = np.sort(pages)
        for run in np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1) if len(ordered) else ():
            for first_page in run[0] + num_pages * np.arange(layers):
                start = int(first_page) * page_bytes
                self._kv_arenas[group].drop(start, start + len(run) * page_bytes)

    def replace_steps(self) -> None:
        """Spans of weights have moved: make the step's programs anew."""
        if isinstance(self._steps, StreamedSteps):
            self._steps.replace()

    def profile(
        self, batch: Batch, pages: KvPages, tokens: npt.NDArray[np.int64], *, repeats: int
    ) -> tuple[LaunchTime, ...]:
        """How long each kernel of this step takes inside the step, over `repeats` runs of it. Leaves what `compute`
        leaves: the step's keys and values are in the cache. UsageError where weights stream or experts are paged.
        """
        if self._plan.streaming is not None or self._plan.paging is not None:
            raise UsageError("a step that waits for the disk has no profile; give more --memory.")
        stamped = StampedStep(self._steps.begin(), self._library, self._kernels)
        for _ in range(repeats):
            self._start(tokens)
            self._inputs.write(batch, pages)
            stamped.run(self._workers)
        return stamped.times()

    def _run(self, *, only_logits: bool = False) -> None:
        started = time.perf_counter()
        pager = None if only_logits else self._weights.pager
        if pager is not None:
            pager.begin()
        self._workers.run(self._steps.begin(only_logits=only_logits))
        self._steps.end()
        self._weights.check()
        if pager is not None:
            pager.end()
        self.compute_seconds += time.perf_counter() - started

    def _start(self, tokens: npt.NDArray[np.int64]) -> None:
        self._token_ids[: len(tokens)] = tokens
        if self._hidden is not None:
            self._weights.embed(tokens, self._hidden[: len(tokens)])

    def _layer_pages(self) -> list[LayerPages]:
        layers: dict[int, LayerPages] = {}
        for index, (group, pages) in enumerate(zip(self._plan.kv_groups, self._kv_pages, strict=True)):
            for place, layer in enumerate(group.layers):
                layers[layer] = LayerPages(
                    pages=pages[place],
                    slots=self._inputs.slots[index],
                    tables=self._inputs.tables[index],
                    number_format=self._plan.kv_format,
                )
        return [layers[layer] for layer in range(len(layers))]
