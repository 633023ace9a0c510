"""Memory by the page."""

import mmap
import sys

import numpy as np
import numpy.typing as npt

_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # Python 3.13 names it


class Arena:
    """Memory that exists only where it was touched. Arrays handed out are views: close it last."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map = mmap.mmap(-1, max(num_bytes, 1), flags=flags)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    @property
    def memory(self) -> memoryview:
        """All of it, for reads into it."""
        return memoryview(self._map)[: self.num_bytes]

    def drop(self, start: int, end: int) -> None:
        """Give the memory of whole pages inside a range back; it is zero when it is touched again."""
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            self._map.madvise(mmap.MADV_REMOVE, first, last - first)

    @property
    def address(self) -> int:
        """Where it begins."""
        return int(self.bytes.ctypes.data)

    def close(self) -> None:
        """Give the memory back once no view of it is left."""
        del self.bytes
        try:
            self._map.close()
        except BufferError:
            pass  # an array is still referred to; the memory goes with it
