"""What fits: weights, KV cache, activations and runtime inside one budget, and what to change where they do not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from residency.errors import BudgetError, ContextError, UsageError
from residency.hardware import Machine
from residency.ledger.kv import pages_of_a_sequence
from residency.planner.buffers import activation_buffers
from residency.planner.cost import ModelCost, Step, Workload, step_seconds, step_workload
from residency.planner.paging import PAGING_BYTES, Paging, least_paging, with_slots
from residency.planner.plan import PAGE_TOKENS, Buffer, KvGroup, MemoryBytes, Plan
from residency.planner.speed import DECODE_CONTEXT_TOKENS, forecast_speed, prefill_seconds
from residency.planner.streaming import READERS, READING_BYTES, Streaming, best_streaming, least_streaming
from residency.spec.layout import store_layout
from residency.spec.model import ModelSpec
from residency.spec.state import KV_FORMATS, KvName
from residency.units import binary_bytes, enough_mib

DEFAULT_CONTEXT_TOKENS = 2048
LEAST_DEFAULT_CONTEXT_TOKENS = 128  # less is planned only when it is asked for
CHUNK_CHOICES = (512, 256)
SMALL_CHUNKS = (128, 64, 32, 16)  # where no larger one fits: each costs more prefill than it saves memory
DEFAULT_BUDGET_PART = 0.9  # of what is available; the rest is for whatever else runs

# What a server's process remembers of a page: its place in the tree of prefixes, its tokens, its holders.
PAGE_RECORD_BYTES = 768

# A chunk that is smaller keeps activations in the processor's caches and leaves room for context; it is taken when
# its prefill is forecast to be at most this much slower than the best.
_CHUNK_SLOWER_AT_MOST = 1.03


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What the user asked for and what does not depend on context or chunk."""

    model: ModelSpec
    weights_bytes: int
    streaming: Streaming | None = None  # where the weights do not fit: through as few buffers as can be
    kv_at_most_weights: bool = False  # whether the KV cache leaves the weights as much as it takes
    paging: Paging | None = None  # where experts do not fit
    runtime_bytes: int
    max_sequences: int
    logit_rows: int | None
    threads: int
    budget_bytes: int
    kv_format: KvName
    kv_tokens: int | None  # see kv_groups
    prompts_in_tiles: bool

    @property
    def slots_bytes(self) -> int:
        return 0 if self.paging is None else self.paging.memory_bytes

    def buffers(self, context_tokens: int, chunk_tokens: int) -> tuple[Buffer, ...]:
        return activation_buffers(
            self.model,
            chunk_tokens=chunk_tokens,
            max_sequences=self.max_sequences,
            max_context_tokens=context_tokens,
            threads=self.threads,
            logit_rows=self.logit_rows,
            kv=KV_FORMATS[self.kv_format],
            prompts_in_tiles=self.prompts_in_tiles,
        )

    def kv_groups(self, context_tokens: int, chunk_tokens: int) -> tuple[KvGroup, ...]:
        return kv_groups(
            self.model,
            context_tokens=context_tokens,
            chunk_tokens=chunk_tokens,
            max_sequences=self.max_sequences,
            kv_format=self.kv_format,
            kv_tokens=self.kv_tokens,
        )

    def memory(self, context_tokens: int, chunk_tokens: int) -> MemoryBytes:
        groups = self.kv_groups(context_tokens, chunk_tokens)
        shared_pages = sum(group.num_pages for group in groups) if self.kv_tokens is not None else 0
        return MemoryBytes(
            weights=self.weights_bytes,
            kv_cache=sum(group.num_bytes for group in groups),
            activations=sum(buffer.num_bytes for buffer in self.buffers(context_tokens, chunk_tokens)),
            runtime=self.runtime_bytes + PAGE_RECORD_BYTES * shared_pages,
        )

    def fits(self, context_tokens: int, chunk_tokens: int) -> bool:
        memory = self.memory(context_tokens, chunk_tokens)
        wanted_bytes = max(0, memory.kv_cache - memory.weights) if self.kv_at_most_weights else 0
        return memory.peak + wanted_bytes <= self.budget_bytes


