"""Mixtures of experts on a device are those of the definition, in every layout of their matrices."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from residency.formats.planes import PLANE_LAYOUTS, PlaneLayout
from residency.kernels.device import DeviceExperts, DeviceMatrix, DeviceStep, StepShape, Tensor
from residency.kernels.experts import SharedProduct, combine, multiply, reference, route, send
from residency.kernels.gate import reference as gate_reference
from residency.kernels.recorder import Rows
from residency.spec.model import MoeSpec
from support.device import DEVICE, MULTIPROCESSORS, Floats, plain_matrix, planes_matrix, poisoned, tensor, values_of
from support.planes import random_planes, unpack_planes

HIDDEN, INTERMEDIATE, EXPERTS, PER_TOKEN = 64, 32, 5, 2
INT4 = PlaneLayout(code_bits=4, group_columns=32, zero=8, scales="half")
LAYOUTS = {"plain": None, "int4": INT4, "Q8_0": PLANE_LAYOUTS["Q8_0"], "Q5_1": PLANE_LAYOUTS["Q5_1"]}


def spec_of(experts: int = EXPERTS, per_token: int = PER_TOKEN, *, renormalized: bool = True) -> MoeSpec:
    return MoeSpec(
        num_experts=experts,
        experts_per_token=per_token,
        intermediate=INTERMEDIATE,
        activation="silu",
        renormalized=renormalized,
    )


def step_for(spec: MoeSpec, tokens: int, *, padding: int = 0) -> DeviceStep:
    """A step whose last rows are nobody's; its buffers are poisoned, routes with numbers far outside of them."""
    pairs = tokens * spec.experts_per_token
    buffers = {
        name: torch.full(shape, 1 << 24, dtype=torch.int32, device=DEVICE)
        for name, shape in {
            "expert_choices": (tokens, spec.experts_per_token),
            "experts_used": (1, spec.num_experts),
            "expert_rows": (pairs,),
            "expert_blocks": (pairs, 3),
        }.items()
    }
    buffers |= {name: poisoned(pairs, INTERMEDIATE) for name in ("expert_gate", "expert_up")}
    buffers["expert_out"] = poisoned(pairs, HIDDEN)
    buffers["expert_weights"] = poisoned(tokens, spec.experts_per_token)
    buffers["positions"] = tensor(np.where(np.arange(tokens) < tokens - padding, 3, -1))
    shape = StepShape(tokens=tokens, sampled=tokens, logits=0, items=0)
    return DeviceStep(buffers, shape, multiprocessors=MULTIPROCESSORS)


def routed(step: DeviceStep, logits_TE: Floats, spec: MoeSpec) -> None:
    route(step, tensor(logits_TE), spec, step.buffers["experts_used"][0])  # type: ignore[arg-type]


def told(step: DeviceStep, name: str) -> npt.NDArray[Any]:
    """What a buffer holds."""
    held: Tensor = step.buffers[name]
    values: npt.NDArray[Any] = held.cpu().numpy()
    return values


def random(*shape: int) -> Floats:
    return np.random.default_rng().standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("renormalized", [True, False])
@pytest.mark.parametrize(("experts", "per_token"), [(8, 2), (5, 5), (128, 8)])
def test_routes_are_those_of_the_definition(experts: int, per_token: int, renormalized: bool) -> None:
    spec, logits_TE = spec_of(experts, per_token, renormalized=renormalized), random(7, experts) * np.float32(3)
    step = step_for(spec, 7)
    routed(step, logits_TE, spec)
    expected = reference.routes(logits_TE, per_token, renormalized=renormalized)
    np.testing.assert_array_equal(told(step, "expert_choices"), expected.experts_TK)
    np.testing.assert_allclose(told(step, "expert_weights"), expected.weights_TK, rtol=1e-5)


def test_of_equal_experts_the_first_are_chosen() -> None:
    spec = spec_of(20, 4)
    step = step_for(spec, 3)
    routed(step, np.zeros((3, 20), np.float32), spec)
    assert step.buffers["expert_choices"].tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.filterwarnings("ignore:invalid value")  # NumPy's, of the interpreter
def test_logits_that_are_no_numbers_choose_experts_that_there_are() -> None:
    spec = spec_of()
    step = step_for(spec, 2)
    routed(step, np.full((2, EXPERTS), np.nan, np.float32), spec)
    assert int(step.buffers["expert_choices"].max()) < EXPERTS


