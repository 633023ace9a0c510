"""Which bytes lie where: one model on the devices of a machine, by class and device, and what other tiers take in.

What every step reads stays nearest. Where device memory is too small, experts go first, then layers, to RAM and then
to disk: one step reads few of the experts, and all of the layers. Keys and values follow to RAM.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from residency.errors import UsageError
from residency.hardware import Device, Machine
from residency.ledger.kv import pages_of_a_sequence
from residency.planner.engines import Engine
from residency.planner.graph import AttentionKind, StepShape
from residency.planner.rates import Spilled
from residency.spec.model import LayerSpec, ModelSpec
from residency.spec.ranks import layer_rank_bytes, rank_bytes, rank_states, rank_tensor_bytes
from residency.spec.state import KvFormat, StateSpec

OTHER_TIERS_PART = 0.9  # of RAM and disk that weights may take


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of a deployment: so many sequences at a time, each of so many tokens."""

    context_tokens: int
    prompt_tokens: int  # of them
    concurrency: int

    @property
    def answer_tokens(self) -> int:
        """What a prompt leaves of the context."""
        return max(1, self.context_tokens - self.prompt_tokens)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a model is deployed: everything that a search may vary."""

    quant: str | None  # a label of `requantized`; None: as published
    kv: KvFormat
    tensor_parallel: int
    pipeline_parallel: int
    replicas: int = 1
    may_spill: bool = False  # weights may lie in RAM and on disk
    attention: AttentionKind = "flash"

    @property
    def num_devices(self) -> int:
        """Devices that hold something."""
        return self.tensor_parallel * self.pipeline_parallel * self.replicas


@dataclass(frozen=True, kw_only=True)
class StageWeights:
    """The weights of one rank of a pipeline stage."""

    beside_bytes: int  # tables, the head, norms
    layer_bytes: int  # the layers without their experts
    expert_bytes: int

    @property
    def num_bytes(self) -> int:
        """All of them."""
        return self.beside_bytes + self.layer_bytes + self.expert_bytes


@dataclass(frozen=True, kw_only=True)
class StageRest:
    """What the engine takes on one rank of a pipeline stage beside weights and states."""

    activation_bytes: int
    runtime_bytes: int
    graphs_bytes: int


@dataclass(frozen=True, kw_only=True)
class StageNeeds:
    """All that one rank of a pipeline stage needs, before it is known what fits."""

    weights: StageWeights
    states: tuple[StateSpec, ...]  # of one sequence
    rest: StageRest

    def with_draft(self, draft: ModelSpec, kv: KvFormat) -> "StageNeeds":
        """The same with a draft model beside it, held whole."""
        weights = replace(self.weights, beside_bytes=self.weights.beside_bytes + rank_bytes(draft))
        return replace(self, weights=weights, states=(*self.states, *draft.states(kv)))


@dataclass(frozen=True, kw_only=True)
class DeviceBytes:
    """One device's memory by class. What is missing is what does not fit into the budget; free is then 0."""

    name: str
    stage: int
    budget_bytes: int
    weights: int
    kv_cache: int
    activations: int
    runtime: int
    graphs_bytes: int  # of recorded steps, in what the budget leaves of the memory
    pool_tokens: int  # of contexts, all sequences together, that fit beside the weights
    max_concurrency: float  # sequences of the whole context that fit

    @property
    def free(self) -> int:
        """What the budget leaves over."""
        return max(0, self.budget_bytes - self.used_bytes)

    @property
    def missing_bytes(self) -> int:
        """How much too small the budget is."""
        return max(0, self.used_bytes - self.budget_bytes)

    @property
    def used_bytes(self) -> int:
        """All classes together."""
        return self.weights + self.kv_cache + self.activations + self.runtime


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the bytes of one replica lie. `spilled` is of one rank; RAM and disk hold it for all."""

    devices: tuple[DeviceBytes, ...]  # those of one replica
    spilled: Spilled
    ram_bytes: int  # weights
    ram_cache_bytes: int  # keys and values
    disk_bytes: int  # weights

    @property
    def num_bytes(self) -> int:
        """On all devices and tiers together."""
        elsewhere = self.ram_bytes + self.ram_cache_bytes + self.disk_bytes
        return elsewhere + sum(device.used_bytes for device in self.devices)

    @cached_property
    def missing_bytes(self) -> int:
        """Of all devices together."""
        return sum(device.missing_bytes for device in self.devices)

    @property
    def fits(self) -> bool:
        """Whether nothing is missing."""
        return self.missing_bytes == 0


def stage_models(model: ModelSpec, stages: int) -> tuple[ModelSpec, ...]:
    """The model cut into pipeline stages of consecutive layers, as even as can be, earlier ones the larger.

    UsageError for more stages than layers.
    """
    if stages == 1:
        return (model,)
    if not 1 <= stages <= len(model.layers):
        raise UsageError(
            f"{model.name} has {len(model.layers)} layers, which cannot make {stages} pipeline stages; give fewer."
        )
    bounds = [-(-len(model.layers) * stage // stages) for stage in range(stages + 1)]
    return tuple(replace(model, layers=model.layers[first:last]) for first, last in pairwise(bounds))


def stage_weights(model: ModelSpec, choice: Choice, *, device: Device, engine: Engine) -> tuple[StageWeights, ...]:
    """The weights of each pipeline stage on each of its ranks. UsageError where heads or layers cannot be shared."""
    stages = stage_models(model, choice.pipeline_parallel)
    is_left = engine.leaves_embedding(device)
    return tuple(_weights(stage, index, model, choice, engine, is_left) for index, stage in enumerate(stages))


def stage_states(model: ModelSpec, choice: Choice, engine: Engine) -> tuple[tuple[StateSpec, ...], ...]:
    """What one sequence keeps on each rank of each stage."""
    stages = stage_models(model, choice.pipeline_parallel)
    states = (rank_states(stage, choice.kv, choice.tensor_parallel) for stage in stages)
    return tuple(tuple(engine.kept(model, state) for state in each) for each in states)


def stage_rest(
    model: ModelSpec, choice: Choice, load: Load, *, device: Device, engine: Engine
) -> tuple[StageRest, ...]:
    """What the engine takes beside weights and states on each rank of each stage."""
    ranks = choice.tensor_parallel
    shape = StepShape(
        tokens=engine.step_tokens(device, max(load.context_tokens, load.concurrency)),
        sequences=engine.sequences(device, load.concurrency),
        context_tokens=load.context_tokens,
        tensor_parallel=ranks,
        attention=choice.attention,
        is_stage=choice.pipeline_parallel > 1,
    )
    last = choice.pipeline_parallel - 1
    return tuple(
        StageRest(
            activation_bytes=engine.activations(stage, replace(shape, has_head=index == last)),
            runtime_bytes=engine.runtime(device, ranks, choice.pipeline_parallel),
            graphs_bytes=engine.graphs(stage, ranks),
        )
        for index, stage in enumerate(stage_models(model, choice.pipeline_parallel))
    )


def place(
    needs: tuple[StageNeeds, ...],
    choice: Choice,
    load: Load,
    *,
    machine: Machine,
    device: Device,
    engine: Engine,
    budget_bytes: int | None = None,
) -> Placement:
    """The bytes of `choice`. `budget_bytes` is of each device, by default what the engine plans with.

    Nothing is refused for being too large: what is missing is said.
    """
    budget = int(device.usable_bytes * engine.utilisation) if budget_bytes is None else budget_bytes
    placed = [_placed(each, index, load, device, engine, budget) for index, each in enumerate(needs)]
    if choice.may_spill and any(each.missing_bytes for each in placed):
        return _spill(needs, placed, choice, load, machine=machine, device=device)
    devices = tuple(each for each in placed for _ in range(choice.tensor_parallel))
    return Placement(devices=devices, spilled=Spilled(), ram_bytes=0, ram_cache_bytes=0, disk_bytes=0)


def sequence_bytes(states: tuple[StateSpec, ...], tokens: int, *, page_tokens: int, chunk_tokens: int = 0) -> int:
    """What one sequence of so many tokens keeps, in whole pages; of a window one page more, as it begins inside one,
    and the `chunk_tokens` that are being computed."""
    total = 0
    for state in states:
        pages = pages_of_a_sequence(
            tokens, page_tokens=page_tokens, window_tokens=state.max_tokens, chunk_tokens=chunk_tokens
        )
        total += state.fixed_bytes + state.bytes_per_token * pages * page_tokens
    return total


def _weights(
    stage: ModelSpec, index: int, model: ModelSpec, choice: Choice, engine: Engine, embedding_is_left: bool
) -> StageWeights:
    ranks = choice.tensor_parallel
    is_last = index == choice.pipeline_parallel - 1
    layers = sum(count * layer_rank_bytes(layer, ranks) for layer, count in stage.alike)
    experts = sum(count * _expert_bytes(layer) for layer, count in stage.alike) // ranks
    absent = _absent_bytes(model, index, is_last, ranks, engine.padding_rows, embedding_is_left)
    around_bytes = rank_bytes(replace(model, layers=()), ranks, padding_rows=engine.padding_rows)
    return StageWeights(
        beside_bytes=around_bytes - absent + engine.held(stage, ranks),
        layer_bytes=layers - experts,
        expert_bytes=experts,
    )


def _expert_bytes(layer: LayerSpec) -> int:
    """Bytes of a layer's experts."""
    return sum(tensor.num_bytes for tensor in layer.tensors if tensor.role == "expert")


