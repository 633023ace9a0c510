"""From a model's name to its files on this machine.

find(name)      where it is; None if it is known and not fetched yet. Never touches the network
resolve(name)   where it is; FetchError if it is not fetched yet
pull(name)      where it is, fetched first if it has to be
"""

from residency.store.fetch.catalog import CATALOG, CatalogEntry
from residency.store.fetch.resolve import Progress, find, no_progress, pull, resolve

__all__ = ["CATALOG", "CatalogEntry", "Progress", "find", "no_progress", "pull", "resolve"]
