"""Which experts are in memory where not all of them fit: what stays, and what goes when another must come.

An expert is a number: its layer times the experts of a layer, plus its own. Steps pass the layers in the same order
again and again. To forget what was used longest ago is wrong then: it is what comes next. What was used least often
goes first, uses counting for less the longer ago they are.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Trace = npt.NDArray[np.integer]  # (steps, layers, experts of a token): the experts that each token was sent to

HALF_LIFE_STEPS = 32.0  # of a use's weight
_MOST_WEIGHT = 1e100


class Policy(Protocol):
    """Says of each expert what it is worth to have in memory; what is worth least goes first."""

    @property
    def worth(self) -> Floats:
        """Of every expert."""

    def use(self, experts: Sequence[int]) -> None:
        """A layer has sent tokens to these."""

    def end_step(self) -> None:
        """The last layer of a step is done."""


class LeastFrequent:
    """Uses are counted, and weigh half as much after `half_life_steps`."""

    def __init__(self, num_experts: int, half_life_steps: float = HALF_LIFE_STEPS) -> None:
        self.worth: Floats = np.zeros(num_experts)
        self._growth = 2.0 ** (1 / half_life_steps)
        self._weight = 1.0  # of a use now: later uses weigh more, which is the same as that earlier ones weigh less

    def use(self, experts: Sequence[int]) -> None:
        """A layer has sent tokens to these."""
        self.worth[experts] += self._weight

    def end_step(self) -> None:
        """A step is over."""
        self._weight *= self._growth
        if self._weight > _MOST_WEIGHT:
            self.worth /= self._weight
            self._weight = 1.0


class LeastRecent:
    """What was used longest ago is worth least."""

    def __init__(self, num_experts: int) -> None:
        self.worth: Floats = np.zeros(num_experts)
        self._uses = 0

    def use(self, experts: Sequence[int]) -> None:
        """A layer has sent tokens to these."""
        self._uses += 1
        self.worth[experts] = self._uses

    def end_step(self) -> None:
        """A step is over."""


class Hindsight:
    """What will be used latest is worth least: the optimum, for whoever knows the trace beforehand (L. A. Belady: A
    study of replacement algorithms for a virtual-storage computer, IBM Systems Journal 5/2, 1966).
    """

    def __init__(self, trace: Trace, experts_per_layer: int) -> None:
        layers = trace.shape[1]
        self.worth: Floats = np.full(layers * experts_per_layer, -np.inf)
        self._coming: list[list[int]] = [[] for _ in range(layers * experts_per_layer)]  # the next use is the last
        for turn, experts in reversed(list(enumerate(layers_of(trace, experts_per_layer)))):
            for expert in experts:
                self._coming[expert].append(turn)

    def use(self, experts: Sequence[int]) -> None:
        """A layer has sent tokens to these, as the trace says."""
        for expert in experts:
            self._coming[expert].pop()
            self.worth[expert] = -self._coming[expert][-1] if self._coming[expert] else -np.inf

    def end_step(self) -> None:
        """A step is over."""


class BesideNearer:
    """Another policy's worth, but that an expert is worth nothing here while a nearer tier keeps it anyway."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.nearer: Sequence[int] = ()

    @property
    def worth(self) -> Floats:
        """Of every expert."""
        worth = self._policy.worth.copy()
        worth[list(self.nearer)] = -1.0  # less than of one that was never used
        return worth

    def use(self, experts: Sequence[int]) -> None:
        """The other policy is told by the nearer tier."""

    def end_step(self) -> None:
        """The other policy is told by the nearer tier."""


@dataclass(frozen=True, kw_only=True)
class Brought:
    """Where an expert shall go, and which one has to leave."""

    slot: int
    evicted: int | None


