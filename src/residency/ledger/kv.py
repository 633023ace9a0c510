"""The pages of all sequences in all KV groups, taken and given back together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from residency.errors import BudgetError
from residency.ledger.groups import PageCopy, PageGroup, PageKey
from residency.ledger.kept import KeptPages
from residency.ledger.known import Known, KnownPrefixes
from residency.ledger.pages import PagePool
from residency.ledger.prefix import PrefixNode
from residency.ledger.sequence import SequencePages


@dataclass(frozen=True)
class _SwappedTable:
    """A sequence's table whose pages lie in slots."""

    first_page: int
    slots: Sequence[int]


@dataclass
class _Prefix:
    """A sequence's place in the tree: the prefix that it has published or found there."""

    page_key: PageKey
    node: PrefixNode
    num_pages: int = 0


class KvPages:
    """One pool per group; a sequence, known by its number, has one block table in each.

    Pages are shared: by prompts that begin alike, through a tree of prefixes that keeps whole pages until they are
    needed, and by twins, which copy the page that they write to. A prompt's page goes to the next tier where there are
    slots for such pages (`kept`), at the latest when it gives way, and comes back for a prompt that begins with it.
    """

    def __init__(self, groups: Sequence[PageGroup], *, page_tokens: int, kept: KeptPages | None = None) -> None:
        self._groups = tuple(groups)
        self._page_tokens = page_tokens
        self._known = KnownPrefixes(groups, page_tokens=page_tokens, kept=kept)
        self._tree, self._pools = self._known.tree, self._known.pools
        self._slots = tuple(PagePool(group.num_slots) for group in groups)
        self._tables: dict[int, tuple[SequencePages, ...]] = {}
        self._swapped: dict[int, tuple[_SwappedTable, ...]] = {}
        self._prefixes: dict[int, _Prefix] = {}

    @property
    def page_tokens(self) -> int:
        """Tokens of a page."""
        return self._page_tokens

    @property
    def pools(self) -> Sequence[PagePool]:
        """One pool per group, to be counted, not to be taken from."""
        return self._pools

    @property
    def slots(self) -> Sequence[PagePool]:
        """One pool of the next tier's slots per group, to be counted."""
        return self._slots

    @property
    def sequences(self) -> Mapping[int, Sequence[SequencePages]]:
        """The block tables, one per group, of each sequence; a view that follows the ledger."""
        return MappingProxyType(self._tables)

    def begin(self, sequence: int, *, known_tokens: int, page_key: PageKey | None = None) -> int:
        """A new sequence, which holds the pages of the longest prefix that is known and leaves a token to compute;
        how many tokens that is. Without keys it shares nothing, now and later. ValueError for a number in use.

        Pages that come from the next tier are among the next copies; see `take_copies`.
        """
        if sequence in self._tables:
            raise ValueError(f"sequence {sequence} has pages already")
        self._tables[sequence] = self._new_tables()
        if page_key is None:
            return 0
        self._prefixes[sequence] = _Prefix(page_key, self._tree.root)
        found = self._known.match(page_key, self._most_pages(known_tokens))
        return self._adopt(sequence, self._known.affordable(found))

    def catch_up(self, sequence: int, *, computed_tokens: int, known_tokens: int) -> int:
        """Take over what others have published of the sequence's tokens since; the tokens that need no computing now,
        `computed_tokens` where nothing was found.
        """
        prefix = self._prefixes.get(sequence)
        if prefix is None or computed_tokens != prefix.num_pages * self._page_tokens or prefix.node not in self._tree:
            return computed_tokens
        if not self._most_pages(known_tokens) > prefix.num_pages or (
            prefix.page_key(prefix.num_pages) not in prefix.node.children
        ):
            return computed_tokens
        found = self._known.match(prefix.page_key, self._most_pages(known_tokens), in_memory=True)
        return self._adopt(sequence, found) if len(found) > prefix.num_pages else computed_tokens

    def computes_next_page_of(self, sequence: int, other: int, *, known_tokens: int) -> bool:
        """Whether `other`, which has `known_tokens`, is on its way to publish the page that `sequence` needs next."""
        prefix, ahead = self._prefixes.get(sequence), self._prefixes.get(other)
        if prefix is None or ahead is None or ahead.num_pages > prefix.num_pages:
            return False
        page = prefix.num_pages
        if (page + 1) * self._page_tokens > known_tokens or prefix.page_key(page) != ahead.page_key(page):
            return False
        return all(prefix.page_key(each) == ahead.page_key(each) for each in range(page))

    def publish(self, sequence: int, *, computed_tokens: int) -> None:
        """Let others share the sequence's whole pages of its first `computed_tokens`, which have been computed."""
        prefix = self._prefixes.get(sequence)
        if prefix is None or (prefix.num_pages + 1) * self._page_tokens > computed_tokens:
            return
        if prefix.node not in self._tree:
            prefix.node, prefix.num_pages = self._tree.root, 0
        while (prefix.num_pages + 1) * self._page_tokens <= computed_tokens:
            prefix.node = self._tree.grow(prefix.node, prefix.page_key(prefix.num_pages))
            for group, table in enumerate(self._tables[sequence]):
                page = table.page_at(prefix.num_pages)
                if prefix.node.pages[group] is None and page is not None:
                    self._known.put(prefix.node, group=group, page=page)
            prefix.num_pages += 1

    def fork(self, sequence: int, twin: int, *, page_key: PageKey | None = None) -> None:
        """A second sequence of the same tokens, holding the same pages. ValueError for a number in use."""
        if twin in self._tables:
            raise ValueError(f"sequence {twin} has pages already")
        self._tables[twin] = tuple(table.twin() for table in self._tables[sequence])
        prefix = self._prefixes.get(sequence)
        if page_key is not None and prefix is not None:
            self._prefixes[twin] = _Prefix(page_key, prefix.node, prefix.num_pages)

    def swap_out(self, sequence: int, *, computed_tokens: int) -> Sequence[PageCopy]:
        """Give back all pages of a sequence, what was computed going to slots; the copies to be made, in this order.

        BudgetError, and nothing changed, where slots are missing.
        """
        tables = self._tables[sequence]
        num_pages = -(-computed_tokens // self._page_tokens)
        held = [table.pages[: num_pages - table.first_page] for table in tables]
        if any(len(pages) > pool.num_free for pages, pool in zip(held, self._slots, strict=True)):
            raise BudgetError(f"the next tier has too few slots for {computed_tokens} tokens.")
        swapped, copies = [], []
        for group, (table, pages, pool) in enumerate(zip(tables, held, self._slots, strict=True)):
            slots = pool.take(len(pages))
            swapped.append(_SwappedTable(table.first_page, slots))
            copies += [
                PageCopy(group=group, source=page, target=slot, way="out", sequence=sequence)
                for page, slot in zip(pages, slots, strict=True)
            ]
        self.free(sequence)
        self._swapped[sequence] = tuple(swapped)
        return [*self._known.take_copies(), *copies]

    def swap_in(self, sequence: int, *, page_key: PageKey | None = None) -> Sequence[PageCopy]:
        """Bring back a sequence that was swapped out; the copies to be made, in this order.

        BudgetError, and nothing changed, where pages are missing.
        """
        swapped = self._swapped[sequence]
        if any(len(table.slots) > pool.num_free for table, pool in zip(swapped, self._pools, strict=True)):
            raise BudgetError("the KV cache has too few free pages for what was swapped out.")
        copies = []
        self._tables[sequence] = self._new_tables()
        for group, (table, back) in enumerate(zip(self._tables[sequence], swapped, strict=True)):
            table.adopt((), first_page=back.first_page)
            pages = table.grow((back.first_page + len(back.slots)) * self._page_tokens)
            copies += [
                PageCopy(group=group, source=slot, target=page, way="in", sequence=sequence)
                for slot, page in zip(back.slots, pages, strict=True)
            ]
        self.drop_swapped(sequence)
        if page_key is not None:
            self._prefixes[sequence] = _Prefix(page_key, self._tree.root)
        return [*self._known.take_copies(), *copies]

    def drop_swapped(self, sequence: int) -> None:
        """Give back the slots of a sequence that was swapped out; KeyError for one that was not."""
        for table, pool in zip(self._swapped.pop(sequence), self._slots, strict=True):
            for slot in table.slots:
                pool.release(slot)

    def writable_until(self, sequence: int, start_token: int) -> int:
        """Up to which token, at most to a page's end, `extend` from `start_token` on would change nothing. It stays so
        until the sequence is forked or gives pages back.
        """
        return min(table.writable_until(start_token) for table in self._tables[sequence])

    def can_extend(self, sequence: int, *, start_token: int, num_tokens: int) -> bool:
        """Whether `extend` would find its pages."""
        return not any(self._missing(sequence, start_token, num_tokens))

    def extend(self, sequence: int, *, start_token: int, num_tokens: int) -> Sequence[PageCopy]:
        """Make room for tokens start_token … start_token + num_tokens - 1, in every group.

        A sequence not known yet begins here. What slid out of a window before start_token is given back first. Returns
        the copies to be made, in this order, before the tokens are written. BudgetError, and nothing changed in any
        group, where pages are missing.
        """
        missing = self._missing(sequence, start_token, num_tokens)
        if any(missing):
            raise BudgetError(
                f"{sum(missing)} pages of the KV cache are missing for {num_tokens} more tokens; "
                "plan a larger --context or fewer sequences."
            )
        copies = []
        for group, table in enumerate(self._tables.setdefault(sequence, self._new_tables())):
            table.slide(start_token)
            if table.shares(start_token):
                source, target = table.make_own(start_token)
                copies.append(PageCopy(group=group, source=source, target=target))
            table.grow(start_token + num_tokens)
        return [*self._known.take_copies(), *copies]

    def take_copies(self) -> list[PageCopy]:
        """Copies that are to be made before the next step and that no other call has returned: to and from the tier
        that keeps prompts' pages.
        """
        return self._known.take_copies()

    @property
    def has_unsaved(self) -> bool:
        """Whether there are pages of prompts whose turn to go to that tier has not come."""
        return self._known.has_unsaved

    def save_next(self) -> None:
        """Let the page whose turn it is go there with the next copies, if there is one."""
        self._known.save_next()

    def save_cached(self) -> list[PageCopy]:
        """The copies after which that tier has all cached pages of prompts, as far as there are slots."""
        return self._known.save_cached()

    def give_up_cached(self, *, unused_turns: int) -> list[PageCopy]:
        """A turn is over: forget prefixes that nobody has held for so many. The copies to be made before anything is
        written to their pages: to the tier that keeps them, where there is one.
        """
        for pool in self._pools:
            pool.give_up(unused_turns=unused_turns)
        return self._known.take_copies()

    def lose(self, copy: PageCopy) -> None:
        """A copy to or from that tier has failed: it does not keep the page."""
        self._known.lose(copy)

    def can_ever_hold(self, num_tokens: int, *, chunk_tokens: int, num_sequences: int = 1) -> bool:
        """Whether so many sequences alone, each fed at most `chunk_tokens` at a time, can grow to `num_tokens`."""
        needed = self.pages_of(num_tokens, chunk_tokens=chunk_tokens)
        return all(num_sequences * pages <= pool.num_pages for pages, pool in zip(needed, self._pools, strict=True))

    def has_room_for(
        self,
        num_tokens: int,
        *,
        chunk_tokens: int,
        page_key: PageKey | None = None,
        promised: Sequence[int] | None = None,
    ) -> bool:
        """Whether a new sequence, fed at most `chunk_tokens` at a time, can grow to `num_tokens` on free pages and
        those of its known prefix, where of each group so many free pages are promised to others.
        """
        needed = self.pages_of(num_tokens, chunk_tokens=chunk_tokens)
        found = () if page_key is None else self._known.match(page_key, self._most_pages(num_tokens))
        for group, pool in enumerate(self._pools):
            pages = self._known.pages_in(group, found)
            free = pool.num_free - sum(pool.holders(page) == 0 for page in pages)
            if needed[group] - len(pages) > free - (promised[group] if promised else 0):
                return False
        return True

    def pages_of(self, num_tokens: int, *, chunk_tokens: int) -> Sequence[int]:
        """The most pages that a sequence of `num_tokens` holds at any time in each group, fed in chunks."""
        return [
            pages_of_a_sequence(
                num_tokens,
                page_tokens=self._page_tokens,
                window_tokens=group.window_tokens,
                chunk_tokens=chunk_tokens,
            )
            for group in self._groups
        ]

    def free(self, sequence: int) -> None:
        """Give back all pages of a sequence, which is then unknown; KeyError where it already is."""
        for table in self._tables.pop(sequence):
            table.free()
        self._prefixes.pop(sequence, None)

    def _new_tables(self) -> tuple[SequencePages, ...]:
        return tuple(
            SequencePages(pool, page_tokens=self._page_tokens, window_tokens=group.window_tokens)
            for group, pool in zip(self._groups, self._pools, strict=True)
        )

    def _missing(self, sequence: int, start_token: int, num_tokens: int) -> list[int]:
        tables = self._tables.get(sequence) or self._new_tables()
        missing = []
        for table, pool in zip(tables, self._pools, strict=True):
            needed = table.pages_to_grow(start_token + num_tokens) + table.shares(start_token) - pool.num_free
            if needed > 0:
                gone = table.pages[: table.pages_to_slide(start_token)]
                needed -= sum(pool.holders(page) == 1 for page in gone)
            missing.append(max(0, needed))
        return missing

    def _most_pages(self, known_tokens: int) -> int:
        """Whole pages before the last known token, which is always computed."""
        return (known_tokens - 1) // self._page_tokens

    def _adopt(self, sequence: int, path: Sequence[Known]) -> int:
        """Let a sequence hold the pages of a prefix in place of those that it has; the prefix's tokens."""
        node, num_pages = self._known.place_of(path)
        pages = self._known.hold(path, sequence=sequence)
        for table in self._tables[sequence]:
            table.free()
        tables = self._new_tables()
        for group, table in enumerate(tables):
            table.begin_with(pages[group], first_page=self._known.first_page(group, len(path)))
        self._tables[sequence] = tables
        prefix = self._prefixes[sequence]
        prefix.node, prefix.num_pages = node, num_pages
        return len(path) * self._page_tokens


def pages_of_a_sequence(num_tokens: int, *, page_tokens: int, window_tokens: int | None, chunk_tokens: int) -> int:
    """The most pages of one group that a sequence of `num_tokens` holds at any time, fed in chunks.

    A window spans its own tokens and the chunk that is being written, which may begin inside a page of several tokens.
    """
    all_pages = -(-num_tokens // page_tokens)
    if window_tokens is None:
        return all_pages
    return min(all_pages, -(-(window_tokens + chunk_tokens) // page_tokens) + (page_tokens > 1))
