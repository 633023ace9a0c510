"""What threads that meet need beside vectors: atomic counters, waiting, and waking somebody outside."""

from llvmlite import ir
from numba import types

from residency.kernels.simd.target import has
from residency.kernels.simd.vectors import I32, I64, address, call, operation, pointer

atomic_add = operation(
    types.int64(address, types.int64), lambda b, p, v: b.atomic_rmw("add", pointer(b, p, I64), v, "acq_rel")
)
atomic_load = operation(types.int64(address), lambda b, p: b.load_atomic(pointer(b, p, I64), "acquire", 8))
pause = operation(
    types.void(),
    call("llvm.x86.sse2.pause", ir.VoidType()) if has("avx2") else (lambda b: None),
)
sleep_shortly = operation(  # some 50 microseconds: the least that the system's timers give
    types.void(), lambda b: call("usleep", I32, I32)(b, ir.Constant(I32, 1))
)
ring = operation(  # add 1 to an event counter (eventfd), which wakes whoever waits for it
    types.void(address),
    lambda b, descriptor: call("eventfd_write", I32, I32, I64)(b, b.trunc(descriptor, I32), ir.Constant(I64, 1)),
)
cycle_count = operation(types.int64(), call("llvm.readcyclecounter", I64))  # at a constant rate on x86-64
