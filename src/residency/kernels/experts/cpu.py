"""A mixture's kernels: routes, tokens sorted by expert, and products of each expert's rows with its matrices.

Rows are sorted by expert, and in each expert's run by token, so that those that are quantized come first, as in the
step. A run is multiplied as a step's rows are (see matmul/cpu.py and gated_matmul/cpu.py), its first row being row 0.
An expert's matrices lie together, at the address that a table has for it.

The table of runs: their number, and from byte 64 on one entry of RUN_BYTES for each expert that any token is sent to:
its number, its first row, how many of its rows are quantized, and the work of the runs before it. Where another would
begin are the number of all rows and the whole work.
"""

from numba import njit

from residency.kernels.gated_matmul.cpu import gated_panels, tokens_together
from residency.kernels.matmul import cpu_grouped
from residency.kernels.matmul.cpu import PRODUCTS
from residency.kernels.matmul.cpu_panels import MOST_TOKENS
from residency.kernels.matmul.cpu_unpack import UNPACKED
from residency.kernels.simd.blocks import (
    ROW_GROUP_BYTES,
    exp_f32,
    inlined,
    int8_rows,
    pack,
    place_in_tiles,
    share_start,
    sigmoid,
    silu,
)
from residency.kernels.simd.language import (
    fma,
    lane_numbers,
    less_than,
    load_f32,
    load_f32x16,
    load_i32,
    load_i32x16,
    load_i64,
    mul_f32,
    select_f32,
    splat_f32,
    splat_i32,
    stack_bytes,
    store_f32,
    store_f32x16,
    store_i32,
    store_i32x16,
    store_i64,
    sub_f32,
    sum_f32,
)
from residency.kernels.simd.table import KernelTable
from residency.kernels.simd.threads import atomic_add, atomic_load, ring, sleep_shortly

FIRST_RUN, RUN_BYTES = 64, 32
UNPACKING_ROWS = 32  # that take about as long to multiply as the weights that they meet take to unpack
RUN_GROUPS = 8  # of 32 columns that are gated together: their tiles stay in the second-level cache
RUN_ROWS = 16  # that are gated together
GUESSED_TOKENS = 8  # whose experts of the next layer are guessed
SUMS_STRIDE = 128 * RUN_GROUPS
SUMS_BYTES = RUN_ROWS * SUMS_STRIDE

_function = njit(error_model="numpy", nogil=True)


@_function
def _exponentials(row, experts):
    """exp(x - the largest x) over x; returns their sum. Lanes after the last expert are 0."""
    largest = load_f32(row)
    for expert in range(experts):
        largest = max(largest, load_f32(row + 4 * expert))
    total = 0.0
    for first in range(0, experts, 16):
        powers = exp_f32(sub_f32(load_f32x16(row + 4 * first), splat_f32(largest)))
        held = less_than(lane_numbers(), splat_i32(experts - first))
        powers = select_f32(held, powers, splat_f32(0.0))
        store_f32x16(row + 4 * first, powers)
        total += sum_f32(powers)
    return total


@_function
def _largest(row, experts):
    """The expert with the largest value, of equal ones the first."""
    best, most = 0, load_f32(row)
    for expert in range(1, experts):
        value = load_f32(row + 4 * expert)
        if value > most:
            best, most = expert, value
    return best


def route(logits, stride, experts, per_token, renormalized, given, chosen, weights, tokens_at, thread, threads):
    """See reference.routes; destroys the logits. Where `given` is not 0, it has the experts that are chosen."""
    tokens = load_i64(tokens_at)
    for token in range(share_start(tokens, thread, threads), share_start(tokens, thread + 1, threads)):
        row, first = logits + stride * token, 4 * per_token * token
        total = _exponentials(row, experts)
        chosen_total = 0.0
        for turn in range(per_token):
            at = first + 4 * turn
            expert = load_i32(given + at) if given != 0 else _largest(row, experts)
            power = load_f32(row + 4 * expert)
            store_i32(chosen + at, expert)
            store_f32(weights + at, power)
            store_f32(row + 4 * expert, -1.0)  # less than any other
            chosen_total += power
        for turn in range(per_token):
            at = weights + first + 4 * turn
            store_f32(at, load_f32(at) / (chosen_total if renormalized != 0 else total))


