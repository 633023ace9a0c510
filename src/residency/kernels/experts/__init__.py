"""Mixtures of experts: routes, and the gated networks that tokens are sent to, each read once for all its tokens."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from residency.formats import Format
from residency.kernels.device import DeviceStep, on_device
from residency.kernels.matmul import groups_together
from residency.kernels.recorder import FloatArray, Recorder, Rows, address_of, row_bytes
from residency.spec.model import MoeSpec


@dataclass(frozen=True, kw_only=True)
class Paged:
    """How a step gets experts that are not in memory. Whoever brings them sets their addresses."""

    layer: int
    board: npt.NDArray[np.int64]  # see experts.fetch
    bell: int  # the file descriptor that is written to when somebody shall look
    guessed: npt.NDArray[np.int32]  # of each expert, whether the layer before would have sent a token to it
    found: npt.NDArray[np.int64]  # where this step has found each expert that it needs


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of a layer. An expert's gate, up and down lie together, `up_at` and `down_at` from its address on."""

    spec: MoeSpec
    gate_format: Format  # of gate and up
    down_format: Format
    up_at: int
    down_at: int
    addresses: npt.NDArray[np.int64]  # of each expert, 0 while it is not in memory
    given: npt.NDArray[np.int32] | None = None  # (tokens, experts of a token): where routes do not come from logits
    paged: Paged | None = None  # None: all are in memory

    @property
    def is_packed(self) -> bool:
        """Whether the matrices are in blocks, which multiply packed rows."""
        return not self.gate_format.is_float


@dataclass(frozen=True, kw_only=True)
class SharedProduct:
    """What the network that every token passes has made: rows (tokens, hidden), and their gate's logits (tokens, 1)."""

    rows: FloatArray
    gate: FloatArray


def route(
    step: Recorder,
    logits: FloatArray,
    spec: MoeSpec,
    used: npt.NDArray[np.int32],
    given: npt.NDArray[np.int32] | None = None,
) -> None:
    """Each token's experts and weights, from logits (tokens, experts), and the step's rows sorted by expert.

    How many rows each expert gets is written to `used` (experts,). `given` (tokens, experts of a token) are the experts
    that are chosen, whatever the logits say. Destroys the logits.
    """
    if isinstance(step, DeviceStep):
        on_device("experts").route(step, logits, spec, used, given)
        return
    chosen, inputs = address_of(step.buffers["expert_choices"]), step.inputs
    step.launch(
        "experts.route",
        logits=address_of(logits),
        stride=row_bytes(logits),
        experts=spec.num_experts,
        per_token=spec.experts_per_token,
        renormalized=spec.renormalized,
        given=0 if given is None else address_of(given),
        chosen=chosen,
        weights=address_of(step.buffers["expert_weights"]),
        tokens_at=inputs.num_tokens,
    )
    step.launch(
        "experts.sort",
        chosen=chosen,
        per_token=spec.experts_per_token,
        experts=spec.num_experts,
        counts=address_of(step.buffers["expert_counts"]),
        runs=address_of(step.buffers["expert_runs"]),
        used=address_of(used),
        rows=address_of(step.buffers["expert_rows"]),
        places=address_of(step.buffers["expert_places"]),
        int8_at=inputs.num_int8,
        tokens_at=inputs.num_tokens,
    )


def fetch(step: Recorder, experts: Experts, paged: Paged) -> None:
    """Wait until all experts that tokens are sent to are in memory, or until reading has failed."""
    if isinstance(step, DeviceStep):
        on_device("experts").fetch(step, paged)
        return
    step.launch(
        "experts.fetch",
        runs=address_of(step.buffers["expert_runs"]),
        table=address_of(experts.addresses),
        found=address_of(paged.found),
        board=address_of(paged.board),
        layer=paged.layer,
        bell=paged.bell,
    )


def guess(step: Recorder, logits: FloatArray, experts: Experts, paged: Paged) -> None:
    """Mark where a later layer's logits (tokens, experts), of an earlier layer's input, would send the first tokens
    (A. Eliseev, D. Mazur: Fast inference of mixture-of-experts language models with offloading, arXiv 2312.17238).
    """
    if isinstance(step, DeviceStep):
        on_device("experts").guess(step, logits, experts.spec, paged)
        return
    step.launch(
        "experts.guess",
        meet=False,
        logits=address_of(logits),
        stride=row_bytes(logits),
        experts=experts.spec.num_experts,
        per_token=experts.spec.experts_per_token,
        guessed=address_of(paged.guessed),
        table=address_of(experts.addresses),
        bell=paged.bell,
        int8_at=step.inputs.num_int8,
    )


