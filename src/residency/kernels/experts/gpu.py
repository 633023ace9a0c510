"""Mixtures of experts on a device: routes, rows sorted by expert, and products of blocks of them with its matrices.

A block is some rows of one expert, so many that most experts have one: then each matrix is read once. How many follows
from the step's shape alone, and so does the grid, which has room for all blocks that there may be, so that a CUDA graph
can hold it; those that are not needed have no rows. (T. Gale et al.: MegaBlocks, 2022, multiplies the blocks of experts
in the same way.) A pair is a token with one of its experts: token * per_token + choice.
"""

from typing import Any

import triton

from residency.kernels.device import DeviceExperts, DeviceMatrix, DevicePaged, DeviceStep, Tensor
from residency.kernels.device_language import power_of_two
from residency.kernels.experts import SharedProduct
from residency.kernels.experts.gpu_paging import ASKED, GUESSED, bring, mark_guesses
from residency.kernels.experts.gpu_paging import copy_experts as copy_experts
from residency.kernels.experts.gpu_products import multiply_few_of_experts, multiply_tiles_of_experts
from residency.kernels.experts.gpu_routes import combine_pairs, count_pairs, route_pairs, sort_pairs
from residency.kernels.gate.gpu import activate_rows
from residency.kernels.matmul.gpu import MOST_FEW_ROWS, constants, plane_words, row_bytes
from residency.kernels.recorder import Rows
from residency.planner.device_buffers import TILE_ROWS, TILE_TOKENS
from residency.spec.model import MoeSpec

_PAIRS = 1024  # that are looked through at a time
_FEW_TILE_ROWS, _FEW_CHUNKS, _TILE_CHUNKS = 4, 32, 4
_COLUMNS = 1024


def route(step: DeviceStep, logits: Tensor, spec: MoeSpec, used: Tensor, given: Tensor | None = None) -> None:
    """See kernels.experts.route. Rows of padding are sent nowhere."""
    assert given is None, "routes on a device come from logits"
    if step.only_logits:
        return
    pairs, block = _pairs(step, spec), power_of_two(spec.num_experts)
    choices, positions = step.buffers["expert_choices"], step.buffers["positions"]
    route_pairs[(step.rows(),)](
        logits,
        positions,
        choices,
        step.buffers["expert_weights"],
        spec.num_experts,
        logits.stride(0),
        PER_TOKEN=spec.experts_per_token,
        RENORMALIZED=spec.renormalized,
        BLOCK=block,
        num_warps=1,
    )
    count_pairs[(spec.num_experts,)](choices, used, pairs, BLOCK=_PAIRS)
    sort_pairs[(spec.num_experts + 1,)](
        choices,
        used,
        step.buffers["expert_rows"],
        step.buffers["expert_blocks"],
        pairs,
        spec.num_experts,
        _most_blocks(step, spec),
        ROWS=_block_rows(step, spec),
        EXPERTS=block,
        BLOCK=_PAIRS,
    )


def fetch(step: DeviceStep, paged: DevicePaged) -> None:
    """See kernels.experts.fetch: the programs that are started next find all experts that they need."""
    if step.only_logits:
        return
    paged.aside.join()
    used, missed = step.buffers["experts_used"], step.buffers["experts_missed"]
    bring(step, paged, used[paged.layer], missed[paged.layer], kept=used[paged.before], row=ASKED)


def guess(step: DeviceStep, logits: Tensor, spec: MoeSpec, paged: DevicePaged) -> None:
    """See kernels.experts.guess: what is guessed is copied beside the products of the layer that computes."""
    if step.only_logits or step.shape.sampled == 0:
        return
    guessed, used = step.buffers["experts_guessed"][paged.layer], step.buffers["experts_used"]
    mark_guesses[(step.shape.sampled,)](
        logits,
        step.buffers["positions"],
        guessed,
        spec.num_experts,
        logits.stride(0),
        PER_TOKEN=spec.experts_per_token,
        BLOCK=power_of_two(spec.num_experts),
        num_warps=1,
    )
    with paged.aside.begun():
        bring(step, paged, guessed, guessed, kept=used[paged.before], row=GUESSED)


