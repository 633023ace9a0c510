"""The pages of one sequence in one KV group: its block table."""

from collections.abc import Sequence

from residency.ledger.pages import PagePool


class SequencePages:
    """Pages of consecutive tokens. Token t lies in `pages[t // page_tokens - first_page]`.

    In a group with a window, a token sees itself and window_tokens - 1 tokens before it; pages that no later
    token can see are given back by `slide`, and `first_page` tells how many that were.
    """

    def __init__(self, pool: PagePool, *, page_tokens: int, window_tokens: int | None = None) -> None:
        if page_tokens < 1 or (window_tokens is not None and window_tokens < 1):
            raise ValueError("pages and windows hold at least one token")
        self._pool = pool
        self._page_tokens = page_tokens
        self._window_tokens = window_tokens
        self._first_page = 0
        self._pages: list[int] = []
        self.version = 0  # another one after each change

    @property
    def pages(self) -> Sequence[int]:
        """Page numbers in the pool, in the order of their tokens. A copy."""
        return tuple(self._pages)

    @property
    def first_page(self) -> int:
        """How many of the sequence's pages have slid out of the window."""
        return self._first_page

    @property
    def capacity_tokens(self) -> int:
        """Tokens from the sequence's start that the pages reach."""
        return (self._first_page + len(self._pages)) * self._page_tokens

    def page_at(self, index: int) -> int | None:
        """The page with so many of the sequence's pages before it; None where it has slid out or is not held yet."""
        place = index - self._first_page
        return self._pages[place] if 0 <= place < len(self._pages) else None

    def pages_to_grow(self, num_tokens: int) -> int:
        """Pages that `grow` would take."""
        return max(0, -(-(num_tokens - self.capacity_tokens) // self._page_tokens))

    def pages_to_slide(self, num_tokens: int) -> int:
        """Pages that `slide` would give up."""
        if self._window_tokens is None:
            return 0
        first_visible = max(0, num_tokens - self._window_tokens + 1) // self._page_tokens
        return min(max(0, first_visible - self._first_page), len(self._pages))

    def grow(self, num_tokens: int) -> Sequence[int]:
        """Reach `num_tokens` tokens from the sequence's start; the pages that were added.

        BudgetError, and nothing changed, where the pool has too few.
        """
        added = self._pool.take(self.pages_to_grow(num_tokens))
        self._pages.extend(added)
        self.version += 1
        return added

    def slide(self, num_tokens: int) -> int:
        """Give back the pages that token number `num_tokens` and later ones cannot see; how many that were."""
        num_gone = self.pages_to_slide(num_tokens)
        for page in self._pages[:num_gone]:
            self._pool.release(page)
        del self._pages[:num_gone]
        self._first_page += num_gone
        self.version += 1
        return num_gone

    def adopt(self, pages: Sequence[int], *, first_page: int) -> None:
        """Begin with pages that others hold or the pool has cached; ValueError where this table is not empty."""
        for page in pages:
            self._pool.share(page)
        self.begin_with(pages, first_page=first_page)

    def begin_with(self, pages: Sequence[int], *, first_page: int) -> None:
        """Begin with pages that were taken for this table; ValueError where it is not empty."""
        if self._pages or self._first_page:
            raise ValueError("only an empty table can begin with pages")
        self._pages.extend(pages)
        self._first_page = first_page
        self.version += 1

    def twin(self) -> "SequencePages":
        """A second table that holds the same pages; whoever writes to one of them makes it its own before."""
        twin = SequencePages(self._pool, page_tokens=self._page_tokens, window_tokens=self._window_tokens)
        twin.adopt(self._pages, first_page=self._first_page)
        return twin

    def shares(self, token: int) -> bool:
        """Whether the page of `token` is held by others as well; no page is none's."""
        place = token // self._page_tokens - self._first_page
        return 0 <= place < len(self._pages) and self._pool.holders(self._pages[place]) > 1

    def writable_until(self, start_token: int) -> int:
        """Up to which token, at most to its page's end, those from `start_token` on can be written as things are: no
        page to take, to copy or to give back before; `start_token` where it cannot.
        """
        page = start_token // self._page_tokens
        place, end_token = page - self._first_page, (page + 1) * self._page_tokens
        if self._window_tokens is not None:
            end_token = min(end_token, self._window_tokens - 1 + (self._first_page + 1) * self._page_tokens)
        is_own = 0 <= place < len(self._pages) and self._pool.holders(self._pages[place]) == 1
        return max(start_token, end_token) if is_own else start_token

    def make_own(self, token: int) -> tuple[int, int]:
        """Put a free page in the place of the one of `token`: (the page before, the page now). Its content is the
        caller's to copy. BudgetError, and nothing changed, where no page is free.
        """
        place = token // self._page_tokens - self._first_page
        shared, (own,) = self._pages[place], self._pool.take()
        self._pages[place] = own
        self.version += 1
        self._pool.release(shared)
        return shared, own

    def free(self) -> None:
        """Give back every page; the sequence is empty again."""
        for page in reversed(self._pages):
            self._pool.release(page)
        self._pages.clear()
        self._first_page = 0
        self.version += 1
