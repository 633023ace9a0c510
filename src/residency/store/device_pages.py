"""Pages of preempted sequences in pinned RAM: a device copies them there and back, and nobody waits for it."""

from collections.abc import Sequence
from itertools import accumulate

import torch

from residency.ledger import PageCopy
from residency.planner.plan import KvGroup
from residency.store.pinned import PinnedBytes


class PinnedPages:
    """Slots in RAM for the pages of each KV group, a page with all layers of its group."""

    def __init__(self, groups: Sequence[KvGroup], slots: Sequence[int], device: str) -> None:
        """`slots` of each group. MachineError where so much RAM cannot be pinned."""
        page_bytes = [group.page_bytes * len(group.layers) for group in groups]
        ends = list(accumulate(num * each for num, each in zip(slots, page_bytes, strict=True)))
        self._pinned = PinnedBytes(ends[-1], device)
        self._slots = [
            self._pinned.tensor[end - num * each : end].view(num, each)
            for end, num, each in zip(ends, slots, page_bytes, strict=True)
        ]

    def close(self) -> None:
        """Let the RAM go; no copy is under way any more."""
        self._pinned.close()

    def copy(self, copy: PageCopy, pages_LPB: torch.Tensor) -> None:
        """Start a copy to a slot ("out") or from one ("in") of a group's pages (layers, pages, bytes), after all that
        has been started on the device, and before what is started next.
        """
        if copy.way == "out":
            page = pages_LPB[:, copy.source].contiguous()
            self._slots[copy.group][copy.target].copy_(page.view(-1), non_blocking=True)
        else:
            page = self._slots[copy.group][copy.source].to(pages_LPB.device, non_blocking=True)
            pages_LPB[:, copy.target] = page.view(pages_LPB.shape[0], -1)
