"""How the service's thread wakes the event loop."""

import asyncio
import ctypes
import os
import weakref
from collections.abc import Callable

_LIBC = ctypes.PyDLL(None)  # whose calls keep the interpreter


class Doorbell:
    """Calls a function in an event loop soon after `ring`, which any thread may call; once for several rings.

    `call_soon_threadsafe` lets go of the interpreter to write to a socket: the event loop takes it at once, and the
    service's thread has it back half a millisecond later, with its step not begun. To ring is to write to an
    eventfd(2) and keep the interpreter until the step's kernels run.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_ring: Callable[[], None]) -> None:
        self.loop = loop
        self._on_ring = on_ring
        self._file = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        loop.add_reader(self._file, self._hear)  # the loop keeps this object, and the file open

    def ring(self) -> None:
        """Nothing happens where the loop has ended."""
        _LIBC.eventfd_write(self._file, ctypes.c_uint64(1))

    def _hear(self) -> None:
        os.eventfd_read(self._file)
        self._on_ring()