def sort(chosen, per_token, experts, counts, runs, used, rows, places, int8_at, tokens_at, thread, threads):
    """A counting sort of all choices (token, turn) by expert, by one thread.

    `rows` gets the token of each sorted row, `places` the row of each choice, `used` the rows of each expert. `counts`
    is room for two words of each expert.
    """
    if thread != 0:
        return
    tokens = load_i64(tokens_at)
    quantized = int8_rows(tokens, int8_at)
    for word in range(2 * experts):
        store_i64(counts + 8 * word, 0)
    for choice in range(tokens * per_token):
        at = counts + 16 * load_i32(chosen + 4 * choice)
        store_i64(at, load_i64(at) + 1)
        store_i64(at + 8, load_i64(at + 8) + (1 if choice < quantized * per_token else 0))
    run, row, work = runs + FIRST_RUN, 0, 0
    for expert in range(experts):
        at = counts + 16 * expert
        held = load_i64(at)
        store_i32(used + 4 * expert, held)
        if held > 0:
            store_i64(run, expert)
            store_i64(run + 8, row)
            store_i64(run + 16, load_i64(at + 8))
            store_i64(run + 24, work)
            run += RUN_BYTES
            work += UNPACKING_ROWS + held
        store_i64(at, row)
        row += held
    store_i64(run + 8, row)
    store_i64(run + 24, work)
    store_i64(runs, (run - runs - FIRST_RUN) // RUN_BYTES)
    for choice in range(tokens * per_token):
        at = counts + 16 * load_i32(chosen + 4 * choice)
        row = load_i64(at)
        store_i64(at, row + 1)
        store_i32(rows + 4 * row, choice // per_token)
        store_i32(places + 4 * choice, row)


@_function
def _missing(runs, table):
    """How many of the experts that rows are sent to are not in memory."""
    missing = 0
    for i in range(load_i64(runs)):
        if atomic_load(table + 8 * load_i64(runs + FIRST_RUN + RUN_BYTES * i)) == 0:
            missing += 1
    return missing


def fetch(runs, table, found, board, layer, bell, thread, threads):
    """Wait until all experts that rows are sent to are in memory, and note in `found` where: whoever finds that he has
    taken one out of the table while a step is at its layer puts it back, so that the table may lack it for a moment.

    `board`: the layer that steps are at, which is written before the table is read, so that whoever takes an expert out
    of the table and then reads the board knows whether a step may be using it; 64 bytes on, how often a step has asked
    for experts; 128 bytes on, whether none will come. All threads wait here, none at the meeting.
    """
    if thread == 0:
        atomic_add(board, layer - load_i64(board))
        if _missing(runs, table) > 0:
            atomic_add(board + 64, 1)
            ring(bell)
    while _missing(runs, table) > 0 and atomic_load(board + 128) == 0:
        sleep_shortly()
    if thread == 0:
        for i in range(load_i64(runs)):
            expert = load_i64(runs + FIRST_RUN + RUN_BYTES * i)
            address = atomic_load(table + 8 * expert)
            while address == 0:
                sleep_shortly()
                address = atomic_load(table + 8 * expert)
            store_i64(found + 8 * expert, address)


def guess(logits, stride, experts, per_token, guessed, table, bell, int8_at, thread, threads):
    """Mark the experts that the first tokens would be sent to by these logits, and tell of it if one is not in memory.

    Destroys the logits. Of prompts nothing is guessed: they are sent everywhere.
    """
    if thread != 0:
        return
    for expert in range(experts):
        store_i32(guessed + 4 * expert, 0)
    missing = 0
    for token in range(min(load_i64(int8_at), GUESSED_TOKENS)):
        for _ in range(per_token):
            expert = _largest(logits + stride * token, experts)
            store_f32(logits + stride * token + 4 * expert, -float("inf"))
            store_i32(guessed + 4 * expert, 1)
            if atomic_load(table + 8 * expert) == 0:
                missing += 1
    if missing > 0:
        ring(bell)


@inlined
def _extent(run):
    """A run's first row, and how many rows it has."""
    first = load_i64(run + 8)
    return first, load_i64(run + RUN_BYTES + 8) - first


def _gather(is_packed):
    def gather(x, x_stride, out, out_stride, groups, runs, rows, int8_at, tokens_at, thread, threads):
        """Copy each token's row to its sorted rows: groups of 32 columns, packed or float32."""
        tokens = load_i64(tokens_at)
        quantized = int8_rows(tokens, int8_at)
        num_runs = load_i64(runs)
        num_rows = load_i64(runs + FIRST_RUN + RUN_BYTES * num_runs + 8)
        begin, end = share_start(num_rows, thread, threads), share_start(num_rows, thread + 1, threads)
        for i in range(num_runs):
            run = runs + FIRST_RUN + RUN_BYTES * i
            first, count = _extent(run)
            quantized_here = load_i64(run + 16)
            for row in range(max(begin, first), min(end, first + count)):
                token = load_i32(rows + 4 * row)
                if is_packed:
                    source, source_bytes = x + x_stride * token, ROW_GROUP_BYTES
                    target, target_bytes = out + out_stride * row, ROW_GROUP_BYTES
                    if token >= quantized:
                        source, source_bytes = place_in_tiles(x, x_stride, token, tokens, quantized)
                        target, target_bytes = place_in_tiles(
                            out + out_stride * first, out_stride, row - first, count, quantized_here
                        )
                    for group in range(groups):
                        store_i32x16(target + target_bytes * group, load_i32x16(source + source_bytes * group))
                else:
                    for half in range(2 * groups):
                        value = load_f32x16(x + x_stride * token + 64 * half)
                        store_f32x16(out + out_stride * row + 64 * half, value)

    return gather


@inlined
def _first_unit(work, before, each, units):
    """The first of a run's units that begins where so much `work` is done, or later; each takes `each`."""
    return max(0, min(units, (work - before * units + each - 1) // each))


def _gate_up(products, unpacked, activation):
    """`unpacked`: how blocks are unpacked; None for floats."""
    by_rows, by_panels = products
    has_panels, is_packed = by_panels is not None, unpacked is not None
    panels = gated_panels(*unpacked, activation) if has_panels else None
    block_groups = unpacked[2] if is_packed else 1

    @_function
    def gated_rows(first, last, groups, together, gate, up, x, x_stride, rows, out, out_stride, blocks):
        """Groups first .. last of the gated product of rows that are not in tiles."""
        gates, ups = stack_bytes(SUMS_BYTES), stack_bytes(SUMS_BYTES)
        for start in range(first, last, RUN_GROUPS):
            end = min(start + RUN_GROUPS, last)
            for row in range(0, rows, RUN_ROWS):
                count, source = min(RUN_ROWS, rows - row), x + x_stride * row
                low, high = gates - 128 * start, ups - 128 * start
                by_rows(2 * start, 2 * end, gate, source, x_stride, count, low, SUMS_STRIDE, 0, 0, blocks)
                by_rows(2 * start, 2 * end, up, source, x_stride, count, high, SUMS_STRIDE, 0, 0, blocks)
                for i in range(count):
                    sums = low + SUMS_STRIDE * i
                    target = sums if is_packed else out + out_stride * (row + i)
                    for at in range(128 * start, 128 * end, 64):
                        product = mul_f32(activation(load_f32x16(sums + at)), load_f32x16(high + SUMS_STRIDE * i + at))
                        store_f32x16(target + at, product)
                    if is_packed:
                        pack(sums + 128 * start, start, end, groups, together, out, out_stride, row + i, rows, rows)

    def gate_up(table, up_at, runs, x, x_stride, out, out_stride, groups, together, blocks, thread, threads):
        """See reference.gated_linear, for every run; `out` gets packed rows, or float32 of matrices in floats."""
        num_runs = load_i64(runs)
        units = groups // together
        work = load_i64(runs + FIRST_RUN + RUN_BYTES * num_runs + 24) * units
        begin, end = share_start(work, thread, threads), share_start(work, thread + 1, threads)
        for i in range(num_runs):
            run = runs + FIRST_RUN + RUN_BYTES * i
            row, rows = _extent(run)
            each, before = UNPACKING_ROWS + rows, load_i64(run + 24)
            first = together * _first_unit(begin, before, each, units)
            last = together * _first_unit(end, before, each, units)
            if first < last:
                gate = load_i64(table + 8 * load_i64(run))
                source, target = x + x_stride * row, out + out_stride * row
                quantized = load_i64(run + 16) if has_panels else rows
                gated_rows(
                    first, last, groups, together, gate, gate + up_at, source, x_stride, quantized, target, out_stride,
                    blocks,
                )  # fmt: skip
                if has_panels:
                    most_rows = tokens_together(blocks * block_groups)
                    for start in range(quantized, rows, most_rows):
                        panels(
                            first, last, gate, gate + up_at, source + x_stride * start, x_stride,
                            start, min(most_rows, rows - start), quantized, target, out_stride, blocks, rows,
                        )  # fmt: skip

    return gate_up


def _down(products):
    by_rows, by_panels = products
    has_panels = by_panels is not None

    def down(table, down_at, runs, x, x_stride, out, out_stride, groups, blocks, thread, threads):
        """out = x · matrixᵀ, for every run."""
        num_runs = load_i64(runs)
        work = load_i64(runs + FIRST_RUN + RUN_BYTES * num_runs + 24) * groups
        begin, end = share_start(work, thread, threads), share_start(work, thread + 1, threads)
        for i in range(num_runs):
            run = runs + FIRST_RUN + RUN_BYTES * i
            row, rows = _extent(run)
            each, before = UNPACKING_ROWS + rows, load_i64(run + 24)
            first, last = _first_unit(begin, before, each, groups), _first_unit(end, before, each, groups)
            if first < last:
                matrix = load_i64(table + 8 * load_i64(run)) + down_at
                source, target = x + x_stride * row, out + out_stride * row
                quantized = load_i64(run + 16) if has_panels else rows
                by_rows(2 * first, 2 * last, matrix, source, x_stride, quantized, target, out_stride, 0, 0, blocks)
                if has_panels:
                    for start in range(quantized, rows, MOST_TOKENS):
                        by_panels(
                            2 * first, 2 * last, matrix, source + x_stride * start, x_stride,
                            min(MOST_TOKENS, rows - start), target + out_stride * start, out_stride, 0, 0, blocks,
                        )  # fmt: skip

    return down


def combine(
    hidden, stride, products, products_stride, places, weights, per_token,
    shared, shared_stride, shared_gate, shared_gate_stride, groups, tokens_at, thread, threads,
):  # fmt: skip
    """Add each token's experts' products, weighted, in the order of its choices, and the shared network's."""
    tokens = load_i64(tokens_at)
    unit, end = share_start(tokens * groups, thread, threads), share_start(tokens * groups, thread + 1, threads)
    for each in range(unit, end):
        token, group = each // groups, each % groups
        for half in range(2):
            at = 128 * group + 64 * half
            total = load_f32x16(hidden + stride * token + at)
            for choice in range(per_token * token, per_token * (token + 1)):
                product = load_f32x16(products + products_stride * load_i32(places + 4 * choice) + at)
                total = fma(product, splat_f32(load_f32(weights + 4 * choice)), total)
            if shared != 0:
                share = sigmoid(splat_f32(load_f32(shared_gate + shared_gate_stride * token)))
                total = fma(load_f32x16(shared + shared_stride * token + at), share, total)
            store_f32x16(hidden + stride * token + at, total)


def _in_groups(prefix, fmt):
    products = PRODUCTS[fmt.name]
    return _down(products) if prefix == "down" else _gate_up(products, cpu_grouped.unpacked(fmt), silu)


KERNELS = KernelTable(
    {
        "route": route,
        "sort": sort,
        "fetch": fetch,
        "guess": guess,
        "gather_packed": _gather(True),
        "gather_floats": _gather(False),
        "combine": combine,
        **{f"gate_up_silu_{name}": _gate_up(products, UNPACKED.get(name), silu) for name, products in PRODUCTS.items()},
        **{f"down_{name}": _down(products) for name, products in PRODUCTS.items()},
    },
    _in_groups,
)
