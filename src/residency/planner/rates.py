"""How long a step takes on a device, operator by operator, with what devices exchange and what other tiers bring.

The processor that residency runs on reads on while it computes: there the whole step has one roofline. A device of the
catalog finishes one kernel before the next: there each operator has its own, and the rest waits.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import cache

from residency.hardware import Device, Link, Machine, NumberFormat
from residency.planner.cost import MatrixCost, ModelCost, Step, StepSeconds, Work

_FLOATS: dict[str, NumberFormat] = {"F32": "tf32", "F16": "fp16", "BF16": "fp16"}
_READ_AS_THEY_ARE = ("F32", "F16", "BF16", "cache")
MAX_BATCH = 65_536  # beyond it, nobody asks where decoding turns from memory to arithmetic
ACTIVATION_BYTES = 2  # of a value that devices hand on
EXCHANGES_PER_LAYER = 2  # all-reduces: after attention and after the feed-forward network (arXiv 1909.08053)


@dataclass(frozen=True, kw_only=True)
class Spilled:
    """What of one rank does not lie in device memory, in bytes."""

    ram_layers: int = 0
    ram_experts: int = 0
    ram_cache: int = 0  # keys and values
    disk_layers: int = 0
    disk_experts: int = 0

    @property
    def weight_bytes(self) -> int:
        """All weights of it."""
        return self.ram_layers + self.ram_experts + self.disk_layers + self.disk_experts

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.ram_cache


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """How devices share a model."""

    machine: Machine
    device: Device
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    hidden: int  # width of what they hand on
    spilled: Spilled = Spilled()


class Pace:
    """How fast one rank of `ranks` goes whose steps are made of `cost`; steps that are alike are weighed once."""

    def __init__(self, cost: ModelCost, ranks: Ranks) -> None:
        self.cost, self.ranks = cost, ranks
        self.step_seconds = cache(lambda step: step_seconds_on(cost, step, ranks))


def step_seconds_on(cost: ModelCost, step: Step, ranks: Ranks) -> StepSeconds:
    """One step of one rank of `ranks.tensor_parallel`; `cost` is that rank's. Pipeline stages follow each other, so
    the sum over them is what one token waits for, and each stage takes its part of it."""
    device = ranks.device
    works = cost.works(step)
    reads = [work.read_bytes / read_rate(device, work.number_format) for work in works]
    computes = [_compute_seconds(device, work) for work in works]
    read, compute = sum(reads), sum(computes)
    in_turn = sum(map(max, reads, computes)) if device.kind != "cpu" else max(read, compute)
    overhead = device.figure("step_overhead_seconds") + cost.num_layers * device.figure("layer_overhead_seconds")
    return StepSeconds(
        read=read,
        compute=compute,
        overhead=overhead,
        unevenness=in_turn - max(read, compute),
        exchange=_exchange_seconds(cost, step, ranks),
        transfer=_transfer_seconds(cost, step, ranks, busy_seconds=in_turn + overhead),
    )


def read_rate(device: Device, number_format: str) -> float:
    """Bytes a second at which weights of a format, or the cache, are read."""
    rate = device.memory_bytes_per_second * device.figure("read_efficiency")
    if number_format in _READ_AS_THEY_ARE or _is_fp8(number_format) or device.kind == "cpu":
        return rate
    return rate * device.figure("integer_read_efficiency")


def matrix_rate(device: Device, number_format: str) -> float:
    """Operations a second of products with weights of a format. Accelerators widen integers to 16 bits."""
    wanted: NumberFormat = _FLOATS.get(number_format, "fp16" if device.kind != "cpu" else "int8")
    if _is_fp8(number_format):
        wanted = "fp8"
    return device.dense_operations_per_second(wanted) * device.figure("matrix_efficiency")


def _is_fp8(number_format: str) -> bool:
    return number_format.lower().startswith(("fp8", "f8"))


def turning_batch(cost: ModelCost, device: Device) -> int | None:
    """The fewest sequences with which decoding's products with weights are bound by arithmetic; None up to 65,536."""
    if not _matrices_are_compute_bound(cost, device, MAX_BATCH):
        return None
    return bisect_left(range(MAX_BATCH), True, key=lambda batch: _matrices_are_compute_bound(cost, device, batch))


