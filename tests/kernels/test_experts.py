"""Routes are those of the definition, and experts multiply the rows that are sent to them, whoever else is there."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from residency.formats import FORMATS, pack_rows
from residency.formats.tiles import tile_rows
from residency.kernels.experts import Experts, Paged, combine, fetch, multiply, reference, route, send
from residency.kernels.gate import reference as gate_reference
from residency.kernels.matmul import reference as matmul_reference
from residency.kernels.recorder import FloatArray, address_of
from residency.kernels.simd.tiles import has_tiles
from residency.spec.model import MoeSpec
from support.steps import Runner, Step

HIDDEN, INTERMEDIATE = 96, 64
SPEC = MoeSpec(num_experts=5, experts_per_token=2, intermediate=INTERMEDIATE, activation="silu")


def random(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def routed_step(tokens: int, spec: MoeSpec, num_prompt: int = 0) -> Step:
    """A step with the buffers of routes, poisoned."""
    step = Step(num_tokens=tokens, num_prompt=num_prompt)
    choices = tokens * spec.experts_per_token
    step.buffers |= {
        "expert_choices": step.poisoned(tokens, spec.experts_per_token, dtype=np.int32),
        "expert_weights": step.poisoned(tokens, spec.experts_per_token),
        "expert_counts": step.poisoned(spec.num_experts, 2, dtype=np.int64),
        "expert_runs": step.poisoned(8 + 4 * (spec.num_experts + 1), dtype=np.int64),
        "expert_rows": step.poisoned(choices, dtype=np.int32),
        "expert_places": step.poisoned(tokens, spec.experts_per_token, dtype=np.int32),
        "experts_used": step.poisoned(spec.num_experts, dtype=np.int32),
    }
    return step


def padded(step: Step, logits_TE: FloatArray) -> FloatArray:
    """The logits as a product leaves them, in rows of whole tiles."""
    tokens, experts = logits_TE.shape
    rows = step.given(np.zeros((tokens, -(-experts // 16) * 16), np.float32))
    rows[:, :experts] = logits_TE
    return rows


def routed(run: Runner, logits_TE: FloatArray, per_token: int, *, renormalized: bool, threads: int = 2) -> Step:
    spec = MoeSpec(
        num_experts=logits_TE.shape[1],
        experts_per_token=per_token,
        intermediate=32,
        activation="silu",
        renormalized=renormalized,
    )
    step = routed_step(len(logits_TE), spec)
    route(step.recorder, padded(step, logits_TE), spec, step.buffers["experts_used"])
    run(step, threads)
    return step


@pytest.mark.parametrize("renormalized", [True, False])
@pytest.mark.parametrize(("experts", "per_token"), [(8, 2), (5, 5), (40, 8), (128, 1)])
def test_routes_are_those_of_the_definition(run: Runner, experts: int, per_token: int, renormalized: bool) -> None:
    logits_TE = random(33, experts) * np.float32(3)
    step = routed(run, logits_TE, per_token, renormalized=renormalized)
    expected = reference.routes(logits_TE, per_token, renormalized=renormalized)
    np.testing.assert_array_equal(step.buffers["expert_choices"], expected.experts_TK)
    np.testing.assert_allclose(step.buffers["expert_weights"], expected.weights_TK, rtol=2e-6)


def test_of_equal_experts_the_first_are_chosen(run: Runner) -> None:
    step = routed(run, np.zeros((3, 20), np.float32), 4, renormalized=True)
    assert step.buffers["expert_choices"].tolist() == [[0, 1, 2, 3]] * 3


def test_given_experts_are_taken_whatever_the_logits_say(run: Runner) -> None:
    given = np.array([[3, 0], [1, 4]], np.int32)
    step = routed_step(2, SPEC)
    route(step.recorder, padded(step, random(2, 5)), SPEC, step.buffers["experts_used"], step.given(given))
    run(step, 2)
    np.testing.assert_array_equal(step.buffers["expert_choices"], given)


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_choices_are_sorted_by_expert_and_then_by_token(run: Runner, tokens: int) -> None:
    step = routed(run, random(tokens, 8), 2, renormalized=True)
    chosen = step.buffers["expert_choices"].ravel()
    order = np.argsort(chosen, kind="stable")
    np.testing.assert_array_equal(step.buffers["expert_rows"], order // 2)
    np.testing.assert_array_equal(step.buffers["expert_places"].ravel()[order], np.arange(2 * tokens))
    np.testing.assert_array_equal(step.buffers["experts_used"], np.bincount(chosen, minlength=8))


@dataclass(frozen=True)
class Network:
    """The matrices of five experts, in rows of a format and as kernels find them."""

    format_name: str
    rows: list[tuple[npt.NDArray[np.uint8], ...]]

    def given(self, step: Step) -> Experts:
        chosen = FORMATS[self.format_name]
        tiles = [[tile_rows(chosen, matrix).ravel() for matrix in expert] for expert in self.rows]
        blobs = [step.given(np.concatenate(expert)) for expert in tiles]
        up_at, down_at = len(tiles[0][0]), len(tiles[0][0]) + len(tiles[0][1])
        return Experts(
            spec=SPEC,
            gate_format=chosen,
            down_format=chosen,
            up_at=up_at,
            down_at=down_at,
            addresses=step.given(np.array([address_of(blob) for blob in blobs], np.int64)),
        )


def network(format_name: str) -> Network:
    shapes = ((INTERMEDIATE, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
    return Network(
        format_name,
        [
            tuple(pack_rows(FORMATS[format_name], random(*shape, seed=7 * e + i)) for i, shape in enumerate(shapes))
            for e in range(SPEC.num_experts)
        ],
    )


def mixed(
    run: Runner, experts: Network, x_TC: FloatArray, logits_TE: FloatArray, *, num_prompt: int = 0, threads: int = 2
) -> tuple[FloatArray, Step]:
    """What a mixture makes of x, added to nothing."""
    step = routed_step(len(x_TC), SPEC, num_prompt)
    rows = len(x_TC) * SPEC.experts_per_token
    step.buffers |= {
        "expert_in": step.poisoned(rows, HIDDEN),
        "expert_in_q8": step.poisoned_groups(rows, HIDDEN),
        "expert_gated": step.poisoned(rows, INTERMEDIATE),
        "expert_gated_q8": step.poisoned_groups(rows, INTERMEDIATE),
        "expert_out": step.poisoned(rows, HIDDEN),
    }
    hidden_TC = step.given(np.zeros_like(x_TC))
    given = experts.given(step)
    route(step.recorder, padded(step, logits_TE), SPEC, step.buffers["experts_used"])
    x = step.rows(x_TC, num_prompt=num_prompt)
    send(step.recorder, x, HIDDEN, given)
    multiply(step.recorder, x, HIDDEN, given)
    combine(step.recorder, SPEC, HIDDEN, hidden_TC, None)
    run(step, threads)
    return hidden_TC, step


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("format_name", ["F32", "Q4_1"])
def test_a_mixture_is_that_of_the_definition(run: Runner, format_name: str, tokens: int, threads: int) -> None:
    """Activations in int8 are rounded twice, whole values from their groups' middle: some percent at most."""
    experts, x_TC, logits_TE = network(format_name), random(tokens, HIDDEN), random(tokens, 5)
    found_TC, step = mixed(run, experts, x_TC, logits_TE, threads=threads)
    products_ETC = []
    for gate, up, down in experts.rows:
        gates, ups = (matmul_reference.linear(x_TC, FORMATS[format_name], each) for each in (gate, up))
        inner = gate_reference.gated(gates.astype(np.float32), ups.astype(np.float32), "silu").astype(np.float32)
        products_ETC.append(matmul_reference.linear(inner, FORMATS[format_name], down).astype(np.float32))
    chosen_TK = step.buffers["expert_choices"]
    products_TKC = np.array(products_ETC)[chosen_TK, np.arange(tokens)[:, None]]
    expected_TC = reference.combined(np.zeros_like(x_TC), products_TKC, step.buffers["expert_weights"])
    limit = 1e-5 if format_name == "F32" else 1e-3
    assert np.abs(found_TC - expected_TC).max() < limit * np.abs(expected_TC).max()