def plan_run(
    model: ModelSpec,
    *,
    machine: Machine,
    runtime_bytes: int,
    budget_bytes: int | None,
    context_tokens: int | None,
    max_sequences: int = 1,
    oversubscribe: bool = False,
    chunk_tokens: int | None = None,
    logit_rows: int | None = None,
    threads: int | None = None,
    kv_format: KvName = "F16",
    prompts_in_tiles: bool = False,
    model_path: Path,
    fingerprint: str,
) -> Plan:
    """The plan of a run of `model` on `machine` inside `budget_bytes`, each sequence with room for `context_tokens`.

    None lets the planner choose: as budget nine tenths of what is available; as context the model's, at most 2048,
    or the most that fits; as chunk the smallest that is about as fast as any; as threads all that the container
    allows; as logit rows, the tokens of a step whose logits are kept, one for each sequence. With `oversubscribe`
    all sequences share the pages that the budget leaves, at least those of one whole context. `prompts_in_tiles`:
    prompts are multiplied in tile registers. BudgetError names the missing bytes and the cheapest change, ContextError
    a context that the model does not have, UsageError what cannot mean anything.
    """
    asked = {"context": context_tokens, "sequences": max_sequences, "chunk": chunk_tokens, "logit rows": logit_rows}
    for name, number in asked.items():
        if number is not None and number < 1:
            raise UsageError(f"{name} cannot be {number}; give at least 1.")
    threads = _threads(machine, threads)
    _refuse_uneven_heads(model, kv_format)
    if context_tokens is not None and context_tokens > model.max_context_tokens:
        raise ContextError(
            f"a context of {context_tokens} tokens is {context_tokens - model.max_context_tokens} more than "
            f"{model.name} has; ask for --context {model.max_context_tokens} or less."
        )
    wanted = _Request(
        model=model,
        weights_bytes=store_layout(model).resident_bytes,
        runtime_bytes=runtime_bytes,
        max_sequences=max_sequences,
        logit_rows=logit_rows,
        threads=threads,
        budget_bytes=_budget(machine, budget_bytes),
        kv_format=kv_format,
        kv_tokens=0 if oversubscribe else None,
        prompts_in_tiles=prompts_in_tiles,
    )
    for request in _requests(wanted, machine, shares=context_tokens is None):
        try:
            context = _context(request, context_tokens, chunk_tokens)
            break
        except BudgetError as error:
            refusal = error
    else:
        raise refusal
    cost = ModelCost.of(model, kv=KV_FORMATS[kv_format])
    chunk = chunk_tokens or _chunk(request, cost, context, machine, threads)
    if oversubscribe:
        request = _with_the_rest_as_pages(request, context, chunk)
    request = _with_the_rest_as_weights(request, cost, context, chunk, machine)
    memory = request.memory(context, chunk)
    return Plan(
        model_path=model_path,
        model_fingerprint=fingerprint,
        model_name=model.name,
        architecture=model.architecture,
        format_label=model.format_label,
        budget_bytes=request.budget_bytes,
        context_tokens=context,
        max_sequences=max_sequences,
        chunk_tokens=chunk,
        page_tokens=PAGE_TOKENS,
        threads=threads,
        buffers=request.buffers(context, chunk),
        kv_format=kv_format,
        kv_groups=request.kv_groups(context, chunk),
        memory=memory,
        forecast=forecast_speed(
            cost,
            machine=machine,
            context_tokens=context,
            chunk_tokens=chunk,
            threads=threads,
            streaming=request.streaming,
            paging=request.paging,
        ),
        prompts_in_tiles=prompts_in_tiles,
        streaming=request.streaming,
        paging=request.paging,
    )


