"""Experts that are not on the device come to slots inside a step, and none that is needed goes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch

from residency.kernels import experts as operator
from residency.kernels.device import DeviceExperts, DeviceMatrix, DevicePaged, DeviceStep, StepShape, Tensor
from residency.spec.model import MoeSpec
from support.device import DEVICE, MULTIPROCESSORS, tensor

LAYERS, EXPERTS, SLOTS, WORDS = 4, 5, 14, 1500  # a window of 10 slots; experts take one block of words and a half
WINDOW = 2 * EXPERTS
SPEC = MoeSpec(num_experts=EXPERTS, experts_per_token=2, intermediate=32, activation="silu")

NONE = DeviceMatrix(rows=0, columns=0, layout=None, planes={})

Numbers = npt.NDArray[np.int32]


class Beside:
    """What would be copied on a second stream, one after another."""

    joined = 0

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Now."""
        yield

    def join(self) -> None:
        """Nothing is under way."""
        self.joined += 1


class Paging:
    """A step with experts in slots at random, and homes of random bytes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        occupants = np.full(SLOTS, -1, np.int32)
        filled = self.rng.permutation(SLOTS)[: self.rng.integers(0, SLOTS + 1)]
        occupants[filled] = self.rng.permutation(LAYERS * EXPERTS)[: len(filled)]
        places = np.full(LAYERS * EXPERTS, -1, np.int32)
        places[occupants[filled]] = filled
        self.homes = self.rng.integers(-(1 << 62), 1 << 62, (LAYERS, EXPERTS, WORDS))
        slots = np.full((SLOTS, WORDS), -7)
        slots[filled] = self.homes.reshape(-1, WORDS)[occupants[filled]]
        self.slots = tensor(slots)
        zeros = {name: np.zeros((LAYERS, EXPERTS), np.int32) for name in ("used", "guessed", "missed")}
        self.step = DeviceStep(
            {
                "expert_order": tensor(self.rng.permutation(SLOTS)[:WINDOW].astype(np.int32)),
                "expert_places": tensor(places.reshape(LAYERS, EXPERTS)),
                "expert_occupants": tensor(occupants),
                "expert_turn": tensor(self.rng.integers(0, WINDOW, 1).astype(np.int32)),
                "expert_copies": torch.full((2, 1 + 2 * EXPERTS), -1, dtype=torch.int32, device=DEVICE),
                "positions": tensor(np.array([3, -1, 4])),
                **{f"experts_{name}": tensor(values) for name, values in zeros.items()},
            },
            StepShape(tokens=3, sampled=3, logits=3, items=0),
            multiprocessors=MULTIPROCESSORS,
        )
        self.beside = Beside()
        self.ram: Tensor = None  # homes of some, where the others are on the disk alone
        self.table: Tensor = tensor(np.full((LAYERS, EXPERTS), -1, np.int32))

    def leave_on_disk(self) -> None:
        """There is RAM for the experts of one layer, and nobody in it."""
        self.ram = tensor(np.full((EXPERTS, WORDS), -9))

    def read(self, layer: int, copies: Tensor) -> None:
        """The host brings what is listed from the disk, over all others."""
        count, *listed = copies.tolist()
        self.table.fill_(-1)
        for home, expert in enumerate(listed[:count]):
            self.ram[home] = tensor(self.homes[layer, expert])
            self.table[layer, expert] = home

    def use(self, layer: int) -> None:
        """Tokens are sent to some experts of a layer."""
        used: Tensor = self.step.buffers["experts_used"]
        used[layer] = tensor(self.rng.integers(0, 2, EXPERTS).astype(np.int32) * 3)

    def fetch(self, layer: int) -> None:
        """The step comes to a layer."""
        experts = self.experts(layer)
        operator.fetch(self.step, experts, experts.paged)  # type: ignore[arg-type]

    def guess(self, layer: int, logits: npt.NDArray[np.float32]) -> None:
        """The router of a layer is asked by the one before."""
        experts = self.experts(layer)
        operator.guess(self.step, tensor(logits), experts, experts.paged)  # type: ignore[arg-type]

    def experts(self, layer: int) -> DeviceExperts:
        """The experts of a layer."""
        paged = DevicePaged(
            layer=layer,
            before=max(0, layer - 1),
            first=layer * EXPERTS,
            homes=tensor(self.homes[layer]) if self.ram is None else self.ram,
            slots=self.slots,
            words=WORDS,
            aside=self.beside,
            table=None if self.ram is None else self.table[layer],
            read=None if self.ram is None else partial(self.read, layer),
        )
        return DeviceExperts(spec=SPEC, gate=NONE, up=NONE, down=NONE, paged=paged)

    def numbers(self, name: str) -> Numbers:
        """What a buffer holds."""
        held: Tensor = self.step.buffers[name]
        values: Numbers = held.cpu().numpy().copy()
        return values

    def holds(self, layer: int, marks: Numbers) -> bool:
        """Whether all marked experts of a layer are where the table says, byte for byte."""
        places = self.numbers("expert_places")[layer]
        slots = self.slots.cpu().numpy()
        return all(
            places[expert] >= 0 and (slots[places[expert]] == self.homes[layer, expert]).all()
            for expert in np.flatnonzero(marks)
        )


@pytest.mark.parametrize("seed", range(12))
def test_after_a_fetch_all_experts_that_tokens_are_sent_to_are_there(seed: int) -> None:
    """Layer after layer, so that slots are filled and given away again in one step."""
    paging = Paging(seed)
    for layer in range(LAYERS):
        paging.use(layer)
        paging.fetch(layer)
        assert paging.holds(layer, paging.numbers("experts_used")[layer])
    assert paging.beside.joined == LAYERS


@pytest.mark.parametrize("seed", range(4))
def test_experts_on_the_disk_are_there_after_a_fetch_as_well(seed: int) -> None:
    paging = Paging(seed)
    paging.leave_on_disk()
    for layer in range(LAYERS):
        paging.use(layer)
        paging.fetch(layer)
        assert paging.holds(layer, paging.numbers("experts_used")[layer])


def test_a_guess_copies_what_is_in_ram_and_nothing_else() -> None:
    paging = Paging(2)
    for name in ("expert_places", "expert_occupants"):
        empty: Tensor = paging.step.buffers[name]
        empty.fill_(-1)
    paging.leave_on_disk()
    logits = np.tile(np.array([0, 5, 0, 4, 0], np.float32), (3, 1))
    paging.read(1, torch.tensor([1, 3]))
    paging.guess(1, logits)
    assert paging.numbers("experts_guessed")[1].tolist() == [0, 1, 0, 2, 0]  # 2: it is copied
    assert paging.holds(1, np.array([0, 0, 0, 1, 0], np.int32)) and paging.numbers("expert_places")[1, 1] == -1


def test_what_the_host_does_comes_between_the_list_and_the_copies() -> None:
    """Where a step is recorded, it is put off, and the copies that are recorded then are made of what it brings."""
    paging = Paging(0)
    paging.leave_on_disk()
    put_off: list[Callable[[], None]] = []
    paging.step.between = put_off.append
    paging.use(1)
    missing = (paging.numbers("experts_used")[1] > 0) & (paging.numbers("expert_places")[1] < 0)
    paging.fetch(1)
    assert (paging.table.cpu().numpy() < 0).all()
    (action,) = put_off
    action()
    assert missing.any() and ((paging.table[1].cpu().numpy() >= 0) == missing).all()


@pytest.mark.parametrize("seed", range(6))
def test_slots_and_places_tell_the_same(seed: int) -> None:
    paging = Paging(seed)
    for layer in range(LAYERS):
        paging.use(layer)
        paging.fetch(layer)
    occupants, places = paging.numbers("expert_occupants"), paging.numbers("expert_places").ravel()
    assert {slot: expert for slot, expert in enumerate(occupants) if expert >= 0} == {
        slot: expert for expert, slot in enumerate(places) if slot >= 0
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_guess_takes_no_place_from_the_layer_that_computes(seed: int) -> None:
    paging = Paging(seed)
    paging.use(0)
    paging.fetch(0)
    logits = paging.rng.standard_normal((3, EXPERTS)).astype(np.float32)
    paging.guess(1, logits)
    likeliest = {int(expert) for row in (0, 2) for expert in np.argsort(-logits[row])[:2]}
    guessed = paging.numbers("experts_guessed")[1]
    assert set(np.flatnonzero(guessed)) == likeliest  # the second row is padding
    assert paging.holds(1, guessed) and paging.holds(0, paging.numbers("experts_used")[0])


def test_slots_outside_of_the_order_keep_their_experts() -> None:
    paging = Paging(0)
    before = paging.numbers("expert_occupants")
    for layer in range(LAYERS):
        paging.use(layer)
        paging.fetch(layer)
    outside = np.setdiff1d(np.arange(SLOTS), paging.numbers("expert_order"))
    assert (paging.numbers("expert_occupants")[outside] == before[outside]).all()


def test_what_was_missing_is_marked_and_listed() -> None:
    paging = Paging(3)
    paging.use(2)
    used = paging.numbers("experts_used")[2] > 0
    missing = used & (paging.numbers("expert_places")[2] < 0)
    paging.fetch(2)
    assert ((paging.numbers("experts_missed")[2] > 0) == missing).all()
    assert paging.numbers("expert_copies")[0, 0] == missing.sum()


def test_a_step_that_makes_logits_alone_fetches_nothing() -> None:
    paging = Paging(1)
    paging.use(0)
    paging.step.only_logits = True
    before = paging.numbers("expert_places")
    paging.fetch(0)
    assert (paging.numbers("expert_places") == before).all()
