"""Who owns which bytes. Integers only: no arrays, no clock."""

from residency.ledger.bytes import Ledger, MemoryClass
from residency.ledger.groups import PageCopy, PageGroup, PageKey
from residency.ledger.kept import KeptPage, KeptPages
from residency.ledger.kv import KvPages
from residency.ledger.pages import PagePool
from residency.ledger.sequence import SequencePages

__all__ = [
    "KeptPage",
    "KeptPages",
    "KvPages",
    "Ledger",
    "MemoryClass",
    "PageCopy",
    "PageGroup",
    "PageKey",
    "PagePool",
    "SequencePages",
]
