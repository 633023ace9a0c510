"""Files that are mapped and cannot be read any more: an error after the step, in place of the process's end.

A mapped file that is cut, or whose disk fails, sends SIGBUS to whoever touches it. A native handler maps zeros in its
place, so that the step runs to its end, and counts; whoever watches the map then throws the step's results away. (It is
what systemd does for its journals, in src/basic/sigbus.c.)
"""

import ctypes
import signal
import struct
import threading
from functools import cache

import numpy as np
import numpy.typing as npt

from residency.errors import StoreError
from residency.kernels.library import Library
from residency.kernels.recorder import address_of
from residency.kernels.simd.link import SignalEntry

HANDLER = "step.fault"  # a kernel
_MOST_MAPS = 64
_BEFORE_WORDS, _MAP_WORDS = 32, 3  # of the board: see the kernel
_NOBODY = 1  # begins and ends an entry that was given back; 0 is where entries end
_WITH_DESCRIPTION, _RESTARTING = 0x4, 0x10000000  # SA_SIGINFO, SA_RESTART


class Watch:
    """A map whose faults are counted, and end nothing. Close it before the map."""

    def __init__(self, address: int, num_bytes: int) -> None:
        """Whole pages. Links the kernel HANDLER."""
        self._words = _handler().enter(address, num_bytes)

    def close(self) -> None:
        """Watch it no more."""
        self._words[1] = self._words[0] = _NOBODY

    @property
    def faults(self) -> int:
        """How often something could not be read."""
        return int(self._words[2])


class _Handler:
    """The process's handler of SIGBUS. There is one, for good: signals are the process's."""

    def __init__(self) -> None:
        self._board = np.zeros(_BEFORE_WORDS + _MAP_WORDS * (_MOST_MAPS + 1), np.int64)
        self._changing = threading.Lock()
        self._library = Library([HANDLER])
        self._entry = SignalEntry(self._library[HANDLER].address, address_of(self._board))
        action = struct.pack("<Q128xi4xQ", self._entry.address, _WITH_DESCRIPTION | _RESTARTING, 0)
        install = ctypes.CDLL(None, use_errno=True).sigaction
        install.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        if install(signal.SIGBUS, action, address_of(self._board)):
            raise StoreError("this system lets nobody handle SIGBUS, which mapped weights need.")

    def enter(self, address: int, num_bytes: int) -> npt.NDArray[np.int64]:
        """The words of a map: where it begins and ends, and its faults."""
        with self._changing:
            for start in range(_BEFORE_WORDS, len(self._board) - _MAP_WORDS, _MAP_WORDS):
                words = self._board[start : start + _MAP_WORDS]
                if words[0] <= _NOBODY:
                    words[2], words[0] = 0, address
                    words[1] = address + num_bytes  # only now is any address in it
                    return words
        raise StoreError(f"{_MOST_MAPS} models are open in this process and no more may be; close some.")


_handler = cache(_Handler)
