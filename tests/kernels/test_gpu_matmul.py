"""Products, embeddings and norms on a device are those of the definition."""

import numpy as np
import pytest
import torch

from residency.formats import F32, FORMATS, grouped, pack_rows, unpack_rows
from residency.formats.planes import PLANE_LAYOUTS, plane_layout
from residency.kernels.embed import embed
from residency.kernels.gate import gated
from residency.kernels.gate import reference as gate_reference
from residency.kernels.matmul import linear
from residency.kernels.norm import reference as norm_reference
from residency.kernels.norm import rms_norm, rms_norm_add
from residency.kernels.recorder import Rows
from residency.planner.device_buffers import splits
from support.device import Floats, matrix_of, plain_matrix, planes_matrix, poisoned, step_of, tensor, values_of
from support.planes import random_planes, unpack_planes

ROWS, COLUMNS = 22, 512  # the last tile of rows is not whole
MANY_SPLITS = 64  # multiprocessors: so many programs share a tile's columns
GROUPED = (
    grouped(bits=4, group=128),
    grouped(bits=8, group=64),
    grouped(bits=4, group=32, has_zero=True),
    grouped(bits=8, group=128, has_zero=True, scales=F32),
)
LAYOUTS = {**PLANE_LAYOUTS, **{each.name: layout for each in GROUPED if (layout := plane_layout(each))}}


def product(
    name: str, x_TC: Floats, *, bias: Floats | None = None, before: Floats | None = None
) -> tuple[Floats, Floats]:
    """A product on the device with random codes and scales in every plane, and the definition's."""
    rng = np.random.default_rng()
    layout = LAYOUTS[name]
    tokens, columns = x_TC.shape
    planes = random_planes(layout, ROWS, columns, rng)
    out = poisoned(tokens, ROWS) if before is None else tensor(before)
    step = step_of(
        tokens=tokens, matmul_partials=poisoned(8 * tokens * ROWS), matmul_slab=poisoned(20 * columns), hidden=out
    )
    step.multiprocessors = MANY_SPLITS
    matrix = planes_matrix(layout, planes, ROWS, columns)
    added = None if bias is None else tensor(bias)
    linear(step, Rows(tensor(x_TC)), matrix, out, bias=added, accumulate=before is not None)  # type: ignore[arg-type]
    expected = x_TC.astype(np.float64) @ unpack_planes(layout, planes).T.astype(np.float64)
    for term in (bias, before):
        expected = expected if term is None else expected + term
    return values_of(out), expected.astype(np.float32)


def assert_near(ours: Floats, expected: Floats) -> None:
    """Within what float32 loses in sums of these sizes."""
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))


def random_rows(tokens: int, columns: int = COLUMNS) -> Floats:
    return np.random.default_rng().standard_normal((tokens, columns)).astype(np.float32)


