"""Run a recorded step: every thread walks the list of (kernel, words) and all meet after each kernel.

A thread does an equal part of each kernel. Of a large matrix it does its part share by share, and then takes over
shares that other threads have not begun: memory serves one thread quicker than another, or one loses its processor.
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from residency.kernels.recorder import MOST_KERNELS, PROGRAM_WORDS
from residency.kernels.simd.language import load_i64, store_i64
from residency.kernels.simd.threads import (
    atomic_add,
    atomic_load,
    atomic_store,
    cycle_count,
    map_zeros,
    pause,
    restore_handler,
    ring,
    sleep_shortly,
    sleep_until_changed,
    swap_if,
)

SPINS_BEFORE_SLEEP = 8000  # longer than threads wait for each other, unless one has lost its processor
SPINS_FOR_A_READ = 300  # some ten microseconds: reads take longer
PATIENCE_CYCLES = 60_000  # some 20 microseconds: how much later than others a thread may be done unnoticed
MOST_SHARING_TOKENS = 16  # of more, a share's rows of x would have to be read too often
SIGBUS = 7
_I64 = ir.IntType(64)


@intrinsic
def call_kernel(typingctx, function, words, thread, threads):
    """Call a kernel's entry by address. Numba's convention: (place for a result, place for an exception, ...)."""

    def codegen(context, builder, sig, args):
        kernel = ir.FunctionType(ir.IntType(32), [_I64.as_pointer()] * 2 + [_I64] * 3).as_pointer()
        with builder.goto_entry_block():
            unused = builder.alloca(_I64, size=8)
        builder.call(builder.inttoptr(args[0], kernel), [unused, unused, *args[1:]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@njit(error_model="numpy")
def barrier(meeting, threads):
    """Wait until all threads are here: spinning at first, then asleep.

    Sleeping, and not sched_yield, which Linux' scheduler (EEVDF) takes as a wish to run much later.

    `meeting`: an arrival count; 64 bytes on, a generation.
    """
    generation = atomic_load(meeting + 64)
    if atomic_add(meeting, 1) == threads - 1:
        atomic_add(meeting, -threads)
        atomic_add(meeting + 64, 1)
        return
    spins = 0
    while atomic_load(meeting + 64) == generation:
        spins += 1
        if spins < SPINS_BEFORE_SLEEP:
            pause()
        else:
            sleep_shortly()


@njit(error_model="numpy")
def _take(shares_at, tag, from_end):
    """A share of this kernel's that nobody has begun, or -1. A thread takes its own from the front."""
    while True:
        seen = atomic_load(shares_at)
        first, end = (seen >> 16) & 0xFFFF, seen & 0xFFFF
        if seen >> 32 != tag or first == end:
            return -1
        if swap_if(shares_at, seen, seen - 1 if from_end else seen + (1 << 16)) != 0:
            return end - 1 if from_end else first