def kv_groups(
    model: ModelSpec,
    *,
    context_tokens: int,
    chunk_tokens: int,
    max_sequences: int,
    kv_format: KvName = "F16",
    kv_tokens: int | None = None,
) -> tuple[KvGroup, ...]:
    """Layers by window and page size, in the order of their first layers, with pages for all sequences.

    `kv_tokens`: what the sequences may hold together, at least one context; None for the whole context of each.
    """
    layers: dict[tuple[int | None, int], list[int]] = {}
    for index, layer in enumerate(model.layers):
        page_bytes = layer.state(KV_FORMATS[kv_format]).bytes_per_token * PAGE_TOKENS
        layers.setdefault((layer.grouped_attention.window_tokens, page_bytes), []).append(index)
    groups = []
    for (window_tokens, page_bytes), indices in layers.items():
        one = pages_of_a_sequence(
            context_tokens, page_tokens=PAGE_TOKENS, window_tokens=window_tokens, chunk_tokens=chunk_tokens
        )
        every = max_sequences * one
        num_pages = every if kv_tokens is None else max(one, min(every, -(-kv_tokens // PAGE_TOKENS)))
        groups.append(
            KvGroup(layers=tuple(indices), window_tokens=window_tokens, num_pages=num_pages, page_bytes=page_bytes)
        )
    return tuple(groups)


def _requests(request: _Request, machine: Machine, *, shares: bool) -> Iterator[_Request]:
    """The request with ever less of its weights in memory, as far as there is a disk: all; as few experts as can be;
    as little of the others, too. Pages that nobody asked for are not to make every step slower: where it `shares`, the
    KV cache takes at most half of what there is for both.
    """
    yield request
    if not any(tier.kind == "disk" for tier in machine.tiers):
        return
    disk_bytes_per_second = machine.tier("disk").read_bytes_per_second(READERS)
    request = replace(request, kv_at_most_weights=shares, paging=least_paging(request.model, disk_bytes_per_second))
    if request.paging is not None:
        request = replace(request, runtime_bytes=request.runtime_bytes + PAGING_BYTES)
        unrouted_bytes = store_layout(request.model).experts_offset
        yield replace(request, weights_bytes=unrouted_bytes + request.slots_bytes)
    least = least_streaming(request.model, disk_bytes_per_second)
    yield replace(
        request,
        weights_bytes=least.memory_bytes + request.slots_bytes,
        streaming=least,
        runtime_bytes=request.runtime_bytes + READING_BYTES,
    )


def _with_the_rest_as_weights(
    request: _Request, cost: ModelCost, context_tokens: int, chunk_tokens: int, machine: Machine
) -> _Request:
    """The request with as many of the weights in memory as fit, where they stream or experts are paged. Where both,
    experts get no more: every token reads what streams, and few read one expert.
    """
    if request.paging is not None and request.streaming is None:
        free_bytes = request.budget_bytes - request.memory(context_tokens, chunk_tokens).peak
        more = with_slots(request.paging, request.paging.slots + free_bytes // request.paging.slot_bytes)
        return replace(
            request, weights_bytes=request.weights_bytes - request.paging.memory_bytes + more.memory_bytes, paging=more
        )
    if request.streaming is None:
        return request
    work = step_workload(cost, start_token=DECODE_CONTEXT_TOKENS, num_tokens=1)
    resident = step_seconds(work, cost=cost, machine=machine, threads=request.threads)
    others_bytes = request.memory(context_tokens, chunk_tokens).peak - request.streaming.memory_bytes
    best = best_streaming(
        request.streaming, room_bytes=request.budget_bytes - others_bytes, resident_seconds=resident.total
    )
    return replace(request, weights_bytes=best.memory_bytes + request.slots_bytes, streaming=best)


def _refuse_uneven_heads(model: ModelSpec, kv_format: KvName) -> None:
    """Codes of 4 bits come in runs of 32 values."""
    widths = {layer.grouped_attention.head_dim for layer in model.layers}
    if kv_format == "INT4" and any(width % 32 for width in widths):
        raise UsageError(
            f"a cache in int4 needs heads of a multiple of 32 values and {model.name} has {max(widths)}; use --kv int8."
        )


def _with_the_rest_as_pages(request: _Request, context_tokens: int, chunk_tokens: int) -> _Request:
    """The request with as many tokens in the KV cache as fit, at most every sequence's whole context; where weights
    stream, at most half of what there is for both.
    """
    request = replace(request, kv_at_most_weights=request.streaming is not None or request.paging is not None)

    def holding(pages: int) -> _Request:
        return replace(request, kv_tokens=pages * PAGE_TOKENS)

    most_pages = request.max_sequences * -(-context_tokens // PAGE_TOKENS)
    return holding(_largest(lambda pages: holding(pages).fits(context_tokens, chunk_tokens), at_most=most_pages))


def _threads(machine: Machine, threads: int | None) -> int:
    if threads is None:
        return machine.threads
    if not 1 <= threads <= machine.threads:
        raise UsageError(f"{threads} threads cannot run here: {machine.threads} are allowed; give 1 to that many.")
    return threads


def _budget(machine: Machine, budget_bytes: int | None) -> int:
    ram = machine.tier("ram")
    if budget_bytes is None:
        return int(ram.available_bytes * DEFAULT_BUDGET_PART)
    if budget_bytes > ram.capacity_bytes:
        raise BudgetError(
            f"a budget of {binary_bytes(budget_bytes)} is {binary_bytes(budget_bytes - ram.capacity_bytes)} more than "
            f"the memory here; give --memory {ram.capacity_bytes // 1024**2}MiB or less."
        )
    return budget_bytes


def _context(request: _Request, context_tokens: int | None, chunk_tokens: int | None) -> int:
    """The context asked for, or the default where it fits, or the most pages that fit. BudgetError otherwise.

    A context that was asked for may be paid for with the smallest chunk; one that is chosen leaves room for a chunk
    of the usual size, if there is such a context.
    """
    smallest_chunk = chunk_tokens or SMALL_CHUNKS[-1]
    if context_tokens is not None:
        if request.fits(context_tokens, _step_tokens(request, context_tokens, smallest_chunk)):
            return context_tokens
        raise _refusal(request, context_tokens, smallest_chunk)
    wanted = min(request.model.max_context_tokens, DEFAULT_CONTEXT_TOKENS)
    least = min(wanted, LEAST_DEFAULT_CONTEXT_TOKENS)
    for chunk in (chunk_tokens or SMALL_CHUNKS[0], smallest_chunk):
        if request.fits(wanted, _step_tokens(request, wanted, chunk)):
            return wanted
        if (largest := _largest_context(request, wanted, chunk)) >= least:
            return largest
    raise _refusal(request, least, smallest_chunk)


def _step_tokens(request: _Request, context_tokens: int, chunk_tokens: int) -> int:
    """A step is no longer than the context, and has a token of every sequence."""
    return max(min(chunk_tokens, context_tokens), request.max_sequences)


def _largest_context(request: _Request, below_tokens: int, chunk_tokens: int) -> int:
    """The most whole pages, less than `below_tokens`, that fit; 0 for none."""

    def fits(pages: int) -> bool:
        tokens = pages * PAGE_TOKENS
        return request.fits(tokens, _step_tokens(request, tokens, chunk_tokens))

    return _largest(fits, at_most=(below_tokens - 1) // PAGE_TOKENS) * PAGE_TOKENS


def _refusal(request: _Request, wanted_tokens: int, chunk_tokens: int) -> BudgetError:
    memory = request.memory(wanted_tokens, _step_tokens(request, wanted_tokens, chunk_tokens))
    streamed = "" if request.streaming is None else f", streamed through {request.streaming.slots} buffers"
    if request.paging is not None:
        streamed += f", with {request.paging.slots} of {request.paging.num_experts} experts"
    largest_tokens = _largest_context(request, wanted_tokens, chunk_tokens)
    missing_bytes = memory.peak - request.budget_bytes
    enough = f"--memory {enough_mib(memory.peak)}"
    change = f"--context {largest_tokens}, or {enough}" if largest_tokens else enough
    sequences = f" for each of {request.max_sequences} sequences" if request.max_sequences > 1 else ""
    return BudgetError(
        f"{request.model.name} needs {binary_bytes(memory.peak)} with a context of {wanted_tokens}{sequences} "
        f"(weights {binary_bytes(memory.weights)}{streamed}, KV cache {binary_bytes(memory.kv_cache)}, "
        f"activations {binary_bytes(memory.activations)}, runtime {binary_bytes(memory.runtime)}); the budget is "
        f"{binary_bytes(request.budget_bytes)}, {binary_bytes(missing_bytes)} ({missing_bytes} bytes) too little. "
        f"The cheapest change: {change}."
    )


def _chunk(request: _Request, cost: ModelCost, context_tokens: int, machine: Machine, threads: int) -> int:
    """Of the usual chunks that fit, the smallest with which a prompt is forecast to be done about as soon as with the
    best, beside all other sequences, which decode in each of its steps; else the largest that fits.
    """
    prompt_tokens = max(1, context_tokens // 2)
    others = Step(sequences=request.max_sequences - 1, context_tokens=min(DECODE_CONTEXT_TOKENS, context_tokens))
    beside = step_seconds(Workload.of(cost.works(others)), cost=cost, machine=machine, threads=threads).total
    fitting = {}
    for tokens in (_step_tokens(request, context_tokens, size) for size in CHUNK_CHOICES):
        if request.fits(context_tokens, tokens):
            planned = _with_the_rest_as_weights(request, cost, context_tokens, tokens, machine)
            fitting[tokens] = prefill_seconds(
                cost,
                prompt_tokens=prompt_tokens,
                chunk_tokens=tokens,
                machine=machine,
                threads=threads,
                streaming=planned.streaming,
                paging=planned.paging,
            )
            if others.sequences:
                fitting[tokens] += -(-prompt_tokens // tokens) * beside
    if fitting:
        best_seconds = min(fitting.values())
        return min(size for size, needed in fitting.items() if needed <= best_seconds * _CHUNK_SLOWER_AT_MOST)
    small = (_step_tokens(request, context_tokens, size) for size in SMALL_CHUNKS)
    return next(tokens for tokens in small if request.fits(context_tokens, tokens))


def _largest(fits: Callable[[int], bool], *, at_most: int) -> int:
    """The largest number up to `at_most` that fits, where all smaller ones than one that fits do; 0 for none."""
    low, high = 0, at_most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
