"""Whether there are tile registers for bfloat16 (Intel AMX), and leave to use them."""

import ctypes
import os
import platform
import sys
from functools import cache

from residency.hardware.processor import instruction_sets

_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # the system call, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA


@cache
def has_tiles() -> bool:
    """Whether this process, all its threads included, may use tile registers from now on.

    Linux gives a process their state only if it asks (arch/x86: AMX, since 5.16). Kernels for another processor than
    this one, which $RESIDENCY_CPU names, do without.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64") or os.environ.get("RESIDENCY_CPU"):
        return False
    if not {"amx_bf16", "avx512_bf16"} <= instruction_sets():
        return False
    return int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA)) == 0