@njit(error_model="numpy")
def _work(at, tag, meeting, thread, threads):
    """This thread's part of the kernel at `at`, and what others have not begun of theirs.

    `meeting`, 320 bytes on: a word for each thread, 64 bytes apart: of which kernel, `tag`, its shares are (32 bits),
    the first that is not begun, and their end (16 bits each). A thread that has not come to this kernel, or has gone on
    to another, has none to give.
    """
    entry, words = load_i64(at), load_i64(at + 8)
    shares = min(load_i64(at + 24) // threads, 0xFFFF)
    if threads == 1 or shares < 2 or load_i64(load_i64(at + 32)) > MOST_SHARING_TOKENS:
        call_kernel(entry, words, thread, threads)
        return
    atomic_store(meeting + 320 + 64 * thread, (tag << 32) + shares)
    for turn in range(threads):
        owner = (thread + turn) % threads
        while True:
            share = _take(meeting + 320 + 64 * owner, tag, turn > 0)
            if share < 0:
                break
            call_kernel(entry, words, owner * shares + share, threads * shares)


@njit(error_model="numpy")
def _pays_alone(lost, elapsed, threads):
    """Whether one thread would have been as quick, where `threads` have waited for late ones for `lost` cycles each."""
    return lost * threads > (threads - 1) * elapsed


@njit(error_model="numpy")
def _replay(program, num_kernels, meeting, generation, thread, threads):
    """Walk the program. Where late threads have cost more than they bring, thread 0 tells all so and goes on alone.

    Late is later by more than the others have worked since the last meeting, which is about the same work. Thread 0
    may be the late one: alone, it soon has a processor to itself. A step is taken to last as long as the one before,
    so that one late meeting early in a long step does not end what is still worth it.

    `meeting`, 128 bytes on: the cycles that all threads have waited for late ones in this step. 192 bytes on: after
    which kernel of which step thread 0 goes on alone. It is written before that kernel's meeting and read after every
    meeting. It says which, and is never set back, because threads may read it early, before they have done the kernel,
    and late, when the step is over. 256 bytes on: cycles of the last step that all threads ended together.
    """
    began = started = cycle_count()
    expected = load_i64(meeting + 256)
    together = threads
    for i in range(num_kernels):
        at = program + 8 * PROGRAM_WORDS * i
        _work(at, (generation * MOST_KERNELS + i) & 0x7FFFFFFF, meeting, thread, threads)
        if load_i64(at + 16) != 0 and threads > 1:
            arrived = cycle_count()
            lost = atomic_load(meeting + 128) // (threads - 1)
            if thread == 0 and _pays_alone(lost, max(arrived - began, expected), threads):
                store_i64(meeting + 192, generation * MOST_KERNELS + i)
            barrier(meeting, threads)
            worked, started = arrived - started, cycle_count()
            if started - arrived > worked + PATIENCE_CYCLES:
                atomic_add(meeting + 128, started - arrived)
            alone_after = load_i64(meeting + 192) - generation * MOST_KERNELS
            if 0 <= alone_after <= i:
                if thread != 0:
                    return
                threads = 1
    if thread == 0 and threads == together:
        store_i64(meeting + 256, cycle_count() - began)


def run(program, num_kernels, meeting, generation, thread, threads):
    """Walk `program`: per kernel its entry, its words, whether all threads meet after it, its shares, and where the
    number of tokens is that decides whether they are taken one by one.

    `generation` is that of the step, from 1; threads that `serve` count alike.
    """
    _replay(program, num_kernels, meeting, generation, thread, threads)


def serve(control, seen_at, meeting, thread, threads, max_spins):
    """Run each new program in `control` (generation, program, kernels, stop) until none comes for `max_spins`.

    The word at `seen_at` is the last generation that this thread has run.
    """
    seen = load_i64(seen_at)
    spins = 0
    while spins < max_spins:
        if atomic_load(control) == seen:
            spins += 1
            pause()
            continue
        if load_i64(control + 24) != 0:
            return
        seen += 1
        store_i64(seen_at, seen)
        _replay(load_i64(control + 8), load_i64(control + 16), meeting, seen, thread, threads)
        spins = 0


def arrive(arrived_at, base_at, number, thread, threads):
    """Wait until the read that is the step's `number`-th (from 0) is in memory; see store/stream.py.

    Asleep, and not looking again and again: on virtual machines that takes processor time that the disk's reads need.
    """
    wanted = load_i64(base_at) + number + 1
    spins = 0
    arrived = atomic_load(arrived_at)
    while arrived < wanted:
        spins += 1
        if spins < SPINS_FOR_A_READ:
            pause()
        else:
            sleep_until_changed(arrived_at, arrived)
        arrived = atomic_load(arrived_at)


def release(released_at, base_at, count, bell, thread, threads):
    """Give back the slots of the step's first `count` reads, which all threads are done with, and tell the readers."""
    if thread == 0:
        store_i64(released_at, load_i64(base_at) + count)
        ring(bell)


def stamp(at, thread, threads):
    """A kernel that notes when the caller's thread is here, for profiles: the processor's cycle counter to `at`."""
    if thread == 0:
        store_i64(at, cycle_count())


def fault(info, board):
    """Answer SIGBUS, of which `info` (siginfo_t) tells where: from that page on, zeros take the place of the map.

    `board`: 256 bytes with the handler that there was before, which faults elsewhere go back to; then of each map, up
    to a zero, where it begins and ends, and how many faults there were. See store/faults.py.
    """
    place = load_i64(info + 16)
    entry = board + 256
    while load_i64(entry) != 0:
        if load_i64(entry) <= place < load_i64(entry + 8):
            atomic_add(entry + 16, 1)
            page = place & -4096
            map_zeros(page, load_i64(entry + 8) - page)
            return
        entry += 24
    restore_handler(SIGBUS, board)


run.is_driver = True
serve.is_driver = True
fault.is_driver = True

KERNELS = {"run": run, "serve": serve, "stamp": stamp, "arrive": arrive, "release": release, "fault": fault}