def _placed(
    needs: StageNeeds, index: int, load: Load, device: Device, engine: Engine, budget_bytes: int
) -> DeviceBytes:
    per_sequence = sequence_bytes(needs.states, load.context_tokens, page_tokens=engine.page_tokens)
    pool = max(0, budget_bytes - needs.weights.num_bytes - needs.rest.activation_bytes - needs.rest.runtime_bytes)
    sequences = engine.concurrency(needs.states, pool, load.context_tokens, engine.chunk_tokens(device))
    if sequences is None:
        sequences = pool / per_sequence if per_sequence else float(load.concurrency)
    return DeviceBytes(
        name=device.name,
        stage=index,
        budget_bytes=budget_bytes,
        weights=needs.weights.num_bytes,
        kv_cache=load.concurrency * per_sequence,
        activations=needs.rest.activation_bytes,
        runtime=needs.rest.runtime_bytes,
        graphs_bytes=needs.rest.graphs_bytes,
        pool_tokens=_pool_tokens(needs.states, pool, sequences, load, engine.page_tokens),
        max_concurrency=sequences,
    )


def _absent_bytes(
    model: ModelSpec, index: int, is_last: bool, ranks: int, padding_rows: int, embedding_is_left: bool
) -> int:
    """Of what stands beside the layers, what this stage does not hold: it looks tokens up, or it scores them."""
    absent = 0
    if (index > 0 or embedding_is_left) and not (model.tied and is_last):
        absent += rank_tensor_bytes(model.embedding, ranks, padding_rows=padding_rows)
    if not is_last and model.head is not None:
        absent += rank_tensor_bytes(model.head, ranks, padding_rows=padding_rows)
    return absent