@pytest.mark.parametrize(("name", "tokens"), [*((name, 2) for name in LAYOUTS), ("Q4_K", 1), ("Q6_K", 8)])
def test_a_product_of_few_rows_is_that_of_the_definition(name: str, tokens: int) -> None:
    assert_near(*product(name, random_rows(tokens)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_product_in_tiles_is_that_of_the_definition(name: str) -> None:
    assert_near(*product(name, random_rows(17)))


def test_programs_that_share_columns_add_up_to_the_definition_s_product() -> None:
    assert splits(MANY_SPLITS, rows=ROWS, columns=3 * COLUMNS, tokens=17) == 3
    assert_near(*product("Q5_K", random_rows(17, 3 * COLUMNS)))


@pytest.mark.parametrize("name", ["Q4_1", "Q5_K", "Q6_K", "INT8_G64", "INT4_G32_ZP"])
def test_a_product_in_slabs_is_that_of_the_definition(name: str) -> None:
    assert_near(*product(name, random_rows(257)))


@pytest.mark.parametrize("tokens", [2, 20, 257])
def test_a_bias_and_what_was_there_are_added(tokens: int) -> None:
    rng = np.random.default_rng()
    bias = rng.standard_normal(ROWS).astype(np.float32)
    before = rng.standard_normal((tokens, ROWS)).astype(np.float32)
    assert_near(*product("Q4_K", random_rows(tokens), bias=bias, before=before))


@pytest.mark.parametrize(("tokens", "fewer"), [(8, 1), (20, 10)])
def test_a_token_s_product_is_the_same_in_any_company(tokens: int, fewer: int) -> None:
    """Of those that go the same way: few rows, or tiles."""
    matrix = matrix_of(FORMATS["Q4_1"], pack_rows(FORMATS["Q4_1"], random_rows(ROWS)), COLUMNS)
    x_TC = random_rows(tokens)

    def multiplied(x: Floats) -> Floats:
        out = poisoned(len(x), ROWS)
        step = step_of(tokens=len(x), matmul_partials=poisoned(8 * len(x) * ROWS))
        linear(step, Rows(tensor(x)), matrix, out)  # type: ignore[arg-type]
        return values_of(out)

    np.testing.assert_array_equal(multiplied(x_TC)[:fewer], multiplied(x_TC[:fewer]))


def test_plain_values_are_multiplied_by_the_library() -> None:
    weights, x_TC, before = random_rows(ROWS), random_rows(4), random_rows(4, ROWS)
    out, bias = tensor(before), random_rows(1, ROWS)[0]
    step = step_of(tokens=4)
    linear(step, Rows(tensor(x_TC)), plain_matrix(weights), out, bias=tensor(bias), accumulate=True)  # type: ignore[arg-type]
    assert_near(values_of(out), x_TC @ weights.T + before + bias)


def test_a_product_in_float16_is_that_of_rounded_values() -> None:
    """Tensor cores multiply 16 bits: the matrix' values are rounded to the type that x has."""
    rows_RB = pack_rows(FORMATS["Q6_K"], random_rows(ROWS))
    x = tensor(random_rows(16), torch.float16)
    out = poisoned(16, ROWS, dtype=torch.float16)
    step = step_of(tokens=16, matmul_partials=poisoned(8 * 16 * ROWS))
    linear(step, Rows(x), matrix_of(FORMATS["Q6_K"], rows_RB, COLUMNS), out)  # type: ignore[arg-type]
    weights = torch.from_numpy(unpack_rows(FORMATS["Q6_K"], rows_RB)).half()
    expected = x.cpu().double() @ weights.double().T
    np.testing.assert_allclose(values_of(out), expected.numpy(), rtol=2.0**-10, atol=2.0**-8)


@pytest.mark.parametrize("name", ["Q4_0", "Q5_K", "Q6_K", "Q8_0"])
def test_embeddings_out_of_planes_are_the_rows_of_the_tokens(name: str) -> None:
    rows_RB = pack_rows(FORMATS[name], random_rows(40))
    tokens, out = np.array([39, 0, 7], np.int64), poisoned(3, COLUMNS)
    step = step_of(tokens=3, token_ids=tensor(tokens))
    embed(step, matrix_of(FORMATS[name], rows_RB, COLUMNS), 0.5, out)  # type: ignore[arg-type]
    expected = unpack_rows(FORMATS[name], rows_RB)[tokens] * np.float32(0.5)
    np.testing.assert_allclose(values_of(out), expected, rtol=1e-6, atol=1e-7)


def test_embeddings_of_plain_values_are_the_rows_of_the_tokens() -> None:
    weights, tokens, out = random_rows(40), np.array([39, 0, 7], np.int64), poisoned(3, COLUMNS)
    embed(step_of(tokens=3, token_ids=tensor(tokens)), plain_matrix(weights), 2.0, out)  # type: ignore[arg-type]
    np.testing.assert_allclose(values_of(out), weights[tokens] * 2, rtol=1e-6)


def test_a_norm_is_that_of_the_definition() -> None:
    x, weight = random_rows(3, 96), random_rows(1, 96)[0]
    step = step_of(tokens=3, normed=poisoned(3, 96))
    rows = rms_norm(step, tensor(x), tensor(weight), 1e-6, into="normed")  # type: ignore[arg-type]
    np.testing.assert_allclose(values_of(rows.values), norm_reference.rms_norm(x, weight, 1e-6), rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def test_a_norm_of_logits_takes_the_rows_that_are_wanted() -> None:
    x, weight = random_rows(5, 96), random_rows(1, 96)[0]
    step = step_of(tokens=5, logits=2, normed=poisoned(5, 96), logit_rows=tensor(np.array([4, 1], np.int64)))
    rows = rms_norm(step, tensor(x), tensor(weight), 1e-6, into="normed", of_logits=True)  # type: ignore[arg-type]
    expected = norm_reference.rms_norm(x[[4, 1]], weight, 1e-6)
    np.testing.assert_allclose(values_of(rows.values), expected, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def test_a_norm_is_added_to_the_residual() -> None:
    x, weight, residual = random_rows(3, 96), random_rows(1, 96)[0], random_rows(3, 96)
    after = tensor(residual)
    rms_norm_add(step_of(tokens=3), tensor(x), tensor(weight), 1e-6, after)  # type: ignore[arg-type]
    expected = norm_reference.rms_norm_add(x, weight, 1e-6, residual)
    np.testing.assert_allclose(values_of(after), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's, of what becomes 0
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_gated_product_is_that_of_the_definition(activation: str) -> None:
    gate, up = random_rows(3, 1056) * 20, random_rows(3, 1056)
    rows = gated(step_of(tokens=3), tensor(gate), tensor(up), activation, 1056, "")  # type: ignore[arg-type]
    expected = gate_reference.gated(gate, up, activation)  # type: ignore[arg-type]
    np.testing.assert_allclose(values_of(rows.values), expected, rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]
