"""Which pages hold which prefixes: a radix tree whose edges are whole pages of tokens.

L. Zheng et al.: SGLang, efficient execution of structured language model programs (2024), for the tree.
"""

from residency.ledger.kept import EMPTY_PREFIX, chained


class PrefixNode:
    """A prefix that ends with a page. `pages` has its last page in each KV group, None where that is not kept."""

    __slots__ = ("children", "digest", "key", "pages", "parent")

    def __init__(self, parent: "PrefixNode | None", key: bytes, digest: bytes, num_groups: int) -> None:
        self.parent = parent
        self.key = key
        self.digest = digest
        self.children: dict[bytes, PrefixNode] = {}
        self.pages: list[int | None] = [None] * num_groups


class PrefixTree:
    """Finds prefixes by the keys of their pages. It holds no page: a pool tells it which ones were reused."""

    def __init__(self, num_groups: int, *, with_digests: bool = False) -> None:
        """`with_digests` names each prefix by a digest as well: see `kept`."""
        self._num_groups = num_groups
        self._with_digests = with_digests
        self._root = PrefixNode(None, b"", EMPTY_PREFIX, num_groups)
        self._nodes: list[dict[int, PrefixNode]] = [{} for _ in range(num_groups)]

    @property
    def root(self) -> PrefixNode:
        """The empty prefix."""
        return self._root

    def __contains__(self, node: PrefixNode) -> bool:
        """Whether the node is still part of the tree."""
        return node is self._root or node.parent is not None

    def node_of(self, *, group: int, page: int) -> PrefixNode:
        """The prefix whose last page this is; KeyError for a page that is none's."""
        return self._nodes[group][page]

    def grow(self, node: PrefixNode, key: bytes) -> PrefixNode:
        """The prefix one page longer, new where it was unknown."""
        child = node.children.get(key)
        if child is None:
            digest = chained(node.digest, key) if self._with_digests else EMPTY_PREFIX
            child = node.children[key] = PrefixNode(node, key, digest, self._num_groups)
        return child

    def put(self, node: PrefixNode, *, group: int, page: int) -> None:
        """From now on `page` holds the node's last page in `group`."""
        node.pages[group] = page
        self._nodes[group][page] = node

    def remove(self, *, group: int, page: int) -> None:
        """The page holds something else. A prefix without pages that leads to none is forgotten."""
        node = self._nodes[group].pop(page)
        node.pages[group] = None
        while node.parent is not None and not node.children and all(each is None for each in node.pages):
            parent, node.parent = node.parent, None
            del parent.children[node.key]
            node = parent