@pytest.mark.parametrize("num_prompt", [0, 30])
@pytest.mark.parametrize("format_name", ["F32", "Q4_1"])
def test_a_token_s_result_does_not_depend_on_who_else_is_there(run: Runner, format_name: str, num_prompt: int) -> None:
    experts, x_TC, logits_TE = network(format_name), random(40, HIDDEN), random(40, 5)
    together_TC, _ = mixed(run, experts, x_TC, logits_TE, num_prompt=num_prompt)
    first, last = (
        mixed(run, experts, x_TC[i : i + 1], logits_TE[i : i + 1], num_prompt=n)[0] for i, n in _ends(num_prompt)
    )
    np.testing.assert_array_equal(together_TC[0], first[0])
    np.testing.assert_array_equal(together_TC[-1], last[0])


def _ends(num_prompt: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The first token, which is no prompt's, and the last, which may be."""
    return (0, 0), (39, min(1, num_prompt))


@pytest.mark.skipif(not has_tiles(), reason="this processor has no tile registers for bfloat16")
def test_a_step_notes_where_it_found_the_experts_that_it_needs(run: Runner) -> None:
    """So that one that is taken out of the table and put back meanwhile is not missing."""
    step = routed_step(3, SPEC)
    experts = network("F32").given(step)
    paged = Paged(
        layer=0,
        bell=0,
        board=step.given(np.zeros(24, np.int64)),
        guessed=step.given(np.zeros(5, np.int32)),
        found=step.given(np.zeros(5, np.int64)),
    )
    route(step.recorder, padded(step, random(3, 5)), SPEC, step.buffers["experts_used"])
    fetch(step.recorder, experts, paged)
    run(step, 2)
    needed = step.buffers["experts_used"] > 0
    np.testing.assert_array_equal(paged.found, np.where(needed, experts.addresses, 0))


def test_prompts_in_tile_registers_are_nearer_than_rows_in_int8(run: Runner) -> None:
    experts, x_TC, logits_TE = network("Q4_1"), random(40, HIDDEN), random(40, 5)
    in_tiles, _ = mixed(run, experts, x_TC, logits_TE, num_prompt=40)
    in_int8, _ = mixed(run, experts, x_TC, logits_TE)
    assert 0 < np.abs(in_tiles - in_int8).max() < 0.02 * np.abs(in_int8).max()
