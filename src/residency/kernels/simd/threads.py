"""What native code needs beside vectors: atomic counters, waiting, waking somebody outside, and answering faults."""

from llvmlite import ir
from numba import types

from residency.kernels.simd.target import has
from residency.kernels.simd.vectors import I8, I32, I64, Builder, Value, address, call, operation, pointer

atomic_add = operation(
    types.int64(address, types.int64), lambda b, p, v: b.atomic_rmw("add", pointer(b, p, I64), v, "acq_rel")
)
atomic_load = operation(types.int64(address), lambda b, p: b.load_atomic(pointer(b, p, I64), "acquire", 8))
atomic_store = operation(
    types.void(address, types.int64), lambda b, p, v: b.store_atomic(v, pointer(b, p, I64), "release", 8)
)


def _swap_if(b: Builder, at: Value, seen: Value, new: Value) -> Value:
    found = b.cmpxchg(pointer(b, at, I64), seen, new, "acq_rel", "acquire")
    return b.zext(b.extract_value(found, 1), I64)


swap_if = operation(
    types.int64(address, types.int64, types.int64), _swap_if
)  # 1 where the word was `seen`, and is `new`
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
_FUTEX, _WAIT_PRIVATE = 202, 128  # of Linux on x86-64
_BYTE = I8.as_pointer()
_READ_ALONE, _PRIVATE_FIXED_ANONYMOUS = 1, 0x32  # of mmap


def _map_zeros(b: Builder, start: Value, num_bytes: Value) -> Value:
    place = b.inttoptr(start, _BYTE)
    how = [ir.Constant(I32, each) for each in (_READ_ALONE, _PRIVATE_FIXED_ANONYMOUS, -1)]
    return call("mmap", _BYTE, _BYTE, I64, I32, I32, I32, I64)(b, place, num_bytes, *how, ir.Constant(I64, 0))


def _restore_handler(b: Builder, signal: Value, action: Value) -> Value:
    nowhere = ir.Constant(_BYTE, None)
    return call("sigaction", I32, I32, _BYTE, _BYTE)(b, b.trunc(signal, I32), b.inttoptr(action, _BYTE), nowhere)


def _sleep_until_changed(b: Builder, at: Value, seen: Value) -> Value:
    nothing = ir.Constant(I64, 0)
    numbers = [ir.Constant(I64, each) for each in (_FUTEX, _WAIT_PRIVATE)]
    arguments = (numbers[0], at, numbers[1], seen, nothing, nothing, nothing)
    return call("syscall", I64, *[I64] * len(arguments))(b, *arguments)


# asleep until somebody wakes (futex) who waits for this word, unless its lower half is no longer `seen`'s
sleep_until_changed = operation(types.void(address, types.int64), _sleep_until_changed)
map_zeros = operation(types.void(address, types.int64), _map_zeros)  # over what is mapped there, whole pages
restore_handler = operation(types.void(types.int64, address), _restore_handler)  # of a signal: a struct sigaction
cycle_count = operation(types.int64(), call("llvm.readcyclecounter", I64))  # at a constant rate on x86-64