def _pool_tokens(states: tuple[StateSpec, ...], pool_bytes: int, sequences: float, load: Load, page_tokens: int) -> int:
    per_token = sum(state.bytes_per_token for state in states)
    if all(state.max_tokens is None and not state.fixed_bytes for state in states) and per_token:
        return pool_bytes // (per_token * page_tokens) * page_tokens
    return int(sequences * load.context_tokens) if states else 0


def _spill(
    needs: tuple[StageNeeds, ...],
    placed: list[DeviceBytes],
    choice: Choice,
    load: Load,
    *,
    machine: Machine,
    device: Device,
) -> Placement:
    """Move what does not fit to a replica's share of RAM, and what that cannot take to disk, experts first."""
    ranks = choice.tensor_parallel
    is_shared = device.kind in ("cpu", "unified")  # then RAM is the device's own memory
    ram_left = 0 if is_shared else int(machine.tier("ram").available_bytes * OTHER_TIERS_PART) // choice.replicas
    disk = next((tier for tier in machine.tiers if tier.kind == "disk"), None)
    disk_left = int(disk.available_bytes * OTHER_TIERS_PART) // choice.replicas if disk else 0
    devices: list[DeviceBytes] = []
    total = Spilled()
    fullest = Spilled()
    for stage, each in zip(needs, placed, strict=True):
        experts = min(each.missing_bytes, stage.weights.expert_bytes)
        layers = min(each.missing_bytes - experts, stage.weights.layer_bytes)
        ram_experts = min(experts, ram_left // ranks)
        ram_layers = min(layers, ram_left // ranks - ram_experts)
        disk_experts = min(experts - ram_experts, disk_left // ranks)
        disk_layers = min(layers - ram_layers, disk_left // ranks - disk_experts)
        ram_left -= ranks * (ram_layers + ram_experts)
        ram_cache = min(each.missing_bytes - experts - layers, each.kv_cache, ram_left // ranks)
        ram_left -= ranks * ram_cache
        moved = Spilled(
            ram_layers=ram_layers,
            ram_experts=ram_experts,
            ram_cache=ram_cache,
            disk_layers=disk_layers,
            disk_experts=disk_experts,
        )
        disk_left -= ranks * (disk_layers + disk_experts)
        devices += [_relieved(each, moved, load)] * ranks
        total = _sum(total, moved)
        fullest = max(fullest, moved, key=lambda spilled: spilled.num_bytes)
    return Placement(
        devices=tuple(devices),
        spilled=total if choice.pipeline_parallel > 1 else fullest,
        ram_bytes=ranks * (total.ram_layers + total.ram_experts),
        ram_cache_bytes=ranks * total.ram_cache,
        disk_bytes=ranks * (total.disk_layers + total.disk_experts),
    )


def _relieved(device: DeviceBytes, moved: Spilled, load: Load) -> DeviceBytes:
    """The device without what was moved away, which is just as much as the sequences asked for need."""
    if not moved.num_bytes:
        return device
    relieved = replace(device, weights=device.weights - moved.weight_bytes, kv_cache=device.kv_cache - moved.ram_cache)
    if relieved.missing_bytes:
        return relieved
    tokens, sequences = load.concurrency * load.context_tokens, float(load.concurrency)
    return replace(relieved, pool_tokens=tokens, max_concurrency=sequences)


def _sum(one: Spilled, other: Spilled) -> Spilled:
    return Spilled(**{name: getattr(one, name) + getattr(other, name) for name in vars(one)})