def send(step: Recorder, x: Rows, columns: int, experts: Experts) -> None:
    """Copy x (tokens, columns) to the sorted rows, in the way that the experts' matrices multiply."""
    if isinstance(step, DeviceStep):
        return  # rows are read where they are
    source = x.as_q8(groups_together(experts.gate_format)) if experts.is_packed else x.as_values()
    out = step.buffers["expert_in_q8" if experts.is_packed else "expert_in"]
    assert columns % 32 == 0 and row_bytes(out) >= columns * (2 if experts.is_packed else 4)
    step.launch(
        f"experts.gather_{'packed' if experts.is_packed else 'floats'}",
        x=address_of(source),
        x_stride=row_bytes(source),
        out=address_of(out),
        out_stride=row_bytes(out),
        groups=columns // 32,
        runs=address_of(step.buffers["expert_runs"]),
        rows=address_of(step.buffers["expert_rows"]),
        int8_at=step.inputs.num_int8,
        tokens_at=step.inputs.num_tokens,
    )


def multiply(step: Recorder, x: Rows, columns: int, experts: Experts) -> None:
    """down(activation(gate(x)) * up(x)) of each expert, for the rows of x that `send` has copied to it."""
    if isinstance(step, DeviceStep):
        on_device("experts").multiply(step, x, experts)
        return
    kind = "_q8" if experts.is_packed else ""
    sent, gated, out = (step.buffers[name] for name in (f"expert_in{kind}", f"expert_gated{kind}", "expert_out"))
    intermediate, spec = experts.spec.intermediate, experts.spec
    assert experts.gate_format.is_float == experts.down_format.is_float, "rows are packed for both or for neither"
    runs = address_of(step.buffers["expert_runs"])
    table = experts.addresses if experts.paged is None else experts.paged.found
    step.launch(
        f"experts.gate_up_{spec.activation}_{experts.gate_format.name}",
        table=address_of(table),
        up_at=experts.up_at,
        runs=runs,
        x=address_of(sent),
        x_stride=row_bytes(sent),
        out=address_of(gated),
        out_stride=row_bytes(gated),
        groups=intermediate // 32,
        together=groups_together(experts.down_format),
        blocks=_blocks(experts.gate_format, columns),
    )
    step.launch(
        f"experts.down_{experts.down_format.name}",
        table=address_of(table),
        down_at=experts.down_at,
        runs=runs,
        x=address_of(gated),
        x_stride=row_bytes(gated),
        out=address_of(out),
        out_stride=row_bytes(out),
        groups=columns // 32,
        blocks=_blocks(experts.down_format, intermediate),
    )


def combine(step: Recorder, spec: MoeSpec, columns: int, hidden: FloatArray, shared: SharedProduct | None) -> None:
    """hidden (tokens, columns) += each token's experts' products by their weights, in the order in which they were
    chosen, and the shared network's by the sigmoid of its gate.
    """
    if isinstance(step, DeviceStep):
        on_device("experts").combine(step, spec, columns, hidden, shared)
        return
    products = step.buffers["expert_out"]
    step.launch(
        "experts.combine",
        hidden=address_of(hidden),
        stride=row_bytes(hidden),
        products=address_of(products),
        products_stride=row_bytes(products),
        places=address_of(step.buffers["expert_places"]),
        weights=address_of(step.buffers["expert_weights"]),
        per_token=spec.experts_per_token,
        shared=0 if shared is None else address_of(shared.rows),
        shared_stride=0 if shared is None else row_bytes(shared.rows),
        shared_gate=0 if shared is None else address_of(shared.gate),
        shared_gate_stride=0 if shared is None else row_bytes(shared.gate),
        groups=columns // 32,
        tokens_at=step.inputs.num_tokens,
    )


def _blocks(number_format: Format, columns: int) -> int:
    return columns // (4 if number_format.is_float else number_format.block_values)
