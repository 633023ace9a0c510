"""Who owns which bytes. Integers only: no arrays, no clock."""

from residency.ledger.bytes import Ledger, MemoryClass
from residency.ledger.kv import KvPages, PageCopy, PageGroup, PageKey
from residency.ledger.pages import PagePool
from residency.ledger.sequence import SequencePages

__all__ = ["KvPages", "Ledger", "MemoryClass", "PageCopy", "PageGroup", "PageKey", "PagePool", "SequencePages"]
