"""Operators on an accelerator: where their tensors are, and how a model's calls get there.

The model's forward pass is the same as on the CPU. There an operator records a launch; here it launches at once, on
tensors of PyTorch, and a CUDA graph's capture is what records. `kernels/<operator>/gpu.py` is imported when the first
such step is computed, and with it PyTorch and Triton.
"""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from residency.formats.planes import PlaneLayout
from residency.kernels.recorder import Inputs, Recorder
from residency.spec.model import MoeSpec

Tensor = Any  # torch.Tensor, which nothing here imports
Between = Callable[[Callable[[], None]], None]  # lets the host do something in the middle of a step
NO_ADDRESSES = Inputs(*[0] * 10)  # a device's kernels are handed tensors


@dataclass(frozen=True, kw_only=True)
class DeviceMatrix:
    """A matrix (rows, columns) on a device: plain values in "codes", or the planes of `layout` by name."""

    rows: int
    columns: int
    layout: PlaneLayout | None  # None: values of the activations' type
    planes: dict[str, Tensor]
    order: Tensor | None = None  # which of x's columns each one multiplies, where not its own


class Aside(Protocol):
    """What a device does beside the kernels that compute."""

    def begun(self) -> AbstractContextManager[None]:
        """What is started inside comes after all that has been started, and beside what is started next."""

    def join(self) -> None:
        """What is started from now on comes after it."""


@dataclass(frozen=True, kw_only=True)
class DevicePaged:
    """How a step gets a layer's experts that are not on the device: see experts/gpu_paging.py."""

    layer: int
    before: int  # the mixture before it, or itself where there is none
    first: int  # number of its first expert
    homes: Tensor  # (homes, words of eight bytes) in pinned RAM: one for each expert, by its number, or as `table` says
    slots: Tensor  # (slots, words) on the device
    words: int  # of one expert
    aside: Aside  # where guesses are copied
    table: Tensor | None = None  # (experts,) in pinned RAM: each one's home, or -1 while it is on the disk alone
    read: Callable[[Tensor], None] | None = None  # gives those of a list of copies a home; the host does so


@dataclass(frozen=True, kw_only=True)
class DeviceExperts:
    """The experts of a layer: matrices in which each expert's rows lie behind those of the one before, or, where they
    are paged, those of the first slot.
    """

    spec: MoeSpec
    gate: DeviceMatrix  # rows and columns are of one expert
    up: DeviceMatrix
    down: DeviceMatrix
    given: None = None  # routes come from logits
    paged: DevicePaged | None = None  # None: all are where their layer is


def at_once(action: Callable[[], None]) -> None:
    """What the host does now, where nothing is recorded."""
    action()


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """How many of what a step has. Rows beyond what a batch fills are padding: position and slot -1."""

    tokens: int
    sampled: int  # of them, those of sequences that are given one token each; they come first
    logits: int
    items: int  # runs of tokens of prompts


class DeviceStep(Recorder):
    """A step of a fixed shape, computed while a model's forward pass calls operators.

    `buffers` has the plan's arrays as tensors: the activations, and the inputs "positions", "sequences", "slots",
    "block_tables", "logit_rows" and "items" (first token, tokens, sequence, 0).
    """

    def __init__(
        self,
        buffers: dict[str, Tensor],
        shape: StepShape,
        *,
        multiprocessors: int,
        only_logits: bool = False,
        between: Between = at_once,
    ) -> None:
        """`only_logits`: what comes before the logits was computed by the step before, and is left as it is.
        `between` is for what the host does before the kernels that are started next.
        """
        super().__init__(NO_ADDRESSES, buffers)
        self.only_logits = only_logits
        self.shape = shape
        self.multiprocessors = multiprocessors
        self.between = between

    def rows(self, *, of_logits: bool = False) -> int:
        """Rows that an operator computes."""
        return self.shape.logits if of_logits else self.shape.tokens


def on_device(operator: str) -> Any:
    """The module that computes an operator on a device."""
    return importlib.import_module(f"residency.kernels.{operator}.gpu")