class ExpertSlots:
    """Slots of memory, each for one expert. Decides; moves nothing."""

    def __init__(self, num_slots: int, num_experts: int, policy: Policy) -> None:
        self._policy = policy
        self._slots = np.full(num_experts, -1, np.int64)
        self._free = list(range(num_slots))[::-1]

    def __contains__(self, expert: int) -> bool:
        return bool(self._slots[expert] >= 0)

    def use(self, experts: Sequence[int]) -> list[int]:
        """A layer sends tokens to these; returns those that are not there."""
        self._policy.use(experts)
        return [expert for expert in experts if expert not in self]

    def end_step(self) -> None:
        """A step is over."""
        self._policy.end_step()

    def bring(self, expert: int, *, kept: Container[int], on_suspicion: bool = False) -> Brought | None:
        """Make room for an expert that is not there, without evicting one that is `kept`. None if there is no room.

        One that is brought `on_suspicion` drives out none that is worth more than it would be with one use more.
        """
        assert expert not in self, "it is there already"
        evicted = None
        if not self._free:
            evicted = self._least_worth(kept)
            if evicted is None or (on_suspicion and self._policy.worth[evicted] > self._policy.worth[expert]):
                return None
            self.forget(evicted)
        slot = self._free.pop()
        self._slots[expert] = slot
        return Brought(slot=slot, evicted=evicted)

    def forget(self, expert: int) -> None:
        """An expert has left, or has not arrived."""
        self._free.append(int(self._slots[expert]))
        self._slots[expert] = -1

    def order(self) -> list[int]:
        """All slots in the order in which whoever decides by itself shall fill them: empty ones, then those whose
        experts are worth least.
        """
        return [*self._free[::-1], *self._slots[self._by_worth()].tolist()]

    def staying(self, num_filled: int) -> list[int]:
        """The experts that are there still when the first `num_filled` slots of the order have been filled."""
        stay: list[int] = self._by_worth()[max(0, num_filled - len(self._free)) :].tolist()
        return stay

    def follow(self, occupants: npt.NDArray[np.integer]) -> None:
        """Somebody has decided by itself: the expert that each slot has now, -1 for none."""
        filled = np.flatnonzero(occupants >= 0)
        self._slots[:] = -1
        self._slots[occupants[filled]] = filled
        self._free = np.flatnonzero(occupants < 0)[::-1].tolist()

    def undo(self, expert: int, brought: Brought) -> None:
        """What `bring` has decided for an expert does not happen."""
        self.forget(expert)
        if brought.evicted is not None:
            self._slots[brought.evicted] = self._free.pop()

    def _least_worth(self, kept: Container[int]) -> int | None:
        return next((expert for expert in self._by_worth().tolist() if expert not in kept), None)

    def _by_worth(self) -> npt.NDArray[np.int64]:
        """The experts that are there, those of least worth first."""
        held = np.flatnonzero(self._slots >= 0)
        return held[np.argsort(self._policy.worth[held], kind="stable")]


def layers_of(trace: Trace, experts_per_layer: int) -> Iterable[list[int]]:
    """The experts of each layer of each step, one layer after another, each expert once."""
    for step in trace:
        for layer, chosen in enumerate(step):
            yield sorted({layer * experts_per_layer + int(expert) for expert in chosen})


def hit_rate(trace: Trace, experts_per_layer: int, num_slots: int, policy: Policy, *, warm_up_steps: int = 0) -> float:
    """Of the experts that the trace's steps need, the share that was in memory, from empty slots on.

    What the first steps need fills the slots and is not counted.
    """
    layers = trace.shape[1]
    slots = ExpertSlots(num_slots, layers * experts_per_layer, policy)
    needed = missed = 0
    for turn, experts in enumerate(layers_of(trace, experts_per_layer)):
        missing = slots.use(experts)
        for expert in missing:
            slots.bring(expert, kept=experts)
        if turn >= warm_up_steps * layers:
            needed += len(experts)
            missed += len(missing)
        if turn % layers == layers - 1:
            slots.end_step()
    return 1.0 - missed / max(1, needed)
