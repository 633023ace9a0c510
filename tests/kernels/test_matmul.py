"""Products of every format are those of the definition."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from residency.formats import Format, GroupedFormat, pack_rows, unpack_rows
from residency.formats.tiles import tile_rows
from residency.kernels.matmul import Matrix, linear, reference
from support.steps import MATRICES, Runner, Step

Floats = npt.NDArray[np.float32]
ROWS = 40  # the last tile is half empty
COLUMNS = 512


@dataclass(frozen=True, kw_only=True)
class Case:
    """A matrix in a format, and rows to multiply."""

    number_format: Format
    rows_RB: npt.NDArray[np.uint8]
    x_TC: Floats
    bias_R: Floats

    @property
    def rounding_TR(self) -> npt.NDArray[np.float64]:
        """What float32 may lose: two roundings of a sum in which every |x| meets the row's largest value."""
        largest_R = np.abs(unpack_rows(self.number_format, self.rows_RB)).max(axis=1)
        sizes_T = np.abs(self.x_TC).sum(axis=1)
        lost_TR: npt.NDArray[np.float64] = np.multiply.outer(sizes_T, largest_R) * 2.0**-24 * 2 + 1e-9
        return lost_TR


def case(number_format: Format, tokens: int, rows: int = ROWS, columns: int = COLUMNS) -> Case:
    rng = np.random.default_rng([tokens, rows, columns])
    values = rng.standard_normal((rows, columns)).astype(np.float32) + np.float32(0.3)
    return Case(
        number_format=number_format,
        rows_RB=pack_rows(number_format, values),
        x_TC=rng.standard_normal((tokens, columns)).astype(np.float32) * np.float32(3),
        bias_R=rng.standard_normal(-(-rows // 16) * 16).astype(np.float32),
    )


def tiled(step: Step, made: Case) -> Matrix:
    tiles = step.given(tile_rows(made.number_format, made.rows_RB))
    rows = len(made.rows_RB)
    return Matrix(format=made.number_format, rows=rows, columns=made.x_TC.shape[1], tiles=tiles)


def product(run: Runner, made: Case, threads: int, *, bias: bool = False) -> Floats:
    step = Step(num_tokens=len(made.x_TC))
    out_TR = step.poisoned(len(made.x_TC), -(-len(made.rows_RB) // 16) * 16)
    matrix, x = tiled(step, made), step.rows(made.x_TC)
    linear(step.recorder, x, matrix, out_TR, bias=step.given(made.bias_R) if bias else None)
    run(step, threads)
    return out_TR[:, : len(made.rows_RB)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", range(1, 10))
@pytest.mark.parametrize("name", MATRICES)
def test_a_product_is_that_of_the_definition(run: Runner, name: str, tokens: int, threads: int) -> None:
    made = case(MATRICES[name], tokens)
    expected = reference.linear(made.x_TC, made.number_format, made.rows_RB)
    assert (np.abs(product(run, made, threads) - expected) < made.rounding_TR).all()


@pytest.mark.parametrize("tokens", range(1, 10))
@pytest.mark.parametrize("name", MATRICES)
def test_a_bias_is_added_to_every_row(run: Runner, name: str, tokens: int) -> None:
    made = case(MATRICES[name], tokens)
    expected = reference.linear(made.x_TC, made.number_format, made.rows_RB, bias_R=made.bias_R[:ROWS])
    assert (np.abs(product(run, made, 2, bias=True) - expected) < made.rounding_TR).all()


@pytest.mark.parametrize("tokens", range(1, 10))
@pytest.mark.parametrize("name", MATRICES)
def test_accumulating_adds_to_what_was_there(run: Runner, name: str, tokens: int) -> None:
    made = case(MATRICES[name], tokens)
    before_TR = np.random.default_rng(1).standard_normal((tokens, 48)).astype(np.float32)
    step = Step(num_tokens=tokens)
    out_TR = step.given(before_TR)
    matrix, x = tiled(step, made), step.rows(made.x_TC)
    linear(step.recorder, x, matrix, out_TR, bias=step.given(made.bias_R), accumulate=True)
    run(step, 2)
    expected = reference.linear(
        made.x_TC, made.number_format, made.rows_RB, bias_R=made.bias_R[:ROWS], before_TR=before_TR[:, :ROWS]
    )
    assert (np.abs(out_TR[:, :ROWS] - expected) < made.rounding_TR).all()


def test_a_product_for_logits_is_of_as_many_rows_as_are_wanted(run: Runner) -> None:
    made = case(MATRICES["Q4_1"], 5)
    step = Step(num_tokens=5, logit_rows=[0, 0])
    out_TR = step.poisoned(5, 48)
    linear(step.recorder, step.rows(made.x_TC), tiled(step, made), out_TR, of_logits=True)
    run(step, 2)
    assert np.isnan(out_TR[2:]).all() and not np.isnan(out_TR[:2]).any()


@pytest.mark.parametrize("name", MATRICES)
def test_each_token_s_product_is_the_same_whatever_is_beside_it(run: Runner, name: str) -> None:
    made = case(MATRICES[name], 31)  # 16, 8, 4, 2 and 1 at once
    alone = [product(run, Case(**{**made.__dict__, "x_TC": made.x_TC[token : token + 1]}), 1) for token in range(31)]
    np.testing.assert_array_equal(product(run, made, 2), np.concatenate(alone))


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_of_one_row_and_one_block_is_multiplied(run: Runner, name: str) -> None:
    columns = max(32, MATRICES[name].block_values)
    made = case(MATRICES[name], 3, rows=1, columns=columns)
    expected = reference.linear(made.x_TC, made.number_format, made.rows_RB)
    assert (np.abs(product(run, made, 2) - expected) < made.rounding_TR).all()


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_with_random_bits_in_its_codes_is_multiplied(run: Runner, name: str) -> None:
    """All codes and group scales occur, which packing real values need not reach."""
    number_format = MATRICES[name]
    rng = np.random.default_rng(7)
    values = rng.standard_normal((64, COLUMNS)).astype(np.float32)
    rows_RB = pack_rows(number_format, values)
    if not number_format.is_float:
        _randomise_codes(number_format, rows_RB, rng)
    x_TC = rng.standard_normal((4, COLUMNS)).astype(np.float32)
    made = Case(number_format=number_format, rows_RB=rows_RB, x_TC=x_TC, bias_R=np.zeros(64, np.float32))
    expected = reference.linear(x_TC, number_format, rows_RB)
    assert (np.abs(product(run, made, 2) - expected) < made.rounding_TR).all()


@pytest.mark.parametrize("name", MATRICES)
def test_rows_of_zeros_give_zeros(run: Runner, name: str) -> None:
    made = case(MATRICES[name], 2)
    zeros = Case(**{**made.__dict__, "x_TC": np.zeros_like(made.x_TC)})
    assert (product(run, zeros, 1) == 0).all()


def _randomise_codes(number_format: Format, rows_RB: npt.NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Random bits everywhere but in the floating-point scales."""
    blocks = rows_RB.reshape(-1, number_format.block_bytes)
    first = {"Q4_1": 4, "Q5_1": 4, "Q4_K": 4, "Q5_K": 4, "MXFP4": 1, "Q2_K": 0, "Q3_K": 0, "Q6_K": 0}
    scales = first.get(number_format.name, 2)
    end = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(number_format.name, number_format.block_bytes)
    if isinstance(number_format, GroupedFormat):
        scales, end = 0, number_format.code_bytes
    blocks[:, scales:end] = rng.integers(0, 256, (len(blocks), end - scales))
