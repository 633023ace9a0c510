"""One way of deploying a model, weighed: its bytes, its speed, its loss; and the question that it answers."""

from dataclasses import dataclass, replace
from typing import Literal

from residency.errors import UsageError
from residency.hardware import Device, Machine
from residency.planner.cost import ModelCost
from residency.planner.engines import Engine
from residency.planner.graph import AttentionKind
from residency.planner.placing import (
    Choice,
    Load,
    Placement,
    StageNeeds,
    StageRest,
    StageWeights,
    place,
    stage_rest,
    stage_states,
    stage_weights,
)
from residency.planner.quality import loss_of, measured_losses
from residency.planner.rates import Pace, Ranks, Spilled
from residency.planner.serving import ServingForecast, Speculation, forecast_serving
from residency.spec.model import ModelSpec
from residency.spec.ranks import check_tensor_parallel
from residency.spec.requantize import requantized
from residency.spec.state import KvFormat, StateSpec, kv_format_named

MAX_VOCABULARY_PADDING = 128  # rows by which embeddings of one family differ: Qwen2.5's 0.5B and 7B
Goal = Literal["latency", "throughput", "tokens-per-second", "quality", "cost"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a user wants to know. None leaves the choice to the planner."""

    model: ModelSpec
    machine: Machine
    engine: Engine
    load: Load
    quant: str | None = None  # None: as published, or with a goal any
    kv: KvFormat | None = None  # None: 16 bits, or with a goal any
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    budget_bytes: int | None = None  # of each device
    may_spill: bool = False
    attention: AttentionKind = "flash"
    goal: Goal | None = None
    concurrency_is_free: bool = False  # a goal may choose another than load.concurrency
    draft: ModelSpec | None = None
    acceptance: float = 0.7

    def __post_init__(self) -> None:
        if self.budget_bytes is not None and self.budget_bytes < 1:
            raise UsageError("a budget of 0 bytes holds nothing; give --memory an amount such as 24GiB.")
        if not 0.0 <= self.acceptance <= 1.0:
            raise UsageError(f"an acceptance rate of {self.acceptance} cannot be; give one from 0 to 1.")
        if self.draft is not None and abs(self.draft.vocabulary - self.model.vocabulary) > MAX_VOCABULARY_PADDING:
            raise UsageError(
                f"{self.draft.name} has {self.draft.vocabulary} tokens and {self.model.name} {self.model.vocabulary}, "
                "so neither understands the other; give --draft a smaller model of the same family."
            )

    @property
    def device(self) -> Device:
        """The devices that hold the model: the machine's first kind."""
        return self.machine.compute_devices()[0]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A choice with what follows from it."""

    choice: Choice
    load: Load
    model: ModelSpec  # in the chosen format
    placement: Placement
    forecast: ServingForecast | None  # None: it does not fit, and nobody asked how fast it would be
    loss: float  # see planner/quality.py

    @property
    def fits(self) -> bool:
        """Whether all bytes have a place."""
        return self.placement.fits

    @property
    def tokens_per_second(self) -> float:
        """Of all replicas and sequences together; 0 where it does not fit."""
        return self.forecast.decode_tokens_per_second * self.choice.replicas if self.forecast else 0.0


class Deployer:
    """Weighs choices of one question; what several choices have in common is counted once."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self._models: dict[str | None, ModelSpec] = {None: question.model}
        self._halved: ModelSpec | None = None
        if question.engine.name.startswith("vllm") and question.model.format_label == "F32":
            note = "published in float32, which vLLM loads in 16 bits: bytes of devices are those"
            self._models[None] = replace(question.model, notes=(*question.model.notes, note))
            self._halved = requantized(question.model, "bf16")
        self._weights: dict[tuple[object, ...], tuple[StageWeights, ...]] = {}
        self._states: dict[tuple[object, ...], tuple[tuple[StateSpec, ...], ...]] = {}
        self._rest: dict[tuple[object, ...], tuple[StageRest, ...]] = {}
        self._costs: dict[tuple[object, ...], ModelCost] = {}
        self._paces: dict[tuple[object, ...], Pace] = {}
        self._forecasts: dict[tuple[object, ...], ServingForecast] = {}
        self.losses = measured_losses(question.model)  # by format

    def model(self, quant: str | None) -> ModelSpec:
        """The model in a format. UsageError or UnsupportedError where it cannot be had."""
        if quant not in self._models and quant is not None:
            self._models[quant] = requantized(self.question.model, quant)
        return self._models[quant]

    def loaded(self, quant: str | None) -> ModelSpec:
        """The model in the format that the engine keeps it in."""
        return self._halved if quant is None and self._halved is not None else self.model(quant)

    def weigh(
        self, choice: Choice, load: Load | None = None, *, machine: Machine | None = None, always_forecast: bool = False
    ) -> Deployment:
        """The deployment of `choice`. UsageError or MachineError where it is impossible, not where it is too large.

        `always_forecast` tells also how fast it would be if it fitted.
        """
        question = self.question
        machine = machine or question.machine
        device = machine.compute_devices()[0]
        asked = load or question.load
        load = replace(asked, concurrency=-(-asked.concurrency // choice.replicas))
        placement = place(
            self._stage_needs(choice, load, device),
            choice,
            load,
            machine=machine,
            device=device,
            engine=question.engine,
            budget_bytes=question.budget_bytes,
        )
        forecast = None
        if placement.fits or always_forecast:
            forecast = self._forecast(choice, load, placement.spilled, machine)
        return Deployment(
            choice=choice,
            load=asked,
            model=self.model(choice.quant),
            placement=placement,
            forecast=forecast,
            loss=loss_of(choice.quant, choice.kv.name, self.losses),
        )

    def cost(self, choice: Choice) -> ModelCost:
        """What steps of one rank are made of."""
        key = (choice.quant, choice.kv, choice.tensor_parallel)
        if key not in self._costs:
            model = self.loaded(choice.quant)
            self._costs[key] = ModelCost.of_rank(model, kv=choice.kv, tensor_parallel=choice.tensor_parallel)
        return self._costs[key]

    def _stage_needs(self, choice: Choice, load: Load, device: Device) -> tuple[StageNeeds, ...]:
        question = self.question
        split = (choice.tensor_parallel, choice.pipeline_parallel)
        weights_key, states_key, rest_key = (choice.quant, *split), (choice.kv, *split), (device.count, load, *split)
        if weights_key not in self._weights:
            self._weights[weights_key] = stage_weights(
                self.loaded(choice.quant), choice, device=device, engine=question.engine
            )
        if states_key not in self._states:
            self._states[states_key] = stage_states(question.model, choice, question.engine)
        if rest_key not in self._rest:
            self._rest[rest_key] = stage_rest(question.model, choice, load, device=device, engine=question.engine)
        parts = zip(self._weights[weights_key], self._states[states_key], self._rest[rest_key], strict=True)
        needs = tuple(StageNeeds(weights=weights, states=states, rest=rest) for weights, states, rest in parts)
        if question.draft is not None:
            return (needs[0].with_draft(question.draft, choice.kv), *needs[1:])
        return needs

    def _forecast(self, choice: Choice, load: Load, spilled: Spilled, machine: Machine) -> ServingForecast:
        """Of one replica: replicas with as much to do each are equally fast."""
        device = machine.compute_devices()[0]
        split = (choice.quant, choice.kv, choice.tensor_parallel, choice.pipeline_parallel)
        pace_key = (*split, spilled, device.count)
        if pace_key not in self._paces:
            ranks = Ranks(
                machine=machine,
                device=device,
                tensor_parallel=choice.tensor_parallel,
                pipeline_parallel=choice.pipeline_parallel,
                hidden=self.question.model.hidden,
                spilled=spilled,
            )
            self._paces[pace_key] = Pace(self.cost(choice), ranks)
        if (*pace_key, load) not in self._forecasts:
            chunk_tokens = self.question.engine.chunk_tokens(device)
            self._forecasts[*pace_key, load] = forecast_serving(
                self._paces[pace_key],
                load,
                chunk_tokens=chunk_tokens,
                speculation=self._speculation(choice.kv, machine),
            )
        return self._forecasts[*pace_key, load]

    def _speculation(self, kv: KvFormat, machine: Machine) -> Speculation | None:
        question = self.question
        if question.draft is None:
            return None
        ranks = Ranks(machine=machine, device=machine.compute_devices()[0], hidden=question.model.hidden)
        pace = Pace(ModelCost.of_rank(question.draft, kv=kv), ranks)
        return Speculation(pace=pace, acceptance=question.acceptance)


def default_choice(question: Question) -> Choice:
    """As asked, else as published with 16-bit keys and values on all devices: by tensor parallelism as far as heads
    can be shared, then in pipeline stages.

    UsageError where what is asked for needs more devices than there are.
    """
    device, count = question.device, question.device.count
    for name, degree in (("tensor-parallel ranks", question.tensor_parallel), ("stages", question.pipeline_parallel)):
        if degree is not None and degree < 1:
            raise UsageError(f"{degree} {name} cannot be; give at least 1.")
    tensor, pipeline = question.tensor_parallel, question.pipeline_parallel
    if tensor is None:
        most = max(1, _quickly_joined(question) // (pipeline or 1))
        tensor = next(ranks for ranks in range(most, 0, -1) if most % ranks == 0 and can_share(question.model, ranks))
    if pipeline is None:
        pipeline = min(count // tensor, len(question.model.layers)) if question.tensor_parallel is None else 1
    if (needed := tensor * pipeline) > count:
        raise UsageError(
            f"{tensor} ranks of tensor parallelism in {pipeline} stages need {needed} devices, and "
            f"{question.machine.name} has {count} of {device.name}; ask for fewer, or for another machine."
        )
    return Choice(
        quant=question.quant,
        kv=question.kv or kv_format_named("F16"),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        may_spill=question.may_spill,
        attention=question.attention,
    )


def _quickly_joined(question: Question) -> int:
    """How many devices the fastest link joins, of those that there are: ranks exchange much in every layer."""
    device = question.device
    if device.count == 1:
        return 1
    fastest = question.machine.peer_link(device, 2)
    return max(size for size in range(1, min(device.count, fastest.joins) + 1) if device.count % size == 0)


def can_share(model: ModelSpec, ranks: int) -> bool:
    """Whether so many ranks can share the model's heads."""
    try:
        check_tensor_parallel(model, ranks)
    except UsageError:
        return False
    return True
