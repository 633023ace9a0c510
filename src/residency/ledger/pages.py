"""The pages of one KV group: which are free, and how many sequences hold each of the others."""

from residency.errors import BudgetError


class PagePool:
    """Page numbers 0 … num_pages - 1. A freed page is the next one reused, so that few pages are ever touched."""

    def __init__(self, num_pages: int) -> None:
        if num_pages < 0:
            raise ValueError(f"a pool cannot have {num_pages} pages")
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._peak_used = 0

    @property
    def num_pages(self) -> int:
        """All pages, free or used."""
        return len(self._holders)

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages that somebody holds, each counted once."""
        return len(self._holders) - len(self._free)

    @property
    def peak_used(self) -> int:
        """The most pages ever used at one time."""
        return self._peak_used

    def holders(self, page: int) -> int:
        """How many hold the page; 0 when it is free."""
        return self._holders[page]

    def take(self, num_pages: int = 1) -> list[int]:
        """Free pages, now held once each. BudgetError, and nothing taken, where fewer are free."""
        if num_pages < 0:
            raise ValueError(f"{num_pages} pages cannot be taken")
        if num_pages > len(self._free):
            raise BudgetError(
                f"{num_pages} pages of the KV cache are needed and {len(self._free)} of {self.num_pages} are free: "
                f"{num_pages - len(self._free)} are missing; plan a larger --context or fewer sequences."
            )
        taken = [self._free.pop() for _ in range(num_pages)]
        for page in taken:
            self._holders[page] = 1
        self._peak_used = max(self._peak_used, self.num_used)
        return taken

    def share(self, page: int) -> None:
        """One more holder of a used page; ValueError for a free one."""
        self._require_used(page)
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """One holder fewer; the page of the last one is free. ValueError where it already is."""
        self._require_used(page)
        self._holders[page] -= 1
        if self._holders[page] == 0:
            self._free.append(page)

    def _require_used(self, page: int) -> None:
        if not 0 <= page < len(self._holders):
            raise ValueError(f"page {page} is not one of {len(self._holders)}")
        if self._holders[page] == 0:
            raise ValueError(f"page {page} is free")
