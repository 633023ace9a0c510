"""Quantized matrices are as many bytes as the tensors that the tools write for them."""

import pytest

from residency.formats import BF16, F8_E4M3, I8
from residency.formats.schemes import Scheme, awq, by_channel, by_tile, gptq, llm_int8, mxfp4, nf4, nvfp4, packed

ROWS, COLUMNS = 256, 512
SCHEMES: list[tuple[Scheme, dict[str, tuple[str, tuple[int, ...]]]]] = [
    (
        gptq(bits=4, group=128),
        {
            ".qweight": ("I32", (64, 256)),
            ".qzeros": ("I32", (4, 32)),
            ".scales": ("F16", (4, 256)),
            ".g_idx": ("I32", (512,)),
        },
    ),
    (
        awq(bits=4, group=128),
        {".qweight": ("I32", (512, 32)), ".qzeros": ("I32", (4, 32)), ".scales": ("F16", (4, 256))},
    ),
    (
        packed(bits=4, group=128, scales=BF16),
        {".weight_packed": ("I32", (256, 64)), ".weight_scale": ("BF16", (256, 4)), ".weight_shape": ("I64", (2,))},
    ),
    (by_channel(I8, scales=BF16), {".weight": ("I8", (256, 512)), ".weight_scale": ("BF16", (256, 1))}),
    (
        by_channel(F8_E4M3, scales=BF16, whole=True, static_inputs=True),
        {".weight": ("F8_E4M3", (256, 512)), ".weight_scale": ("BF16", (1,)), ".input_scale": ("BF16", (1,))},
    ),
    (by_tile(), {".weight": ("F8_E4M3", (256, 512)), ".weight_scale_inv": ("F32", (2, 4))}),
    (
        nf4(),
        {
            ".weight": ("U8", (65536, 1)),
            ".weight.absmax": ("F32", (2048,)),
            ".weight.quant_map": ("F32", (16,)),
        },
    ),
    (
        nf4(double=True),
        {
            ".weight": ("U8", (65536, 1)),
            ".weight.absmax": ("U8", (2048,)),
            ".weight.quant_map": ("F32", (16,)),
            ".weight.nested_absmax": ("F32", (8,)),
            ".weight.nested_quant_map": ("F32", (256,)),
        },
    ),
    (llm_int8(), {".weight": ("I8", (256, 512)), ".SCB": ("F32", (256,)), ".weight_format": ("U8", ())}),
    (mxfp4(), {"_blocks": ("U8", (256, 16, 16)), "_scales": ("U8", (256, 16))}),
    (
        nvfp4(),
        {
            ".weight_packed": ("U8", (256, 256)),
            ".weight_scale": ("F8_E4M3", (256, 32)),
            ".weight_global_scale": ("F32", (1,)),
            ".input_global_scale": ("F32", (1,)),
        },
    ),
]


@pytest.mark.parametrize(("scheme", "parts"), SCHEMES, ids=lambda each: getattr(each, "name", ""))
def test_a_matrix_is_the_tensors_that_the_tool_writes(
    scheme: Scheme, parts: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    ours = scheme.parts_of((ROWS, COLUMNS))
    assert {suffix: (number_format.name, shape) for suffix, (number_format, shape) in ours.items()} == parts


def test_a_tile_that_is_cut_off_has_a_scale_of_its_own() -> None:
    """DeepSeek-V3's kv_a_proj_with_mqa has 576 rows."""
    assert by_tile().parts_of((576, 7168))[".weight_scale_inv"][1] == (5, 56)


def test_a_stack_of_matrices_is_as_many_bytes_as_its_matrices() -> None:
    assert mxfp4().bytes_of((32, 64, 128)) == 32 * mxfp4().bytes_of((64, 128))


def test_four_bits_in_groups_of_128_cost_four_and_an_eighth() -> None:
    num_bytes = packed(bits=4, group=128, scales=BF16).bytes_of((4096, 4096))
    assert (num_bytes - 16) * 8 / 4096**2 == 4.125