def _matrices_are_compute_bound(cost: ModelCost, device: Device, tokens: int) -> bool:
    works = [each.work(tokens) for each in cost.matrices]
    read = sum(work.read_bytes / read_rate(device, work.number_format) for work in works)
    return sum(_compute_seconds(device, work) for work in works) > read


def _compute_seconds(device: Device, work: Work) -> float:
    cache_rate = device.dense_operations_per_second("fp16") * device.figure("matrix_efficiency")
    return work.matrix_operations / matrix_rate(device, work.number_format) + work.attention_operations / cache_rate


def _exchange_seconds(cost: ModelCost, step: Step, ranks: Ranks) -> float:
    """Two ring all-reduces a layer among the ranks of tensor parallelism, and a hand-over between stages."""
    handed_bytes = step.tokens * ranks.hidden * ACTIVATION_BYTES
    seconds = 0.0
    if (parallel := ranks.tensor_parallel) > 1:
        link = ranks.machine.peer_link(ranks.device, parallel)
        moved_bytes = 2 * (parallel - 1) / parallel * handed_bytes
        seconds += EXCHANGES_PER_LAYER * cost.num_layers * _moving_seconds(link, ranks.device, moved_bytes)
    if (stages := ranks.pipeline_parallel) > 1:
        link = ranks.machine.peer_link(ranks.device, parallel * stages)
        seconds += (stages - 1) * _moving_seconds(link, ranks.device, handed_bytes / parallel)
    return seconds


def _moving_seconds(link: Link, device: Device, num_bytes: float) -> float:
    return link.latency_seconds + num_bytes / (link.bytes_per_second * device.figure("link_efficiency"))


def _transfer_seconds(cost: ModelCost, step: Step, ranks: Ranks, *, busy_seconds: float) -> float:
    """What spilled weights add to a step.

    Layers arrive while those before them are computed, so only what takes longer than that counts. Which experts are
    needed is known too late for that. Either may instead be computed where it lies, by the host, one after another.
    """
    spilled = ranks.spilled
    if not spilled.num_bytes:
        return 0.0
    experts = next((each for each in cost.matrices if each.name == "experts"), None)
    touched = experts.touched_share(step.tokens) if experts else 1.0
    disk = spilled.disk_layers + spilled.disk_experts * touched
    disk_seconds = disk / ranks.machine.tier("disk").read_bytes_per_second(1) if disk else 0.0
    link = ranks.machine.host_link(ranks.device)
    if link is None:
        return max(0.0, disk_seconds - busy_seconds)
    rate = link.bytes_per_second * ranks.device.figure("link_efficiency")
    late_bytes = (spilled.ram_experts + spilled.disk_experts) * touched
    early_seconds = (spilled.ram_layers + spilled.disk_layers) / rate
    moved = max(0.0, max(early_seconds, disk_seconds) - busy_seconds) + late_bytes / rate
    in_place = disk_seconds + _host_seconds(cost, step, ranks, experts)
    cached_bytes = min(spilled.ram_cache, sum(each.work(step).read_bytes for each in cost.attention))
    cache_seconds = cached_bytes / max(rate, _host_read_rate(ranks.machine))  # attended to where they lie
    return min(moved, in_place) + cache_seconds


def _host_seconds(cost: ModelCost, step: Step, ranks: Ranks, experts: MatrixCost | None) -> float:
    """Products with the weights in RAM, by the host's processor."""
    machine, spilled = ranks.machine, ranks.spilled
    rate = _host_read_rate(machine)
    operations_rate = machine.figure("matrix_int8_operations_per_second") * machine.cores
    seconds = 0.0
    for matrix in cost.matrices:
        if matrix.name == "output head":
            continue
        is_expert = matrix is experts
        held = spilled.ram_experts + spilled.disk_experts if is_expert else spilled.ram_layers + spilled.disk_layers
        share = held / max(1, sum(m.num_layers * m.read_bytes for m in cost.matrices if m.name == matrix.name))
        work = matrix.work(step.tokens)
        seconds += share * max(work.read_bytes / rate, work.matrix_operations / operations_rate)
    return seconds


def _host_read_rate(machine: Machine) -> float:
    return machine.tier("ram").read_bytes_per_second(machine.threads) * machine.figure("read_efficiency")
