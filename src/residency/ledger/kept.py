"""Which pages of prompts the next tier keeps. They are known by what they hold, so they outlive the process."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DIGEST_BYTES = 16
EMPTY_PREFIX = b""  # stands for the digest of no tokens


def chained(prefix: bytes, key: bytes) -> bytes:
    """Names a prefix that is one page longer: by the digest of what is before the page, and the page's key."""
    return hashlib.blake2b(prefix + key, digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, kw_only=True)
class KeptPage:
    """A page of a group, by the digest of all tokens up to its end, and the slot that it lies in."""

    group: int
    digest: bytes
    slot: int


class KeptPages:
    """The slots of each group, some of them with a page. Where none is free, the longest unused is given to another."""

    def __init__(self, num_slots: Sequence[int], kept: Iterable[KeptPage] = ()) -> None:
        """`kept` from earlier on; of two of one digest, or in one slot, the later is forgotten."""
        self._slots: list[OrderedDict[bytes, int]] = [OrderedDict() for _ in num_slots]
        free = [set(range(count)) for count in num_slots]
        for page in kept:
            if page.slot in free[page.group] and page.digest not in self._slots[page.group]:
                free[page.group].discard(page.slot)
                self._slots[page.group][page.digest] = page.slot
        self._free = [sorted(slots, reverse=True) for slots in free]
        self.num_slots = sum(num_slots)

    @property
    def num_kept(self) -> int:
        """Pages that are kept, of all groups."""
        return sum(len(slots) for slots in self._slots)

    def holds(self, group: int, digest: bytes) -> bool:
        """Whether the page is kept."""
        return digest in self._slots[group]

    def use(self, group: int, digest: bytes) -> int:
        """The slot of a page that is kept, which is the last one used now; KeyError for another."""
        self._slots[group].move_to_end(digest)
        return self._slots[group][digest]

    def keep(self, group: int, digest: bytes) -> int | None:
        """The slot for a page that is new here; None where it is kept already, or there are no slots."""
        slots, free = self._slots[group], self._free[group]
        if digest in slots:
            slots.move_to_end(digest)
            return None
        if not (free or slots):
            return None
        slot = free.pop() if free else slots.popitem(last=False)[1]
        slots[digest] = slot
        return slot

    def drop(self, group: int, digest: bytes) -> None:
        """The page could not be written or read: forget it. Nothing happens where it has been already."""
        slot = self._slots[group].pop(digest, None)
        if slot is not None:
            self._free[group].append(slot)
