"""Prefixes that somebody has computed: where their pages are, in memory or in the next tier."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from residency.ledger.groups import PageCopy, PageGroup, PageKey
from residency.ledger.kept import EMPTY_PREFIX, KeptPages, chained
from residency.ledger.pages import PagePool
from residency.ledger.prefix import PrefixNode, PrefixTree


@dataclass(frozen=True)
class Known:
    """One page of a known prefix: its place in the tree, and the digest by which the next tier knows it."""

    node: PrefixNode | None
    digest: bytes

    def page(self, group: int) -> int | None:
        """The page in memory that holds it."""
        return None if self.node is None else self.node.pages[group]


class KnownPrefixes:
    """The pools of all groups, the tree of what their pages hold, and what the next tier keeps (`kept`).

    A prompt's page goes to the next tier in its turn (`save_next`), or when it gives way to something else; what is
    brought back from there is a copy.
    """

    def __init__(self, groups: Sequence[PageGroup], *, page_tokens: int, kept: KeptPages | None) -> None:
        self._groups = tuple(groups)
        self._page_tokens = page_tokens
        self._kept = kept
        self._pending: list[PageCopy] = []
        self._unsaved: dict[tuple[int, int], None] = {}  # groups and pages, the longest known first
        self.tree = PrefixTree(len(self._groups), with_digests=kept is not None)
        self.pools = tuple(
            PagePool(group.num_pages, forgotten=partial(self._forget, index)) for index, group in enumerate(groups)
        )

    def match(self, page_key: PageKey, num_pages: int, *, in_memory: bool = False) -> Sequence[Known]:
        """The longest known prefix, of at most `num_pages`, after which everything that the next token can see is kept,
        somewhere or in memory alone.
        """
        kept = None if in_memory else self._kept
        node: PrefixNode | None = self.tree.root
        digest, length = EMPTY_PREFIX, 0
        path: list[Known] = []
        known_since = [0] * len(self._groups)
        for page in range(num_pages):
            key = page_key(page)
            node = None if node is None else node.children.get(key)
            if node is None and kept is None:
                break
            digest = chained(digest, key) if node is None else node.digest
            path.append(Known(node, digest))
            held = [
                path[-1].page(group) is not None or (kept is not None and kept.holds(group, digest))
                for group in range(len(self._groups))
            ]
            if node is None and not any(held):
                break
            known_since = [since if each else page + 1 for since, each in zip(known_since, held, strict=True)]
            if all(since <= self.first_page(group, page + 1) for group, since in enumerate(known_since)):
                length = page + 1
        return path[:length]

    def affordable(self, path: Sequence[Known]) -> Sequence[Known]:
        """The prefix where there are free pages for what is to be brought in; else its beginning that is in memory."""
        for group, pool in enumerate(self.pools):
            pages = self.pages_in(group, path)
            missing = len(path) - self.first_page(group, len(path)) - len(pages)
            if missing > pool.num_free - sum(pool.holders(page) == 0 for page in pages):
                return path[: self._pages_in_memory(path)]
        return path

    def pages_in(self, group: int, path: Sequence[Known]) -> list[int]:
        """The pages in memory, of a prefix, that its next token can see."""
        pages = [known.page(group) for known in path[self.first_page(group, len(path)) :]]
        return [page for page in pages if page is not None]

    def first_page(self, group: int, num_pages: int) -> int:
        """The first page that a token after `num_pages` whole pages can see."""
        window_tokens = self._groups[group].window_tokens
        if window_tokens is None:
            return 0
        return max(0, num_pages * self._page_tokens - window_tokens + 1) // self._page_tokens

    def hold(self, path: Sequence[Known], *, sequence: int) -> Sequence[Sequence[int]]:
        """A page of each group for each of the prefix's that its next token can see, held once more; those that are not
        in memory are among the next copies.
        """
        for group, pool in enumerate(self.pools):
            for page in self.pages_in(group, path):
                pool.share(page)
        return [
            [self._brought(sequence, group, known) for known in path[self.first_page(group, len(path)) :]]
            for group in range(len(self._groups))
        ]

    def place_of(self, path: Sequence[Known]) -> tuple[PrefixNode, int]:
        """Where in the tree a sequence that holds the prefix goes on publishing, and how many pages that is in."""
        first_brought = next((i for i, known in enumerate(path) if self._is_brought(i, known, len(path))), len(path))
        node = path[first_brought - 1].node if first_brought else self.tree.root
        return (node, first_brought) if node is not None else (self.tree.root, 0)

    def put(self, node: PrefixNode, *, group: int, page: int) -> None:
        """From now on `page`, which is used, holds the node's last page in `group`; it is remembered."""
        self.tree.put(node, group=group, page=page)
        self.pools[group].remember(page)
        if self._is_wanted(node):
            self._unsaved[group, page] = None

    @property
    def has_unsaved(self) -> bool:
        """Whether there are pages of prompts whose turn to go to the next tier has not come."""
        return bool(self._unsaved)

    def save_next(self) -> None:
        """Let the page whose turn it is go to the next tier with the next copies."""
        if self._unsaved:
            group, page = next(iter(self._unsaved))
            self._save(group, page)

    def take_copies(self) -> list[PageCopy]:
        """Copies that nobody has been told of yet: of pages from the next tier, and of those that go there."""
        copies, self._pending = self._pending, []
        return copies

    def save_cached(self) -> list[PageCopy]:
        """The copies that put all cached pages of prompts, the longest unused first, into the next tier, as far as it
        has slots. They stay where they are, too.
        """
        for group, pool in enumerate(self.pools):
            for page in pool.cached:
                self._save(group, page)
        return self.take_copies()

    def lose(self, copy: PageCopy) -> None:
        """The copy of a page that the next tier keeps, or was to, has failed: the tier does not hold it."""
        if self._kept is not None:
            self._kept.drop(copy.group, copy.digest)

    def _is_brought(self, index: int, known: Known, num_pages: int) -> bool:
        return known.node is None or any(
            known.page(group) is None and index >= self.first_page(group, num_pages)
            for group in range(len(self._groups))
        )

    def _pages_in_memory(self, path: Sequence[Known]) -> int:
        groups = range(len(self._groups))
        found = (index for index, known in enumerate(path) if None in [known.page(group) for group in groups])
        return next(found, len(path))

    def _brought(self, sequence: int, group: int, known: Known) -> int:
        """The page in memory, or one that the content is brought into.

        Where taking that page has the next tier give up the very content, the copy will not find it and fails.
        """
        page = known.page(group)
        if page is not None:
            return page
        assert self._kept is not None, "what is not in memory is in the next tier"
        slot = self._kept.use(group, known.digest)
        (page,) = self.pools[group].take()
        copy = PageCopy(group=group, source=slot, target=page, way="load", sequence=sequence, digest=known.digest)
        self._pending.append(copy)
        return page

    def _forget(self, group: int, page: int) -> None:
        self._save(group, page)
        self.tree.remove(group=group, page=page)

    def _save(self, group: int, page: int) -> None:
        """Keep a page in the next tier, if that wants it."""
        self._unsaved.pop((group, page), None)
        node = self.tree.node_of(group=group, page=page)
        if self._kept is None or not self._is_wanted(node):
            return
        slot = self._kept.keep(group, node.digest)
        if slot is not None:
            copy = PageCopy(group=group, source=page, target=slot, way="save", digest=node.digest)
            self._pending.append(copy)

    def _is_wanted(self, node: PrefixNode) -> bool:
        """Whether there is a next tier, and the page is a prompt's: others' are never asked for."""
        return self._kept is not None and not node.key[0]
