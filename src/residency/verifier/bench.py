"""Speed by length of prompt, by context and by batch, each beside its forecast and what the machine's limits allow."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from residency.engine.calibrate import read_kernel
from residency.engine.engine import Progress
from residency.hardware import Device, Machine
from residency.planner.cost import ModelCost, Step, Workload, compute_rates, step_seconds, step_workload
from residency.planner.device_speed import LinkedDevice, device_prefill_seconds, device_seconds, elsewhere, workload
from residency.planner.plan import Plan
from residency.planner.speed import prefill_seconds
from residency.planner.streaming import streamed_seconds
from residency.store.memory_rate import memory_read_rates
from residency.verifier.opened import Opened, opened

BATCH_CONTEXT_TOKENS = 64  # of each sequence where several decode together
READ_LOOP_SECONDS = 1.0
_MOST_READ_LOOP_BYTES = 512 * 1024**2
_WARM_TOKENS = 8
Say = Callable[[str], None]
PlanFor = Callable[[int, int], Plan]  # (context tokens, sequences): a plan with room for them
Where = Machine | LinkedDevice  # what computes, and is forecast


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to measure."""

    prompt_tokens: tuple[int, ...] = (16, 512, 4096)
    context_tokens: tuple[int, ...] = (0, 1024, 4096)
    sequences: tuple[int, ...] = (1, 2, 4, 8, 16)
    decode_tokens: int = 32  # of each measurement
    repeats: int = 3

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest sequence, the generated ones included."""
        return max(
            [*(prompt + 1 for prompt in self.prompt_tokens), *map(self._after, self.context_tokens), _WARM_TOKENS + 2]
        )

    @property
    def batched_tokens(self) -> int:
        """Tokens of each of the sequences that decode together; the first waits while the last is prefilled."""
        return BATCH_CONTEXT_TOKENS + self.decode_tokens * self.repeats + max(self.sequences, default=1) + 3

    def _after(self, context_tokens: int) -> int:
        """Tokens of a sequence that decodes after so many."""
        return max(1, context_tokens) + self.decode_tokens * self.repeats + 3

    def within(self, most_context_tokens: int) -> "Asked":
        """Without what a model of so many tokens of context cannot do."""
        return Asked(
            prompt_tokens=tuple(each for each in self.prompt_tokens if each < most_context_tokens),
            context_tokens=tuple(each for each in self.context_tokens if self._after(each) <= most_context_tokens),
            sequences=self.sequences,
            decode_tokens=self.decode_tokens,
            repeats=self.repeats,
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine can do at most."""

    read_bytes_per_second: float  # as the probe measured it for a working set of the model's weights
    read_loop_bytes_per_second: float  # a bare loop over so many bytes, in this very run
    operations_per_second: float  # the matrix kernels' measured peak, of all cores
    prompt_operations_per_second: float  # of those that prompts go through

    def to_data(self) -> dict[str, float]:
        """As JSON values."""
        return {
            "read_bytes_per_second": self.read_bytes_per_second,
            "read_loop_bytes_per_second": self.read_loop_bytes_per_second,
            "operations_per_second": self.operations_per_second,
            "prompt_operations_per_second": self.prompt_operations_per_second,
        }


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One measurement: tokens per second of several repetitions, beside the forecast, and what one step works on."""

    kind: Literal["prefill", "decode"]
    sequences: int
    context_tokens: int  # of each sequence: the prompt's length in prefill, what came before in decode
    samples: tuple[float, ...]  # tokens per second of all sequences together
    forecast_tokens_per_second: float
    read_bytes_per_step: float  # weights once, and each sequence's keys and values
    operations_per_step: float
    steps_per_second: float

    @property
    def tokens_per_second(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def read_bytes_per_second(self) -> float:
        """What reading achieved."""
        return self.read_bytes_per_step * self.steps_per_second

    @property
    def operations_per_second(self) -> float:
        """What computing achieved."""
        return self.operations_per_step * self.steps_per_second

    @property
    def operations_per_byte(self) -> float:
        """How much is computed with each byte read."""
        return self.operations_per_step / self.read_bytes_per_step

    def share_of_operations(self, limits: Limits) -> float:
        """How near computing came to what the kernels that it goes through can do."""
        is_prompt = self.kind == "prefill"
        peak = limits.prompt_operations_per_second if is_prompt else limits.operations_per_second
        return self.operations_per_second / peak

    def to_data(self, limits: Limits) -> dict[str, object]:
        """As JSON values, with the shares of the limits."""
        return {
            "kind": self.kind,
            "sequences": self.sequences,
            "context_tokens": self.context_tokens,
            "tokens_per_second": {
                "median": self.tokens_per_second,
                "least": min(self.samples),
                "most": max(self.samples),
                "forecast": self.forecast_tokens_per_second,
            },
            "read_bytes_per_step": self.read_bytes_per_step,
            "operations_per_step": self.operations_per_step,
            "read_bytes_per_second": self.read_bytes_per_second,
            "operations_per_second": self.operations_per_second,
            "share_of_read_rate": self.read_bytes_per_second / limits.read_bytes_per_second,
            "share_of_operations": self.share_of_operations(limits),
        }


def measure(
    asked: Asked, plan_for: PlanFor, machine: Where, *, say: Say, progress: Progress | None = None
) -> tuple[Speed, ...]:
    """Every speed that is asked for, in the order asked. One sequence and several are opened one after the other, so
    that the KV cache of a long context is not made once for each sequence.
    """
    found: list[Speed] = []
    if asked.prompt_tokens or asked.context_tokens:
        with opened(plan_for(asked.longest_tokens, 1), progress) as model:
            _warm(model)
            for prompt_tokens in asked.prompt_tokens:
                say(f"prefill of {prompt_tokens} tokens")
                found.append(prefill_speed(model, machine, prompt_tokens=prompt_tokens, repeats=asked.repeats))
            for context_tokens in asked.context_tokens:
                say(f"decode after {context_tokens} tokens")
                found.append(_decode(model, machine, asked, sequences=1, context_tokens=context_tokens))
    if asked.sequences:
        with opened(plan_for(asked.batched_tokens, max(asked.sequences)), progress) as model:
            _warm(model)
            for sequences in asked.sequences:
                say(f"decode of {sequences} sequences")
                found.append(_decode(model, machine, asked, sequences=sequences, context_tokens=BATCH_CONTEXT_TOKENS))
    return tuple(found)


def _decode(model: Opened, machine: Where, asked: Asked, *, sequences: int, context_tokens: int) -> Speed:
    return decode_speed(
        model,
        machine,
        sequences=sequences,
        context_tokens=context_tokens,
        decode_tokens=asked.decode_tokens,
        repeats=asked.repeats,
    )


def prefill_speed(model: Opened, machine: Where, *, prompt_tokens: int, repeats: int) -> Speed:
    """From a prompt that nothing is known of to its first token, `repeats` times."""
    loop, plan, cost = model.loop, model.plan, model.cost
    samples, steps = [], 0
    read_before = loop.read_bytes
    for _ in range(repeats):
        model.submit(prompt_tokens, 1)
        started = time.perf_counter()
        while loop.has_work:
            loop.step()
            steps += 1
        samples.append(prompt_tokens / (time.perf_counter() - started))
    chunks = [
        step_workload(cost, start_token=start, num_tokens=min(plan.chunk_tokens, prompt_tokens - start))
        for start in range(0, prompt_tokens, plan.chunk_tokens)
    ]
    operations = sum(work.matrix_operations + work.attention_operations for work in chunks)
    steps_each = steps / repeats
    return Speed(
        kind="prefill",
        sequences=1,
        context_tokens=prompt_tokens,
        samples=tuple(samples),
        forecast_tokens_per_second=prompt_tokens / _prefill_seconds(model, machine, prompt_tokens),
        read_bytes_per_step=(loop.read_bytes - read_before) / steps,
        operations_per_step=operations / steps_each,
        steps_per_second=statistics.median(samples) / prompt_tokens * steps_each,
    )


def decode_speed(
    model: Opened, machine: Where, *, sequences: int, context_tokens: int, decode_tokens: int, repeats: int
) -> Speed:
    """Sequences of `context_tokens` (at least the one that decoding starts from) that decode together.

    `repeats` times `decode_tokens` steps of one generation; of each the median step counts.
    """
    loop = model.loop
    max_tokens = decode_tokens * repeats + sequences + 2  # the first sequence waits while the last is prefilled
    requests = [model.submit(max(1, context_tokens), max_tokens) for _ in range(sequences)]
    waiting = set(requests)
    while waiting:
        waiting -= {sampled.request_id for sampled in loop.step()}
    samples, read_before = [], loop.read_bytes
    for _ in range(repeats):
        step_times = []
        for _ in range(decode_tokens):
            started = time.perf_counter()
            loop.step()
            step_times.append(time.perf_counter() - started)
        samples.append(sequences / statistics.median(step_times))
    read_bytes = (loop.read_bytes - read_before) / (repeats * decode_tokens)
    for request in requests:
        loop.cancel(request)
    work = decode_workload(
        model.cost, sequences=sequences, context_tokens=context_tokens + decode_tokens * repeats // 2
    )
    return Speed(
        kind="decode",
        sequences=sequences,
        context_tokens=context_tokens,
        samples=tuple(samples),
        forecast_tokens_per_second=sequences / _step_seconds(model, machine, work, sequences),
        read_bytes_per_step=read_bytes,
        operations_per_step=work.matrix_operations + work.attention_operations,
        steps_per_second=statistics.median(samples) / sequences,
    )


def decode_workload(cost: ModelCost, *, sequences: int, context_tokens: int) -> Workload:
    """One step of sequences that decode together: weights are read once, of experts those that any is sent to, keys and
    values by each.
    """
    return workload(cost, Step(sequences=sequences, context_tokens=context_tokens + 1))


def _step_seconds(model: Opened, machine: Where, work: Workload, tokens: int) -> float:
    plan = model.plan
    if isinstance(machine, LinkedDevice):
        assert plan.device is not None, "a device runs plans of its own"
        needed = elsewhere(plan.device, model.cost, tokens)
        return device_seconds(work, machine, num_layers=len(model.spec.layers), needed=needed).total
    seconds = step_seconds(work, cost=model.cost, machine=machine, threads=plan.threads)
    return streamed_seconds(seconds.total, plan.streaming)


def _prefill_seconds(model: Opened, machine: Where, prompt_tokens: int) -> float:
    plan, cost = model.plan, model.cost
    if isinstance(machine, LinkedDevice):
        assert plan.device is not None, "a device runs plans of its own"
        return device_prefill_seconds(
            plan.device, cost, machine, prompt_tokens=prompt_tokens, chunk_tokens=plan.chunk_tokens
        )
    return prefill_seconds(
        cost,
        prompt_tokens=prompt_tokens,
        chunk_tokens=plan.chunk_tokens,
        machine=machine,
        threads=plan.threads,
        streaming=plan.streaming,
    )


def limits_of(machine: Machine, *, weight_bytes: int, threads: int) -> Limits:
    """The machine's limits for a model of so many bytes; measures the bare read loop, which takes about a second."""
    loop_bytes = min(weight_bytes, _MOST_READ_LOOP_BYTES)
    rates = memory_read_rates(
        read_kernel(), max_threads=threads, buffer_bytes=loop_bytes, limit_seconds=READ_LOOP_SECONDS
    )
    return Limits(
        read_bytes_per_second=machine.tier("ram").read_bytes_per_second(threads, weight_bytes),
        read_loop_bytes_per_second=rates[-1].bytes_per_second,
        operations_per_second=compute_rates(machine, threads, of_prompt=False).matrix,
        prompt_operations_per_second=compute_rates(machine, threads, of_prompt=True).matrix,
    )


def limits_of_device(device: Device) -> Limits:
    """A device's limits, all of which its probe has measured."""
    rate, operations = device.memory_bytes_per_second, device.dense_operations_per_second("bf16")
    return Limits(
        read_bytes_per_second=rate,
        read_loop_bytes_per_second=rate,
        operations_per_second=operations,
        prompt_operations_per_second=operations,
    )


def bench_data(plan: Plan, machine: Where, limits: Limits, speeds: Sequence[Speed]) -> dict[str, object]:
    """Everything as one JSON object. Paths stay out of it."""
    return {
        "model": plan.model_name,
        "format": plan.format_label,
        "machine": {"device": machine.device.name}
        if isinstance(machine, LinkedDevice)
        else {"processor": machine.processor, "cores": machine.cores},
        "made_up": plan.is_made_up,
        "threads": plan.threads,
        "limits": limits.to_data(),
        "speeds": [speed.to_data(limits) for speed in speeds],
    }


def _warm(model: Opened) -> None:
    """Pages of the weights are touched and threads are awake before anything counts."""
    model.submit(_WARM_TOKENS, 2)
    while model.loop.has_work:
        model.loop.step()
