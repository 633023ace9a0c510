"""Tile registers have to be asked for: Linux gives a process their state only then (arch/x86: AMX, since 5.16)."""

import ctypes
import platform
import sys
from functools import cache

_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # the system call, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA


@cache
def may_use_tiles() -> bool:
    """Whether this process, all its threads included, may use AMX's tile registers from now on."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return False
    return int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA)) == 0