@pytest.mark.parametrize("tokens", [1, 3, 60])
def test_blocks_hold_every_pair_once_with_its_expert(tokens: int) -> None:
    spec = spec_of()
    step = step_for(spec, tokens, padding=tokens // 3)
    routed(step, random(tokens, EXPERTS), spec)
    chosen = told(step, "expert_choices").ravel()
    rows = told(step, "expert_rows")
    found: dict[int, int] = {}
    for expert, first, count in step.buffers["expert_blocks"].tolist():
        if count < 1 << 24:  # beyond the grid's blocks nothing is written
            found |= dict.fromkeys(rows[first : first + count].tolist(), expert)
    assert found == {pair: expert for pair, expert in enumerate(chosen.tolist()) if expert >= 0}
    assert len(found) == (tokens - tokens // 3) * PER_TOKEN


def matrices(layout: PlaneLayout | None, rows: int, columns: int) -> tuple[DeviceMatrix, Floats]:
    """Every expert's matrix in one, and their values (experts, rows, columns)."""
    if layout is None:
        values = random(EXPERTS * rows, columns) * np.float32(columns**-0.5)
        made = plain_matrix(values)
    else:
        planes = random_planes(layout, EXPERTS * rows, columns, np.random.default_rng())
        planes["scales"] = (planes["scales"] * 0.05).astype(planes["scales"].dtype)
        values, made = unpack_planes(layout, planes), planes_matrix(layout, planes, EXPERTS * rows, columns)
    one = DeviceMatrix(rows=rows, columns=columns, layout=layout, planes=made.planes)
    return one, values.reshape(EXPERTS, rows, columns)


def expected_products(x_TC: Floats, chosen_TK: npt.NDArray[np.int64], values: list[Floats]) -> Floats:
    """Each pair's gated network (tokens, experts of a token, hidden)."""
    gate, up, down = values
    made = np.empty((*chosen_TK.shape, HIDDEN), np.float32)
    for (token, choice), expert in np.ndenumerate(chosen_TK):
        active = gate_reference.gated(gate[expert] @ x_TC[token], up[expert] @ x_TC[token], "silu")
        made[token, choice] = down[expert] @ active
    return made


@pytest.mark.parametrize(
    ("name", "tokens"), [("plain", 1), ("Q8_0", 1), ("int4", 3), ("plain", 45), ("int4", 45), ("Q5_1", 45)]
)
def test_a_mixture_is_that_of_the_definition(name: str, tokens: int) -> None:
    """One row a block, a few, and tiles; every third row of the step is nobody's and stays as it is."""
    spec, padding = spec_of(), tokens // 3
    x_TC, logits_TE, hidden_TC = random(tokens, HIDDEN), random(tokens, EXPERTS), random(tokens, HIDDEN)
    shapes = ((INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
    made = [matrices(LAYOUTS[name], *shape) for shape in shapes]
    experts = DeviceExperts(spec=spec, gate=made[0][0], up=made[1][0], down=made[2][0])
    step, out = step_for(spec, tokens, padding=padding), tensor(hidden_TC)
    routed(step, logits_TE, spec)
    rows = Rows(tensor(x_TC))  # type: ignore[arg-type]
    send(step, rows, HIDDEN, experts)  # type: ignore[arg-type]
    multiply(step, rows, HIDDEN, experts)  # type: ignore[arg-type]
    combine(step, spec, HIDDEN, out, None)  # type: ignore[arg-type]
    expected = reference.routes(logits_TE, PER_TOKEN, renormalized=True)
    products = expected_products(x_TC, expected.experts_TK, [values for _, values in made])
    wanted = reference.combined(hidden_TC, products, expected.weights_TK.astype(np.float32))
    wanted[tokens - padding :] = hidden_TC[tokens - padding :]
    np.testing.assert_allclose(values_of(out), wanted, rtol=1e-3, atol=1e-4 * float(np.abs(wanted).max()))


def test_the_shared_network_is_added_by_the_sigmoid_of_its_gate() -> None:
    spec, hidden_TC, shared_TC, gate_T1 = spec_of(), random(3, HIDDEN), random(3, HIDDEN), random(3, 1)
    step, out = step_for(spec, 3), tensor(hidden_TC)
    buffers: dict[str, Tensor] = step.buffers
    buffers["expert_weights"] = tensor(np.zeros((3, PER_TOKEN), np.float32))
    buffers["expert_out"] = tensor(random(3 * PER_TOKEN, HIDDEN))
    shared = SharedProduct(rows=tensor(shared_TC), gate=tensor(gate_T1))  # type: ignore[arg-type]
    combine(step, spec, HIDDEN, out, shared)  # type: ignore[arg-type]
    expected = hidden_TC + shared_TC / (1 + np.exp(-gate_T1))
    np.testing.assert_allclose(values_of(out), expected, rtol=1e-5, atol=1e-6)
