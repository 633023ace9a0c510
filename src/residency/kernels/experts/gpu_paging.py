"""Experts that are not on the device: which slots they come to, and their way there, all inside a step.

What a router chooses never has to reach the host: a program looks at which experts are wanted and not there, gives them
slots in the order that the host has laid down before the step, passing over experts that are needed just then, and
other programs copy them, reading pinned RAM over PCIe themselves (S. W. Min et al.: EMOGI, VLDB 2020, reach the link's
rate so). A CUDA graph can hold all of it. Between steps the host reads who was used, and orders the slots anew.

Where RAM has no room for all experts either, the host reads the list of those that a step asks for, between finding
their slots and copying them, and brings what is missing from the disk. Guesses are copied from RAM alone: the disk is
so much slower than a layer's products that reading ahead of it saves nothing that a wrong guess would not cost.
"""

from functools import partial

import triton
import triton.language as tl

from residency.kernels.device import DevicePaged, DeviceStep, Tensor
from residency.kernels.device_language import power_of_two

ASKED, GUESSED = 0, 1  # rows of "expert_copies"
_COPY_WORDS = 1024  # of eight bytes, that one program moves at a time: 64 bytes a lane in flight
_MOST_PROGRAMS = 64  # that copy side by side: half a megabyte under way, several times what a PCIe link delays


def bring(step: DeviceStep, paged: DevicePaged, wanted: Tensor, marks: Tensor, *, kept: Tensor, row: int) -> None:
    """Start what brings the layer's `wanted` experts (numbers above 0) that are not there, and set their `marks` to 2.
    Of the mixture before, those that are `kept` stay. `row`: ASKED or GUESSED.
    """
    buffers = step.buffers
    order, copies = buffers["expert_order"], buffers["expert_copies"][row]
    take_places[(1,)](
        wanted,
        kept,
        buffers["expert_places"],
        buffers["expert_occupants"],
        order,
        buffers["expert_turn"],
        copies,
        marks,
        paged.table if row == GUESSED else None,
        paged.first,
        paged.before * wanted.shape[0],
        wanted.shape[0],
        order.shape[0],
        EXPERTS=power_of_two(wanted.shape[0]),
        WINDOW=power_of_two(order.shape[0]),
        num_warps=4,
    )
    if row == ASKED and paged.read is not None:
        step.between(partial(paged.read, copies))
    copy_experts(paged.homes, paged.slots, copies, paged.words, step.multiprocessors, paged.table)


def copy_experts(
    homes: Tensor, slots: Tensor, copies: Tensor, words: int, multiprocessors: int, table: Tensor | None = None
) -> None:
    """Copy experts of homes (homes, words) in RAM to slots (slots, words) on the device: as many as copies[0] says,
    those that come next in `copies`, to the slots whose numbers are behind those of all experts. An expert's home is
    that of its number, or of what `table` (experts,) has for it.
    """
    programs = min(_MOST_PROGRAMS, multiprocessors)
    experts = (copies.shape[0] - 1) // 2
    strides = homes.stride(0), slots.stride(0)
    _copy_experts[(programs,)](homes, slots, copies, table, experts, words, *strides, BLOCK=_COPY_WORDS, num_warps=4)


@triton.jit
def take_places(
    wanted,
    kept,
    places,
    occupants,
    order,
    turn,
    copies,
    marks,
    table,
    first,
    kept_first,
    experts,
    window,
    EXPERTS: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Give each wanted expert that is not there the next slot whose expert nobody needs, and list it in `copies`. With
    a `table`, only those that have a home in RAM.
    """
    expert = tl.arange(0, EXPERTS)
    inside = expert < experts
    asked = tl.load(wanted + expert, mask=inside, other=0) > 0
    missing = asked & (tl.load(places + first + expert, mask=inside, other=0) < 0)
    if table is not None:
        missing = missing & (tl.load(table + expert, mask=inside, other=-1) >= 0)
    count = tl.sum(missing.to(tl.int32))
    tl.store(copies, count)
    if count == 0:
        return
    tl.store(copies + 1 + tl.cumsum(missing.to(tl.int32), 0) - 1, expert, mask=missing)
    tl.store(marks + expert, tl.full((EXPERTS,), 2, tl.int32), mask=missing)

    start = tl.load(turn)
    place = tl.arange(0, WINDOW)
    slot = tl.load(order + (start + place) % window, mask=place < window, other=0)
    held = tl.load(occupants + slot, mask=place < window, other=-1)
    mine, beside = held - first, held - kept_first
    is_mine, is_beside = (mine >= 0) & (mine < experts), (beside >= 0) & (beside < experts)
    needed = tl.load(wanted + mine, mask=is_mine, other=0) + tl.load(kept + beside, mask=is_beside, other=0)
    free = (place < window) & (needed == 0)
    rank = tl.cumsum(free.to(tl.int32), 0) - 1
    taken = free & (rank < count)
    tl.debug_barrier()  # the list is written before it is read
    comes = tl.load(copies + 1 + rank, mask=taken, other=0)
    tl.store(places + held, tl.full((WINDOW,), -1, tl.int32), mask=taken & (held >= 0))
    tl.store(places + first + comes, slot, mask=taken)
    tl.store(occupants + slot, first + comes, mask=taken)
    tl.store(copies + 1 + experts + rank, slot, mask=taken)
    tl.store(turn, (start + tl.max(tl.where(taken, place, 0)) + 1) % window)


@triton.jit
def _copy_experts(homes, slots, copies, table, experts, words, home_words, slot_words, BLOCK: tl.constexpr):
    """The programs share each expert, one after another."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    step = tl.num_programs(0) * BLOCK
    for each in range(0, tl.load(copies)):
        home = tl.load(copies + 1 + each)
        if table is not None:
            home = tl.load(table + home)
        source = homes + home.to(tl.int64) * home_words
        target = slots + tl.load(copies + 1 + experts + each).to(tl.int64) * slot_words
        for start in range(0, words, step):
            at = start + place
            tl.store(target + at, tl.load(source + at, mask=at < words, other=0), mask=at < words)


@triton.jit
def mark_guesses(logits, positions, guessed, experts, stride, PER_TOKEN: tl.constexpr, BLOCK: tl.constexpr):
    """guessed (experts,) = 1 for a token's likeliest experts. Rows of padding guess nothing."""
    token = tl.program_id(0).to(tl.int64)
    if tl.load(positions + token) < 0:
        return
    index = tl.arange(0, BLOCK)
    left = tl.load(logits + token * stride + index, mask=index < experts, other=float("-inf")).to(tl.float32)
    for _ in tl.static_range(PER_TOKEN):
        expert = tl.minimum(tl.min(tl.where(left == tl.max(left), index, BLOCK)), experts - 1)
        tl.store(guessed + expert, 1)
        left = tl.where(index == expert, float("-inf"), left)
