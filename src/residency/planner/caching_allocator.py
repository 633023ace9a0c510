"""PyTorch's allocator of device memory, on paper: what it counts as allocated for arrays that are never freed.

The rules are those of c10/cuda/CUDACachingAllocator.cpp: memory is taken from the driver in segments, an array gets
the smallest free block that holds it, and of a large block a rest of at most 1 MiB stays with the array.
"""

import bisect
from collections.abc import Iterable

MIB = 1024**2
UNIT_BYTES = 512  # what every array is rounded up to
SMALL_BYTES = MIB  # arrays up to here share segments of their own, which are cut exactly
OWN_SEGMENT_BYTES = 10 * MIB  # arrays from here get a segment of their own, in whole 2 MiB
SHARED_SEGMENT_BYTES = 20 * MIB  # where the arrays between lie
SEGMENT_UNIT_BYTES = 2 * MIB
KEPT_REST_BYTES = MIB


def allocated_bytes(arrays: Iterable[int]) -> int:
    """What `torch.cuda.memory_allocated` counts of arrays of so many bytes, made in this order."""
    free: list[int] = []  # blocks, ascending
    total = 0
    for array_bytes in arrays:
        needed = -(-array_bytes // UNIT_BYTES) * UNIT_BYTES
        if needed <= SMALL_BYTES:
            total += needed
            continue
        place = bisect.bisect_left(free, needed)
        block = free.pop(place) if place < len(free) else _segment_bytes(needed)
        rest = block - needed
        if rest > KEPT_REST_BYTES:
            bisect.insort(free, rest)
            block = needed
        total += block
    return total


def _segment_bytes(needed: int) -> int:
    if needed < OWN_SEGMENT_BYTES:
        return SHARED_SEGMENT_BYTES
    return -(-needed // SEGMENT_UNIT_BYTES) * SEGMENT_UNIT_BYTES
