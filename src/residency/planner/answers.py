"""The answer to "does it fit, and how fast?" as a record: frozen, JSON on disk, one shape for every machine.

All amounts are bytes, seconds and rates; those in `devices` are of one device each.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from residency.errors import FileError
from residency.records import from_data, to_data
from residency.spec.state import StateSpec

ANSWER_VERSION = 1
Bound = Literal["memory", "compute", "disk"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How sure a figure is: counted, measured somewhere, given by a model of measured parts, or carried further."""

    origin: Literal["exact", "measured", "modelled", "extrapolated", "assumed"]
    how: str


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """The model, in the format that is deployed."""

    name: str
    architecture: str
    format: str
    parameters: int
    active_parameters: int  # in one token
    weight_bytes: int  # of all tensors that are loaded
    checkpoint_bytes: int  # of all tensors of the published files, with those that nothing loads
    read_bytes_per_token: int
    max_context_tokens: int
    states: tuple[StateSpec, ...]  # of one sequence, summed over `layers`, before any sharing among devices
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlacementFigures:
    """How the model is deployed: unless it says otherwise whole, as published, on one device."""

    quant: str | None = None  # None: as published
    kv_format: str
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    replicas: int = 1
    context_tokens: int  # of each sequence
    prompt_tokens: int  # of the context
    concurrency: int
    chunk_tokens: int  # most tokens of one step
    ram_bytes: int = 0  # weights that lie in the host's RAM
    disk_bytes: int = 0  # and on its disk
    ram_cache_bytes: int = 0  # keys and values that lie in the host's RAM
    perplexity_rise: float = 0.0  # of the formats, see the explanation of planning; 0: as published
    drafted_tokens: int = 0  # that a draft model proposes in a round


@dataclass(frozen=True, kw_only=True)
class DeviceFigures:
    """One device's memory: the classes and what is free are the budget, unless bytes are missing."""

    name: str
    budget_bytes: int
    weights: int
    kv_cache: int = 0  # recurrent states included
    activations: int
    runtime: int
    free: int
    missing_bytes: int = 0
    gradients: int = 0
    optimizer: int = 0
    stage: int = 0
    usable_bytes: int = 0  # of which the budget is a part
    graphs_bytes: int = 0  # of recorded steps, outside the budget
    pool_tokens: int = 0  # of contexts, all sequences together, that fit beside the weights
    max_concurrency: float = 0.0  # sequences of the whole context that fit


@dataclass(frozen=True, kw_only=True)
class PhaseFigures:
    """One kind of step on one rank: what it reads and computes, and how long each takes."""

    read_bytes: int
    operations: int
    read_seconds: float
    compute_seconds: float
    overhead_seconds: float
    exchange_seconds: float  # among devices
    transfer_seconds: float  # from other tiers, beyond what is hidden
    seconds: float
    bound: Bound


@dataclass(frozen=True, kw_only=True)
class ForecastFigures:
    """Speeds. Where nothing else is said, of all sequences together at the concurrency asked for."""

    decode_tokens_per_second: float
    decode_tokens_per_second_alone: float  # of one sequence that has the machine to itself
    decode_tokens_per_second_per_sequence: float
    prefill_tokens_per_second: float  # of one prompt
    time_to_first_token_seconds: float  # of one prompt alone
    time_to_first_token_seconds_at_concurrency: float
    bound: Bound  # of decoding at the concurrency asked for
    prefill_bound: Bound
    turning_batch: int | None  # the fewest sequences whose decoding is bound by arithmetic
    plain_roofline_tokens_per_second: float  # of one sequence: bytes over the listed rate, nothing else
    decode: PhaseFigures
    decode_alone: PhaseFigures
    prefill: PhaseFigures
    price_per_million_tokens: float | None = None  # in the currency of the machine's file


@dataclass(frozen=True, kw_only=True)
class ChangeFigures:
    """What one option more, or another choice, would give."""

    option: str
    fits: bool
    missing_bytes: int
    freed_bytes: int  # on all devices and tiers together
    max_concurrency: float
    decode_tokens_per_second: float
    perplexity_rise: float


@dataclass(frozen=True, kw_only=True)
class TrainingFigures:
    """One device's memory while training, the fullest device's where they differ."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    peak_phase: str
    master_weights: int = 0  # float32 copies that the optimizer steps
    temporary: int = 0  # at the peak: gradients of activations, what is recomputed or gathered
    ram: int = 0  # offloaded, for each device
    published_activations: int | None = None  # of all layers, by the formula of arXiv 2205.05198, for comparison
    arithmetic: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """The whole answer."""

    model: ModelFigures
    machine: str
    status: str  # of its parts: shipped, announced or hypothetical
    engine: str
    goal: str | None
    fits: bool
    missing_bytes: int  # on all devices together
    placement: PlacementFigures
    devices: tuple[DeviceFigures, ...]
    forecast: ForecastFigures | None  # None: a training run
    training: TrainingFigures | None
    bottleneck: str  # with its arithmetic
    reasons: tuple[str, ...]  # for this placement
    nearest: ChangeFigures | None  # that fits, where this does not
    changes: tuple[ChangeFigures, ...]  # the cheapest in quality first
    weighed: int  # choices that were compared
    optimal: bool  # none of all that were allowed serves the goal better
    origins: Mapping[str, Origin]

    def to_json(self) -> str:
        """The answer as text that `from_json` reads back to an equal one."""
        return json.dumps({"answer_version": ANSWER_VERSION, **to_data(self)}, indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "AnswerRecord":
        """The answer that `to_json` wrote. Other text is a FileError."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise FileError(
                "the answer cannot be used: it is not JSON; make it anew with residency plan --json."
            ) from None
        if not isinstance(data, dict) or data.get("answer_version") != ANSWER_VERSION:
            raise FileError(
                f"the answer cannot be used: it is not one of version {ANSWER_VERSION}; "
                "make it anew with residency plan --json."
            )
        data.pop("answer_version")
        return from_data(AnswerRecord, data, what="the answer", error=FileError)