def multiply(step: DeviceStep, x: Rows, experts: DeviceExperts) -> None:
    """See kernels.experts.multiply: the products of every pair into "expert_out"."""
    if step.only_logits:
        return
    gate, up, out = (step.buffers[name] for name in ("expert_gate", "expert_up", "expert_out"))
    for matrix, product in ((experts.gate, gate), (experts.up, up)):
        _multiply(step, experts, x.values, matrix, product, gathers=True)
    activate_rows(gate[: _pairs(step, experts.spec)], up, experts.spec.activation, experts.spec.intermediate)
    _multiply(step, experts, gate, experts.down, out, gathers=False)


def combine(step: DeviceStep, spec: MoeSpec, columns: int, hidden: Tensor, shared: SharedProduct | None) -> None:
    """See kernels.experts.combine."""
    if step.only_logits:
        return
    products: Tensor = step.buffers["expert_out"]
    combine_pairs[(step.rows(), triton.cdiv(columns, _COLUMNS))](
        hidden,
        products,
        step.buffers["expert_weights"],
        step.buffers["positions"],
        None if shared is None else shared.rows,
        None if shared is None else shared.gate,
        columns,
        hidden.stride(0),
        products.stride(0),
        0 if shared is None else shared.rows.stride(0),
        0 if shared is None else shared.gate.stride(0),
        PER_TOKEN=spec.experts_per_token,
        SHARED=shared is not None,
        BLOCK=_COLUMNS,
    )


def _pairs(step: DeviceStep, spec: MoeSpec) -> int:
    return step.rows() * spec.experts_per_token


def _block_rows(step: DeviceStep, spec: MoeSpec) -> int:
    """Rows of a block: twice what an expert gets on average, so that most get one block; a program can take no more."""
    usual = -(-2 * _pairs(step, spec) // spec.num_experts)
    return min(TILE_TOKENS, power_of_two(min(usual, step.rows())))


def _most_blocks(step: DeviceStep, spec: MoeSpec) -> int:
    pairs = _pairs(step, spec)
    return min(pairs, pairs // _block_rows(step, spec) + spec.num_experts)


def _multiply(
    step: DeviceStep, experts: DeviceExperts, x: Tensor, matrix: DeviceMatrix, out: Tensor, *, gathers: bool
) -> None:
    """The rows of each block times its expert's matrix: `gathers` the tokens' rows and leaves them sorted, else takes
    sorted rows and leaves them by pair.
    """
    spec, paged = experts.spec, experts.paged
    rows, blocks = _block_rows(step, spec), _most_blocks(step, spec)
    places = None if paged is None else step.buffers["expert_places"][paged.layer]
    words = (x, *_planes(matrix), step.buffers["expert_rows"], step.buffers["expert_blocks"], places, out)
    steps = _expert_steps(matrix, paged)
    extents = (matrix.rows, matrix.columns, row_bytes(matrix), *steps, x.stride(0), out.stride(0))
    named: dict[str, Any] = {"PER_TOKEN": spec.experts_per_token, "GATHERS": gathers, **_constants(matrix)}
    if rows <= MOST_FEW_ROWS:
        few = multiply_few_of_experts[(triton.cdiv(matrix.rows, _FEW_TILE_ROWS), blocks)]
        few(*words, *extents, TOKENS=rows, R=_FEW_TILE_ROWS, C=_FEW_CHUNKS, **named, num_warps=4)
    else:
        tiles = multiply_tiles_of_experts[(triton.cdiv(matrix.rows, TILE_ROWS), blocks)]
        tiles(*words, *extents, T=rows, R=TILE_ROWS, C=_TILE_CHUNKS, **named, num_warps=4, num_stages=3)


def _planes(matrix: DeviceMatrix) -> tuple[Tensor, ...]:
    if matrix.layout is None:
        return (matrix.planes["codes"],) * 4
    return plane_words(matrix)


def _expert_steps(matrix: DeviceMatrix, paged: DevicePaged | None) -> list[int]:
    """Values of each plane from one expert's to the next one's."""
    if paged is None:
        return [matrix.rows * plane.stride(0) for plane in _planes(matrix)]
    slot_bytes = paged.slots.stride(0) * paged.slots.element_size()
    return [slot_bytes // plane.element_size() for plane in _planes(matrix)]


def _constants(matrix: DeviceMatrix) -> dict[str, int | str]:
    if matrix.layout is None:
        return {"BITS": 16, "GROUP": 32, "ZERO": 0, "SCALES": "none"}
    return constants(matrix.layout)
