"""The loop's device: the same plan, batches and model files as on the CPU, with tensors and CUDA graphs."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from residency.engine.cuda.graphs import StepGraphs
from residency.engine.cuda.inputs import DeviceInputs, rope_table
from residency.engine.sampler import Draw, Sampling
from residency.engine.stamps import LaunchTime
from residency.engine.swap import SwapSpace
from residency.engine.tiers import NextTier
from residency.errors import BudgetError, FileError, StoreError, UnsupportedError
from residency.kernels.device import Between, DeviceExperts, DeviceStep, StepShape, at_once, on_device
from residency.kernels.embed import embed
from residency.kernels.rotary import LayerPages, key_offset
from residency.ledger import KvPages, PageCopy
from residency.models.layers import Parts
from residency.models.registry import forward_of
from residency.planner.device_buffers import INPUTS
from residency.planner.device_speed import cost_of
from residency.planner.on_device import ALLOCATOR_BYTES, planned_layout
from residency.planner.plan import DevicePlan, MemoryBytes, Plan
from residency.scheduler import Batch
from residency.spec.model import ModelSpec
from residency.store.device import DeviceArena, DeviceWeights
from residency.store.device_disk import LayerFiles, layer_folder
from residency.store.device_experts import DeviceExpertSlots
from residency.store.device_pages import PinnedPages
from residency.store.paging import PagingCounts
from residency.units import binary_bytes

Progress = Callable[[int, int], None]


class CudaExecutor:
    """Computes batches of a plan's model on a CUDA device, in no more of its memory than the plan says."""

    def __init__(self, plan: Plan, spec: ModelSpec, *, loading: Progress | None = None, device: str = "cuda") -> None:
        """`device` "cpu": by Triton's interpreter. BudgetError where the device has less memory free than planned."""
        if plan.device is None:
            raise FileError("the plan is of a run on the processor; make one with --device cuda.")
        self._plan, self._spec, self._device = plan, spec, device
        self._planned: DevicePlan = plan.device
        self._cost = cost_of(plan, spec)
        self._paged: DeviceExpertSlots | None = None
        self._swapped: PinnedPages | None = None
        self._last_tokens = 0
        self.compute_seconds = 0.0
        with ExitStack() as opened:
            opened.callback(self._forget)
            try:
                self._take_memory(plan.device, loading)
            except torch.OutOfMemoryError as error:
                raise _too_little(plan) from error
            self._opened = opened.pop_all()

    def _take_memory(self, planned: DevicePlan, loading: Progress | None) -> None:
        if self._device == "cuda":
            # the rest of runtime is the driver's; all else is PyTorch's, which takes no byte more than this
            allocated = self._plan.budget_bytes - self._plan.memory.runtime + ALLOCATOR_BYTES
            torch.cuda.set_per_process_memory_fraction(min(1.0, allocated / torch.cuda.mem_get_info()[1]))
        layout = planned_layout(planned, self._spec)
        made, experts = planned.random_weights, layout.experts
        folder = layer_folder(self._plan.model_fingerprint, self._spec.name, planned.activation_type, made or "read")
        files = partial(LayerFiles.of, self._spec, folder=folder, made_up=made is not None)
        self._arena = DeviceArena(self._plan.buffers, INPUTS, self._device)
        if experts is not None:
            on_disk = files(experts.expert_bytes, what="experts", layer_bytes=experts.per_layer * experts.slot_bytes)
            inputs = self._arena.inputs
            self._paged = DeviceExpertSlots(experts, self._device, self._arena.tensors, inputs, on_disk)
        self._weights = DeviceWeights(
            self._spec,
            layout,
            planned.activation_type,
            self._device,
            self._paged,
            files(layout.disk_layers, what="layer", layer_bytes=layout.layer_bytes),
        )
        self._kv_pages = [
            torch.zeros((len(group.layers), group.num_pages, group.page_bytes), dtype=torch.uint8, device=self._device)
            for group in self._plan.kv_groups
        ]
        if made is None:
            self._weights.load(loading)
        else:
            self._weights.randomise()
        self._inputs = DeviceInputs(self._arena.inputs, self._plan.page_tokens)
        self._parts = self._make_parts()
        self._forward = forward_of(self._spec)
        captures = self._device == "cuda" and not planned.disk_layers  # which the host waits for inside a step
        self._graphs = StepGraphs(self._run, planned.decode_batches, captures=captures)
        self._graphs.prepare(self._arena)

    def __enter__(self) -> "CudaExecutor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the device's memory back."""
        self._opened.close()

    def _forget(self) -> None:
        self._synchronize()  # before what steps copy from is let go
        for held in (self.__dict__.get("_weights"), self._paged, self._swapped):
            if held is not None:
                held.close()
        for name in ("_graphs", "_parts", "_kv_pages", "_arena", "_weights", "_paged", "_swapped"):
            self.__dict__.pop(name, None)
        if self._device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0)

    def _synchronize(self) -> None:
        """Wait until nothing is under way on the device."""
        if self._device == "cuda":
            torch.cuda.synchronize()

    @property
    def activation_bytes(self) -> int:
        """Bytes of the activation buffers on the device."""
        return self._arena.num_bytes

    def measured_memory(self, kv_cache_bytes: int) -> MemoryBytes:
        """Memory by class on the device; runtime is all else that its driver counts as taken."""
        weights, activations = self._weights.num_bytes, self.activation_bytes
        runtime = 0
        if self._device == "cuda":
            free_bytes, total_bytes = torch.cuda.mem_get_info()
            held = sum(pages.numel() for pages in self._kv_pages) + weights + activations
            runtime = max(0, total_bytes - free_bytes - held)
        return MemoryBytes(weights=weights, kv_cache=kv_cache_bytes, activations=activations, runtime=runtime)

    def compute(
        self,
        batch: Batch,
        pages: KvPages,
        tokens: npt.NDArray[np.int64],
        *,
        every_logit: bool = False,
        before_run: Callable[[], None] = lambda: None,
    ) -> "DeviceLogits":
        """Start one step on the batch's `tokens`, entry after entry.

        The logits of the entries that need them, in order, or with `every_logit` of all tokens; what the next step
        overwrites. They are read, or drawn from, when somebody asks. BudgetError where the device has no memory left
        beside the plan's arrays: the step may be computed again.
        """
        sizes = () if every_logit else self._planned.decode_batches
        with self._arena.uploading():
            shape = self._inputs.write(batch, pages, tokens, every_logit=every_logit, batch_sizes=sizes)
            if self._paged is not None:
                self._paged.arrange()
        before_run()
        wanted = sum(entry.num_tokens if every_logit else entry.needs_logits for entry in batch.entries)
        started = time.perf_counter()
        try:
            self._graphs.run(shape)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise BudgetError("the device had no memory left for this request; ask for less at a time.") from error
        if self._paged is not None:
            self._paged.tell()
        self.compute_seconds += time.perf_counter() - started
        self._last_tokens = shape.tokens
        return self._logits(int(wanted))

    @property
    def expert_counts(self) -> PagingCounts | None:
        """How often experts were on the device when they were needed; None where all of them are."""
        return None if self._paged is None else self._paged.counts

    @property
    def most_logits(self) -> int:
        """Rows of logits that there are at one time."""
        return int(self._arena.tensors["logits"].shape[0])

    @property
    def routed_bytes(self) -> int:
        """What experts drawn evenly would have been: reading the routes back would hold up every step."""
        return self._cost.routed_bytes(self._last_tokens)

    def likeliest(self, num_rows: int) -> list[int]:
        """As CpuExecutor.likeliest."""
        return self._logits(num_rows).drawn([Draw(sampling=Sampling(), part=0.0)] * num_rows)

    def more_logits(self, rows: Sequence[int]) -> "DeviceLogits":
        """As CpuExecutor.more_logits."""
        with self._arena.uploading():
            self._inputs.write_logit_rows(rows)
        self._run(StepShape(tokens=0, sampled=0, logits=len(rows), items=0), only_logits=True)
        return self._logits(len(rows))

    def reserve_swap(self, space: SwapSpace) -> None:
        """Let preempted sequences wait in pinned RAM. MachineError where there is not so much."""
        if self._swapped is not None:
            self._synchronize()
            self._swapped.close()
        self._swapped = PinnedPages(self._plan.kv_groups, space.slots(self._plan), self._device)

    def copy_pages(self, copies: Iterable[PageCopy], tier: NextTier | None = None) -> list[PageCopy]:
        """As CpuExecutor.copy_pages."""
        failed = []
        for copy in copies:
            pages_LPB = self._kv_pages[copy.group]
            if copy.way == "within":
                pages_LPB[:, copy.target] = pages_LPB[:, copy.source]
                continue
            if self._swapped is not None and copy.way in ("out", "in"):
                self._swapped.copy(copy, pages_LPB)
                continue
            assert tier is not None, "nothing is copied to a tier that is not there"
            try:
                if copy.way in ("out", "save"):
                    tier.write(copy, pages_LPB[:, copy.source].cpu().numpy())
                else:
                    page_LB = np.empty((pages_LPB.shape[0], pages_LPB.shape[2]), np.uint8)
                    tier.read(copy, page_LB)
                    pages_LPB[:, copy.target] = torch.from_numpy(page_LB).to(self._device)
            except (OSError, StoreError):
                failed.append(copy)
        return failed

    def profile(
        self, batch: Batch, pages: KvPages, tokens: npt.NDArray[np.int64], *, repeats: int
    ) -> tuple[LaunchTime, ...]:
        """UnsupportedError: the device's own profilers show its kernels."""
        raise UnsupportedError("kernels on a CUDA device are timed by Nsight Systems or torch.profiler, not here.")

    def _run(self, shape: StepShape, between: Between = at_once, *, only_logits: bool = False) -> None:
        """The model's forward pass, kernel by kernel."""
        step = DeviceStep(
            self._arena.tensors,
            shape,
            multiprocessors=self._planned.multiprocessors,
            only_logits=only_logits,
            between=between,
        )
        self._weights.begin_step(copies=not only_logits)
        embed(step, self._weights.embedding, self._spec.embedding_scale, step.buffers["hidden"])
        self._forward(step, self._parts)

    def _logits(self, rows: int) -> "DeviceLogits":
        return DeviceLogits(self._arena, rows)

    def _make_parts(self) -> Parts:
        table = np.zeros(tuple(self._arena.tensors["rope"].shape), np.float32)
        rope_table(self._spec, table)
        self._arena.tensors["rope"].copy_(torch.from_numpy(table))
        ropes = dict.fromkeys(layer.grouped_attention.rope for layer in self._spec.layers)
        if "key_offsets" in self._arena.tensors:
            self._write_key_offsets(self._arena.tensors["key_offsets"])
        angles: Any = dict(zip(ropes, self._arena.tensors["rope"], strict=True))
        weights: Any = self._weights
        mixtures = [index for index, layer in enumerate(self._spec.layers) if layer.experts]
        experts: Any = _LayersExperts(self._weights, mixtures)
        return Parts(spec=self._spec, weights=weights, caches=self._layer_pages(), angles=angles, experts=experts)

    def _write_key_offsets(self, offsets: torch.Tensor) -> None:
        for index, layer in enumerate(self._spec.layers):
            spec = layer.grouped_attention
            if spec.bias:
                bias = self._weights.kept_vector(f"model.layers.{index}.self_attn.k_proj.bias")
                offset = key_offset(bias, spec.rope, spec.head_dim, np.zeros(bias.size, np.float32))
                offsets[index, : bias.size].copy_(torch.from_numpy(offset))

    def _layer_pages(self) -> list[LayerPages]:
        slots, tables = self._arena.tensors["slots"], self._arena.tensors["block_tables"]
        layers: dict[int, LayerPages] = {}
        for index, (group, pages) in enumerate(zip(self._plan.kv_groups, self._kv_pages, strict=True)):
            for place, layer in enumerate(group.layers):
                words: dict[str, Any] = {"pages": pages[place], "slots": slots[index], "tables": tables[index]}
                layers[layer] = LayerPages(**words, number_format=self._plan.kv_format)
        return [layers[layer] for layer in range(len(layers))]


