"""Whether there are tile registers for bfloat16 (Intel AMX), and leave to use them."""

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path

_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # the system call, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA


@cache
def has_tiles() -> bool:
    """Whether this process, all its threads included, may use tile registers from now on.

    Linux gives a process their state only if it asks (arch/x86: AMX, since 5.16). Kernels for another processor than
    this one, which $RESIDENCY_CPU names, do without.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64") or os.environ.get("RESIDENCY_CPU"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().split("\n\n")[0].split()
    except OSError:
        return False
    asked = "amx_bf16" in flags and "avx512_bf16" in flags
    return asked and int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA)) == 0
