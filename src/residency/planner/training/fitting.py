"""The least that must be given up for a training run to fit: from what costs no time to what costs most.

The order: optimizer states shared among devices (ZeRO 1, no further traffic), gradients too (2), a loss in chunks,
weights too (3: half as much traffic again, arXiv 1910.02054 section 7), layers computed twice (about a third more
work, arXiv 2205.05198), the optimizer's step in RAM (arXiv 2101.06840).
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from residency.errors import UsageError
from residency.planner.training.memory import TrainingMemory
from residency.planner.training.options import TrainingOptions
from residency.planner.training.plan import plan_training
from residency.spec.model import ModelSpec

LOSS_CHUNKS = 8
# Each change with what it costs: a combination costs the sum, so that no order of trying hides a cheaper one.
STEPS: dict[str, tuple[tuple[Any, int], ...]] = {
    "zero_stage": ((0, 0), (1, 1), (2, 2), (3, 8)),
    "loss_chunks": ((1, 0), (LOSS_CHUNKS, 4)),
    "recomputation": (("none", 0), ("full", 16)),
    "offload_optimizer": ((False, 0), (True, 64)),
}


@dataclass(frozen=True, kw_only=True)
class FittedTraining:
    """The cheapest way of training that fits, or the one that needs least; `changes` to what was asked for."""

    options: TrainingOptions
    memory: TrainingMemory
    changes: tuple[str, ...]
    missing_bytes: int  # on the fullest device; 0: it fits

    @property
    def fits(self) -> bool:
        """Whether every device has room."""
        return self.missing_bytes == 0


def fit_training(
    model: ModelSpec, training: TrainingOptions, *, device_bytes: int, fixed: frozenset[str] = frozenset()
) -> FittedTraining:
    """The cheapest of all combinations of STEPS on devices of `device_bytes`; those named in `fixed` stay as asked.

    Tries every combination, so the answer is the best of them. UsageError as plan_training.
    """
    tried = []
    for candidate in _candidates(training, fixed):
        memory = plan_training(model, candidate)
        missing = max(0, memory.peak - device_bytes)
        found = FittedTraining(
            options=candidate, memory=memory, changes=_changes(training, candidate), missing_bytes=missing
        )
        if found.fits:
            return found
        tried.append(found)
    return min(tried, key=lambda each: each.memory.peak)


def _candidates(training: TrainingOptions, fixed: frozenset[str]) -> Iterator[TrainingOptions]:
    """The combinations that can be, the cheapest first; never less saving than what was asked for."""
    choices = []
    for name, steps in STEPS.items():
        asked = getattr(training, name)
        costs = dict(steps)
        kept = name in fixed or asked not in costs or (name == "zero_stage" and training.data_parallel == 1)
        choices.append([(asked, 0)] if kept else [step for step in steps if step[1] >= costs[asked]])
    for combination in sorted(product(*choices), key=lambda each: sum(cost for _, cost in each)):
        values = {name: value for name, (value, _) in zip(STEPS, combination, strict=True)}
        with suppress(UsageError):  # two things that do not go together
            yield replace(training, **values)


def _changes(asked: TrainingOptions, taken: TrainingOptions) -> tuple[str, ...]:
    words = {
        "zero_stage": f"ZeRO stage {taken.zero_stage}",
        "loss_chunks": f"the loss in {taken.loss_chunks} chunks",
        "recomputation": f"{taken.recomputation} recomputation",
        "offload_optimizer": "the optimizer in RAM",
    }
    return tuple(text for name, text in words.items() if getattr(asked, name) != getattr(taken, name))
