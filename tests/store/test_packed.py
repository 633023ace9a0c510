"""Matrices of packed integers are read as what the tools that write them mean, value for value."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from residency.errors import FileError, UnsupportedError
from residency.formats import unpack_rows
from residency.models.specs import model_spec
from residency.spec import ModelSpec, open_checkpoint
from residency.store.packed import PackedRows, column_order
from support.models import MIXTURES, small_model
from support.packed_folders import Kind, write_packed

KINDS = {
    "gptq": Kind(layout="gptq"),
    "gptq, symmetric": Kind(layout="gptq", symmetric=True, group=64),
    "gptq, second version": Kind(layout="gptq_v2", group=32),
    "gptq, whole rows": Kind(layout="gptq", group=None, symmetric=True),
    "gptq, act-order": Kind(layout="gptq", shuffled=True),
    "gptq, 2 bits": Kind(layout="gptq", bits=2, group=64),
    "gptq, 3 bits": Kind(layout="gptq", bits=3),
    "gptq, 8 bits": Kind(layout="gptq", bits=8, group=32),
    "gptq, scales in float32": Kind(layout="gptq", scales="F32"),
    "gptq, a short last group": Kind(layout="gptq", group=384),
    "awq": Kind(layout="awq"),
    "packed": Kind(layout="packed", symmetric=True, scales="BF16"),
    "packed, with zero points": Kind(layout="packed", group=32, scales="BF16"),
    "packed, 8 bits by channel": Kind(layout="packed", bits=8, group=None, symmetric=True),
    "packed, act-order": Kind(layout="packed", symmetric=True, shuffled=True, group=64),
    "int8": Kind(layout="int8", bits=8, group=None, symmetric=True, scales="BF16"),
    "LLM.int8": Kind(layout="llm-int8", bits=8, group=None, symmetric=True, scales="F32"),
}


def spec_of(folder: Path) -> ModelSpec:
    return model_spec(open_checkpoint(folder))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_value_is_what_the_file_means(kind: Kind, tmp_path: Path) -> None:
    meant = write_packed(tmp_path / "model", small_model("qwen2", num_layers=1), kind)
    for tensor in spec_of(tmp_path / "model").layers[0].tensors:
        if tensor.packed is None:
            continue
        found = unpack_rows(tensor.format, PackedRows(tensor).rows(0, tensor.shape[0]))
        index = tensor.packed.group_index if kind.shuffled else None
        order = slice(None) if index is None else column_order(index)
        close = 1e-7 if kind.layout == "llm-int8" else 0.0  # there a scale is 127 times what it is for
        np.testing.assert_allclose(found, meant[tensor.name][:, order], rtol=close)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_every_expert_s_values_are_what_the_file_means(architecture: str, tmp_path: Path) -> None:
    meant = write_packed(tmp_path / "model", small_model(architecture, num_layers=1), Kind(layout="awq", group=64))
    copies = [copy for experts in spec_of(tmp_path / "model").layers[0].experts for copy in experts.each_copy]
    found = [unpack_rows(copy.format, PackedRows(copy).rows(0, copy.shape[0])) for copy in copies]
    for copy, values in zip(copies, found, strict=True):
        np.testing.assert_array_equal(values, meant[copy.name])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_rows_can_be_read_in_parts(kind: Kind, tmp_path: Path) -> None:
    write_packed(tmp_path / "model", small_model("qwen2", num_layers=1), kind)
    tensor = spec_of(tmp_path / "model").layers[0].tensor("mlp.gate_proj.weight")
    rows = PackedRows(tensor)
    parts = [rows.rows(first, last) for first, last in ((0, 16), (16, 304), (304, 512))]
    np.testing.assert_array_equal(np.concatenate(parts), rows.rows(0, 512))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_store_has_no_more_than_a_few_hundredths_above_the_file_s_bytes(kind: Kind, tmp_path: Path) -> None:
    """A scale of a whole row is repeated for each of its groups, and zero points have a byte each."""
    write_packed(tmp_path / "model", small_model("qwen2", num_layers=1), kind)
    for tensor in spec_of(tmp_path / "model").layers[0].tensors:
        if tensor.packed is not None:
            held = sum(part.num_bytes for part in tensor.packed.parts)
            assert (
                tensor.num_bytes < (1.08 if kind.group == 32 or kind.bits < 4 or kind.group is None else 1.035) * held
            )


@pytest.mark.parametrize("name", ["packed", "packed, with zero points", "packed, 8 bits by channel", "int8"])
def test_the_files_mean_what_compressed_tensors_reads(name: str) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors", reason="the package that writes such files")
    torch = pytest.importorskip("torch")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    kind = replace(KINDS[name], scales="F16")
    matrix = kind.random((64, 256), seed=0)
    tensors = {suffix[1:]: torch.from_numpy(np.ascontiguousarray(t)) for suffix, t in kind.tensors(matrix).items()}
    strategy = "group" if kind.group else "channel"
    args = QuantizationArgs(num_bits=kind.bits, group_size=kind.group, strategy=strategy, symmetric=kind.symmetric)
    reader = compressors.IntQuantizationCompressor if name == "int8" else compressors.PackedQuantizationCompressor
    found = reader.decompress(tensors, QuantizationScheme(targets=["Linear"], weights=args))["weight"]
    np.testing.assert_allclose(found.float().numpy(), matrix.values, rtol=1e-3)  # theirs are rounded to float16


def test_zero_points_that_are_not_in_the_middle_of_symmetric_codes_are_refused(tmp_path: Path) -> None:
    write_packed(tmp_path / "model", small_model("qwen2", num_layers=1), Kind(layout="gptq"))
    _configure(tmp_path / "model", sym=True)
    with pytest.raises(FileError, match="zero points"):
        PackedRows(spec_of(tmp_path / "model").layers[0].tensor("mlp.up_proj.weight"))


def test_columns_in_another_order_than_the_configuration_says_are_refused(tmp_path: Path) -> None:
    write_packed(tmp_path / "model", small_model("qwen2", num_layers=1), Kind(layout="gptq", shuffled=True))
    _configure(tmp_path / "model", desc_act=False)
    with pytest.raises(FileError, match=r"g_idx.*contradicts"):
        PackedRows(spec_of(tmp_path / "model").layers[0].tensor("mlp.up_proj.weight"))


@pytest.mark.parametrize(
    "settings",
    [{"quant_method": "fp8"}, {"quant_method": "aqlm"}, {"group_size": 24}, {"bits": 5}, {"group_size": 16}],
)
def test_a_variant_that_is_not_known_is_refused_in_a_sentence(settings: dict[str, object], tmp_path: Path) -> None:
    write_packed(tmp_path / "model", small_model("qwen2", num_layers=1), Kind(layout="gptq"))
    _configure(tmp_path / "model", **settings)
    with pytest.raises((FileError, UnsupportedError), match=r"^[^\n]*\.$"):
        spec_of(tmp_path / "model")


def test_zero_points_that_are_no_words_are_refused_in_a_sentence(tmp_path: Path) -> None:
    write_packed(tmp_path / "model", small_model("qwen2", num_layers=1), Kind(layout="gptq"))
    file = tmp_path / "model" / "model.safetensors"
    header, rest = file.read_bytes().split(b"}}", 1)
    first, zeros, after = header.partition(b'.qzeros": {"dtype": "')
    file.write_bytes(first + zeros + after.replace(b"I32", b"F32", 1) + b"}}" + rest)
    with pytest.raises(FileError, match=r"qzeros in F32, not I32\.$"):
        spec_of(tmp_path / "model")


def _configure(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))
