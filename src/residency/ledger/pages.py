"""The pages of one KV group: which are free, and how many sequences hold each of the others."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from residency.errors import BudgetError


class PagePool:
    """Page numbers 0 … num_pages - 1. A freed page is the next one reused, so that few pages are ever touched.

    A page that is remembered keeps its content when its last holder leaves: it is cached, as good as free, and taken
    only after all other free pages, the longest unused first.
    """

    def __init__(self, num_pages: int, *, forgotten: Callable[[int], None] | None = None) -> None:
        """`forgotten` is told each cached page that is taken for something else."""
        if num_pages < 0:
            raise ValueError(f"a pool cannot have {num_pages} pages")
        self._free = list(range(num_pages - 1, -1, -1))
        self._cached: OrderedDict[int, int] = OrderedDict()  # with the turn in which it was last held
        self._turn = 0
        self._remembered: set[int] = set()
        self._holders = [0] * num_pages
        self._forgotten = forgotten
        self._num_shared = 0
        self._peak_used = 0

    @property
    def num_pages(self) -> int:
        """All pages, free or used."""
        return len(self._holders)

    @property
    def free_pages(self) -> Sequence[int]:
        """Pages that nobody holds and whose content nobody remembers."""
        return tuple(self._free)

    @property
    def num_free(self) -> int:
        """Pages that nobody holds, cached ones among them."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Pages that nobody holds and whose content is remembered."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Pages that somebody holds, each counted once."""
        return len(self._holders) - self.num_free

    @property
    def num_shared(self) -> int:
        """Pages that more than one hold."""
        return self._num_shared

    @property
    def peak_used(self) -> int:
        """The most pages ever used or cached at one time."""
        return self._peak_used

    def holders(self, page: int) -> int:
        """How many hold the page; 0 when it is free."""
        return self._holders[page]

    def take(self, num_pages: int = 1) -> list[int]:
        """Free pages, now held once each. BudgetError, and nothing taken, where fewer are free."""
        if num_pages < 0:
            raise ValueError(f"{num_pages} pages cannot be taken")
        if num_pages > self.num_free:
            raise BudgetError(
                f"{num_pages} pages of the KV cache are needed and {self.num_free} of {self.num_pages} are free: "
                f"{num_pages - self.num_free} are missing; plan a larger --context or fewer sequences."
            )
        taken = [self._free.pop() if self._free else self._reused() for _ in range(num_pages)]
        for page in taken:
            self._holders[page] = 1
        self._peak_used = max(self._peak_used, self.num_used + self.num_cached)
        return taken

    def share(self, page: int) -> None:
        """One more holder of a used or cached page; ValueError for another."""
        if page not in self._cached:
            self._require_used(page)
        self._cached.pop(page, None)
        self._holders[page] += 1
        self._num_shared += self._holders[page] == 2

    def release(self, page: int) -> None:
        """One holder fewer; the page of the last one is cached where it is remembered, else free. ValueError where it
        already is.
        """
        self._require_used(page)
        self._holders[page] -= 1
        self._num_shared -= self._holders[page] == 1
        if self._holders[page] == 0:
            if page in self._remembered:
                self._cached[page] = self._turn
            else:
                self._free.append(page)

    @property
    def cached(self) -> Sequence[int]:
        """Pages that nobody holds and whose content is remembered, the longest unused first."""
        return tuple(self._cached)

    def remember(self, page: int) -> None:
        """Keep a used page's content after its last holder; ValueError for one that nobody holds."""
        self._require_used(page)
        self._remembered.add(page)

    def give_up(self, *, unused_turns: int) -> None:
        """A turn is over: cached pages that nobody has held for so many are free, and their content forgotten."""
        self._turn += 1
        while self._cached and self._turn - next(iter(self._cached.values())) > unused_turns:
            self._free.append(self._reused())

    def _reused(self) -> int:
        page, _ = self._cached.popitem(last=False)
        self._remembered.discard(page)
        if self._forgotten is not None:
            self._forgotten(page)
        return page

    def _require_used(self, page: int) -> None:
        if not 0 <= page < len(self._holders):
            raise ValueError(f"page {page} is not one of {len(self._holders)}")
        if self._holders[page] == 0:
            raise ValueError(f"page {page} is free")
