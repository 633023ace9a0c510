"""What the pages of the KV cache are described by: their groups, the keys of their tokens, and copies of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from residency.ledger.kept import EMPTY_PREFIX

# Names the tokens of a sequence's page with so many pages before it: equal keys, after equal keys, are equal tokens. A
# key begins with the number of its tokens that were sampled.
PageKey = Callable[[int], bytes]


@dataclass(frozen=True, kw_only=True)
class PageGroup:
    """Layers that hand out their pages together."""

    num_pages: int
    window_tokens: int | None = None
    num_slots: int = 0  # pages that the next tier has room for


@dataclass(frozen=True, kw_only=True)
class PageCopy:
    """What a page holds in all layers of a group, wanted elsewhere before anything is written there: in another page,
    or "out" in a slot of the next tier; or what a slot holds, wanted "in" a page. "save" and "load" are the same for
    pages of prompts that are kept for others, with their digest.
    """

    group: int
    source: int
    target: int
    way: Literal["within", "out", "in", "save", "load"] = "within"
    sequence: int | None = None  # whose page it is, where that sequence would have to begin anew without the copy
    digest: bytes = EMPTY_PREFIX
