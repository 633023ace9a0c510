"""The pages of all sequences in all KV groups, taken and given back together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from residency.errors import BudgetError
from residency.ledger.pages import PagePool
from residency.ledger.sequence import SequencePages


@dataclass(frozen=True, kw_only=True)
class PageGroup:
    """Layers that hand out their pages together."""

    num_pages: int
    window_tokens: int | None = None


class KvPages:
    """One pool per group; a sequence, known by its number, has one block table in each."""

    def __init__(self, groups: Sequence[PageGroup], *, page_tokens: int) -> None:
        self._groups = tuple(groups)
        self._page_tokens = page_tokens
        self._pools = tuple(PagePool(group.num_pages) for group in groups)
        self._tables: dict[int, tuple[SequencePages, ...]] = {}

    @property
    def page_tokens(self) -> int:
        """Tokens of a page."""
        return self._page_tokens

    @property
    def pools(self) -> Sequence[PagePool]:
        """One pool per group, to be counted, not to be taken from."""
        return self._pools

    @property
    def sequences(self) -> Mapping[int, Sequence[SequencePages]]:
        """The block tables, one per group, of each sequence; a view that follows the ledger."""
        return MappingProxyType(self._tables)

    def can_extend(self, sequence: int, *, start_token: int, num_tokens: int) -> bool:
        """Whether `extend` would find its pages."""
        return all(missing == 0 for missing in self._missing(sequence, start_token, num_tokens))

    def extend(self, sequence: int, *, start_token: int, num_tokens: int) -> None:
        """Make room for tokens start_token … start_token + num_tokens - 1, in every group.

        A sequence not known yet begins here. What slid out of a window before start_token is given back first.
        BudgetError, and nothing changed in any group, where pages are missing.
        """
        missing = self._missing(sequence, start_token, num_tokens)
        if any(missing):
            raise BudgetError(
                f"{sum(missing)} pages of the KV cache are missing for {num_tokens} more tokens; "
                "plan a larger --context or fewer sequences."
            )
        tables = self._tables.setdefault(sequence, self._new_tables())
        for table in tables:
            table.slide(start_token)
            table.grow(start_token + num_tokens)

    def can_ever_hold(self, num_tokens: int, *, chunk_tokens: int) -> bool:
        """Whether one sequence alone, fed at most `chunk_tokens` at a time, can grow to `num_tokens`."""
        needed = self._pages_of_a_sequence(num_tokens, chunk_tokens)
        return all(pages <= group.num_pages for pages, group in zip(needed, self._groups, strict=True))

    def has_room_for(self, num_tokens: int, *, chunk_tokens: int) -> bool:
        """Whether a new sequence, fed at most `chunk_tokens` at a time, can grow to `num_tokens` on free pages."""
        needed = self._pages_of_a_sequence(num_tokens, chunk_tokens)
        return all(pages <= pool.num_free for pages, pool in zip(needed, self._pools, strict=True))

    def free(self, sequence: int) -> None:
        """Give back all pages of a sequence, which is then unknown; KeyError where it already is."""
        for table in self._tables.pop(sequence):
            table.free()

    def _new_tables(self) -> tuple[SequencePages, ...]:
        return tuple(
            SequencePages(pool, page_tokens=self._page_tokens, window_tokens=group.window_tokens)
            for group, pool in zip(self._groups, self._pools, strict=True)
        )

    def _pages_of_a_sequence(self, num_tokens: int, chunk_tokens: int) -> list[int]:
        return [
            pages_of_a_sequence(
                num_tokens,
                page_tokens=self._page_tokens,
                window_tokens=group.window_tokens,
                chunk_tokens=chunk_tokens,
            )
            for group in self._groups
        ]

    def _missing(self, sequence: int, start_token: int, num_tokens: int) -> list[int]:
        tables = self._tables.get(sequence) or self._new_tables()
        missing = []
        for table, pool in zip(tables, self._pools, strict=True):
            gone = [page for page in table.pages[: table.pages_to_slide(start_token)] if pool.holders(page) == 1]
            needed = table.pages_to_grow(start_token + num_tokens)
            missing.append(max(0, needed - pool.num_free - len(gone)))
        return missing


def pages_of_a_sequence(num_tokens: int, *, page_tokens: int, window_tokens: int | None, chunk_tokens: int) -> int:
    """The most pages of one group that a sequence of `num_tokens` holds at any time, fed in chunks.

    A window spans its own tokens and the chunk that is being written, which may begin inside a page.
    """
    all_pages = -(-num_tokens // page_tokens)
    if window_tokens is None:
        return all_pages
    return min(all_pages, -(-(window_tokens + chunk_tokens) // page_tokens) + 1)
