"""RAM that a device copies from by itself: pages of this process that its driver pins.

PyTorch's own pinned memory comes in powers of two, which for layers of 1.7 GB would be a fifth too much of all RAM.
Kernels read these pages, too: what is registered by default is mapped for the device where there is one address space
(CUDA Runtime API, cudaHostRegister), and Triton asks the driver for a pointer's address there.
"""

import mmap
from contextlib import suppress
from typing import Any

import torch

from residency.errors import MachineError
from residency.units import binary_bytes

_SUCCESS = 0


class PinnedBytes:
    """Bytes of RAM, zero at first, pinned for the CUDA device unless the `device` that copies from them is the cpu."""

    def __init__(self, num_bytes: int, device: str) -> None:
        """MachineError where the system does not let so much be pinned."""
        self._pages = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them: pages of 4 KiB are pinned one by one
                self._pages.madvise(mmap.MADV_HUGEPAGE)
        self.tensor = torch.frombuffer(self._pages, dtype=torch.uint8)[:num_bytes]
        self._pinned = device != "cpu" and num_bytes > 0
        if self._pinned:
            error = _runtime().cudaHostRegister(self.tensor.data_ptr(), num_bytes, 0)
            if int(error) != _SUCCESS:
                self._pinned = False
                raise MachineError(
                    f"{binary_bytes(num_bytes)} of RAM could not be pinned for the device (CUDA's error {int(error)}); "
                    "free RAM, or give the device more of its own with a larger --memory."
                )

    def close(self) -> None:
        """Let the pages go; nobody copies from them any more."""
        if self._pinned:
            self._pinned = False
            _runtime().cudaHostUnregister(self.tensor.data_ptr())


def _runtime() -> Any:
    """CUDA's runtime library."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
