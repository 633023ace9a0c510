"""Files in published layouts mean what they say, read by the layouts' own packages or by their published formulas."""

import compressed_tensors.compressors as compressors
import numpy as np
import numpy.typing as npt
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from residency.errors import UsageError
from residency.quantize.grids import IntegerMatrix, IntegerScheme
from residency.quantize.layouts import Arrays, Layout, LayoutName
from residency.quantize.rtn import round_to_nearest

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.int64]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_gptq_files_hold_the_matrix(weights: Floats, bits: int, symmetric: bool) -> None:
    matrix, arrays = written("gptq", weights, IntegerScheme(bits=bits, group=64, symmetric=symmetric))
    codes_CR = unpacked(arrays[".qweight"].T, bits)[:, : weights.shape[1]].T
    zeros_GR = unpacked(arrays[".qzeros"], bits)[:, : len(weights)] + 1  # files hold them less one
    groups = arrays[".g_idx"]
    values_CR = arrays[".scales"].astype(np.float32)[groups] * (codes_CR - zeros_GR[groups])
    np.testing.assert_array_equal(values_CR.T, matrix.values_RC)


def test_awq_files_hold_the_matrix(weights: Floats) -> None:
    matrix, arrays = written("awq", weights[:, :128], IntegerScheme(bits=4, group=64, symmetric=False))
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # which four bits of a word column i of eight is in

    def deinterleaved(words: npt.NDArray[np.int32]) -> Wide:
        return unpacked(words, 4).reshape(len(words), -1, 8)[:, :, order].reshape(len(words), -1)

    scales, zeros = (np.repeat(x, 64, axis=0) for x in (arrays[".scales"], deinterleaved(arrays[".qzeros"])))
    values_CR = scales.astype(np.float32) * (deinterleaved(arrays[".qweight"]) - zeros)
    np.testing.assert_array_equal(values_CR.T, matrix.values_RC)


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, 32, True), (4, 32, False), (4, 128, True), (8, None, True), (8, None, False)]
)
def test_compressed_tensors_reads_its_files(weights: Floats, bits: int, group: int | None, symmetric: bool) -> None:
    matrix, arrays = written(
        "compressed-tensors", weights[:, :128], IntegerScheme(bits=bits, group=group, symmetric=symmetric)
    )
    state = {name.removeprefix("."): torch.from_numpy(np.array(values)) for name, values in arrays.items()}
    args = QuantizationArgs(
        num_bits=bits, symmetric=symmetric, group_size=group, strategy="group" if group else "channel"
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    reader = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    found = reader.decompress(state, scheme)["weight"].float().numpy()
    np.testing.assert_allclose(found, matrix.values_RC, rtol=1e-3, atol=1e-6)  # it multiplies in float16


@pytest.mark.parametrize("name", ["gptq", "awq", "compressed-tensors"])
def test_tensors_are_those_that_plans_count(weights: Floats, name: LayoutName) -> None:
    scheme = IntegerScheme(bits=4, group=32, symmetric=False)
    _, arrays = written(name, weights, scheme)
    counted = Layout(name=name, scheme=scheme).described.parts_of(weights.shape)
    assert {suffix: array.shape for suffix, array in arrays.items()} == {s: shape for s, (_, shape) in counted.items()}


def test_awqs_layout_holds_no_other_numbers() -> None:
    with pytest.raises(UsageError, match="asymmetric groups of 4 bits"):
        Layout(name="awq", scheme=IntegerScheme(bits=8, group=None, symmetric=True))


def written(name: LayoutName, weights: Floats, scheme: IntegerScheme) -> tuple[IntegerMatrix, Arrays]:
    matrix = round_to_nearest(weights, scheme)
    return matrix, Layout(name=name, scheme=scheme).tensors(matrix)


def unpacked(words: npt.NDArray[np.int32], bits: int) -> Wide:
    """Codes one after the other from each row's lowest bit on."""
    as_bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    count = as_bits.shape[1] // bits
    codes = as_bits[:, : count * bits].reshape(len(words), count, bits).astype(np.int64)
    found: Wide = (codes << np.arange(bits)).sum(axis=2)
    return found