class _LayersExperts(Mapping[int, DeviceExperts]):
    """The experts of a layer, looked up when the forward pass comes to them: a streamed layer has arrived then."""

    def __init__(self, weights: DeviceWeights, layers: Sequence[int]) -> None:
        self._weights, self._layers = weights, layers

    def __getitem__(self, layer: int) -> DeviceExperts:
        return self._weights.experts(layer)

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class DeviceLogits:
    """Rows of logits on the device, read back when somebody looks at one."""

    def __init__(self, arena: DeviceArena, rows: int) -> None:
        self._arena = arena
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[np.float32]:
        return self.rows()

    def rows(self) -> npt.NDArray[np.float32]:
        """The logits (rows, vocabulary)."""
        logits: npt.NDArray[np.float32] = self._arena.tensors["logits"][: self._rows].cpu().float().numpy()
        return logits

    def drawn(self, draws: Sequence[Draw]) -> list[int]:
        """A token of each row, chosen on the device: one copy there and one back."""
        self._arena.inputs["draws"][: len(draws)] = [draw.words for draw in draws]
        tensors = self._arena.tensors
        at = tensors["draws"][: len(draws)]
        at.copy_(torch.from_numpy(self._arena.inputs["draws"][: len(draws)]), non_blocking=True)
        on_device("sample").draw(tensors["logits"][: len(draws)], at, tensors["drawn"])
        tokens: list[int] = tensors["drawn"][: len(draws)].tolist()
        return tokens


def _too_little(plan: Plan) -> BudgetError:
    free_bytes = torch.cuda.mem_get_info()[0]
    return BudgetError(
        f"the plan takes {binary_bytes(plan.memory.peak)} of the device's memory, of which {binary_bytes(free_bytes)} "
        "are free; end what else runs there, or plan with a smaller --memory."
    )
