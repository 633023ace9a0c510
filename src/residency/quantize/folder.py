"""A quantized model as a folder that `transformers` and vLLM load: config.json, tokenizer and model.safetensors."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from residency.errors import UnsupportedError, UsageError
from residency.formats import F16, Format
from residency.models.configuration import configuration
from residency.quantize.forward import Floats
from residency.quantize.grids import Grid, IntegerMatrix
from residency.quantize.layers import MATRICES, LayerResult
from residency.quantize.layouts import Layout
from residency.quantize.methods import QuantizedMatrix
from residency.quantize.safetensors_file import write_safetensors
from residency.quantize.source import read_rows, read_values
from residency.quantize.tokenizer_files import refuse_unknown_tokenizer, special_ids, write_tokenizer
from residency.spec.checkpoint import Checkpoint
from residency.spec.model import ModelSpec, TensorSpec

LARGEST_HALF = 65504.0
HELD_ROWS = 1 << 13  # of the embedding and the head, in memory at a time
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


@dataclass(frozen=True, kw_only=True)
class FolderTarget:
    """Layers' matrices in a published layout of integers, everything else in float16."""

    layout: Layout

    def refuse(self, checkpoint: Checkpoint, spec: ModelSpec) -> None:
        """UnsupportedError where the folder cannot be written, before anything is computed."""
        refuse_unknown_tokenizer(checkpoint)
        _config(checkpoint, spec)
        self._refuse_short_groups(spec)

    def _refuse_short_groups(self, spec: ModelSpec) -> None:
        """Of the layouts, GPTQ's alone has a place for a last group of fewer columns."""
        group = self.layout.scheme.group
        columns = matrix_columns(spec)
        short = [each for each in sorted(columns) if group is not None and each % group]
        if short and self.layout.name != "gptq":
            raise UsageError(
                f"{spec.name} has matrices of {short[0]} columns, which are no whole groups of {group}; choose --group "
                f"{math.gcd(*columns, 128)}, or --layout gptq, which allows a shorter last group."
            )

    def format_of(self, tensor: TensorSpec) -> Format:
        """What the embedding and the head are written in."""
        return F16

    def restored(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> QuantizedMatrix:
        """The matrix of which these were `to_arrays`."""
        grid = Grid(scheme=self.layout.scheme, scales_RG=arrays["scales"], zeros_RG=arrays["zeros"])
        return IntegerMatrix(grid=grid, codes_RC=arrays["codes"])

    def write(
        self, out: Path, checkpoint: Checkpoint, spec: ModelSpec, result_of: Callable[[int], LayerResult]
    ) -> None:
        """The folder `out`, layer after layer."""
        out.mkdir()
        config = _config(checkpoint, spec)
        config["quantization_config"] = self.layout.configuration(unconverted=["lm_head"])
        (out / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_tokenizer(checkpoint, out)
        write_safetensors(out / "model.safetensors", self._shapes(spec), self._arrays(spec, result_of))

    def _shapes(self, spec: ModelSpec) -> dict[str, tuple[Format, tuple[int, ...]]]:
        shapes: dict[str, tuple[Format, tuple[int, ...]]] = {}
        for tensor in spec.tensors:
            if _part(tensor) in MATRICES:
                stem = tensor.name.removesuffix(".weight")
                parts = self.layout.described.parts_of(tensor.shape)
                shapes |= {stem + suffix: part for suffix, part in parts.items()}
            else:
                shapes[tensor.name] = (F16, tensor.shape)
        return shapes

    def _arrays(
        self, spec: ModelSpec, result_of: Callable[[int], LayerResult]
    ) -> Iterator[tuple[str, Iterable[npt.NDArray[Any]]]]:
        yield spec.embedding.name, _rows_in_half(spec.embedding)
        for number, layer in enumerate(spec.layers):
            result = result_of(number)
            for tensor in layer.tensors:
                part = _part(tensor)
                if part not in MATRICES:
                    yield tensor.name, [in_half(tensor.name, _as_held(spec, tensor, result.vectors[part]))]
                    continue
                matrix = result.matrices[part]
                assert isinstance(matrix, IntegerMatrix)
                arrays = self.layout.tensors(matrix)
                stem = tensor.name.removesuffix(".weight")
                yield from (
                    (stem + suffix, [arrays[suffix]]) for suffix in self.layout.described.parts_of(tensor.shape)
                )
        norm = spec.final_norm
        yield norm.name, [in_half(norm.name, _as_held(spec, norm, read_values(norm)))]
        if spec.head is not None:
            yield spec.head.name, _rows_in_half(spec.head)


def matrix_columns(spec: ModelSpec) -> set[int]:
    """The widths of the matrices that are quantized."""
    return {tensor.shape[1] for layer in spec.layers for tensor in layer.tensors if len(tensor.shape) == 2}


def _rows_in_half(tensor: TensorSpec) -> Iterator[npt.NDArray[np.float16]]:
    """A large matrix, some rows at a time."""
    for first in range(0, tensor.shape[0], HELD_ROWS):
        yield in_half(tensor.name, read_rows(tensor, first, min(first + HELD_ROWS, tensor.shape[0])))


def in_half(name: str, values: Floats) -> npt.NDArray[np.float16]:
    """The values in float16. UnsupportedError where one is too large for it."""
    largest = float(np.abs(values).max())
    if not largest <= LARGEST_HALF:
        raise UnsupportedError(f"{name} holds {largest:g}, which float16 cannot; quantize to one of GGUF's formats.")
    return values.astype("<f2")


def _part(tensor: TensorSpec) -> str:
    """The tensor's name within its layer; of others their whole name."""
    return tensor.name.split(".", 3)[-1]


def _as_held(spec: ModelSpec, tensor: TensorSpec, values: Floats) -> Floats:
    """Gemma's norms are kept less the one that they are added to."""
    less_one = spec.architecture.startswith("gemma3") and tensor.role == "norm"
    return values - np.float32(1) if less_one else values


def _config(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Any]:
    """config.json: the source's, or the one that a GGUF file's metadata amounts to."""
    if checkpoint.kind == "safetensors":
        if "text_config" in checkpoint.config:
            raise UnsupportedError(f"{checkpoint.path} is a model that also sees; give its text model alone.")
        return {**checkpoint.config, "torch_dtype": "float16", "dtype": "float16"}
    if spec.architecture not in _CLASSES or spec.architecture.startswith("gemma3"):
        raise UnsupportedError(f"{checkpoint.path} is of {spec.architecture}; quantize its safetensors folder instead.")
    config = configuration(checkpoint)
    attention = spec.layers[0].grouped_attention
    theta = config.number("rope_theta", 10000.0)
    plain = [theta ** (-i / attention.head_dim) for i in range(0, attention.head_dim, 2)]
    if attention.rope.factor != 1 or not np.allclose(attention.rope.inverse_frequencies, plain, rtol=1e-6, atol=0):
        raise UnsupportedError(f"{checkpoint.path} scales its rotations; quantize its safetensors folder instead.")
    return {
        "architectures": [_CLASSES[spec.architecture]],
        "model_type": spec.architecture,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.layers[0].gated_mlp.intermediate,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_context_tokens,
        "rms_norm_eps": _shortest(spec.norm_epsilon),
        "rope_theta": theta,
        "vocab_size": spec.vocabulary,
        "tie_word_embeddings": spec.tied,
        "torch_dtype": "float16",
        "dtype": "float16",
        **special_ids(checkpoint),
    }


def _shortest(value: float) -> float:
    """A float32 of a file as people write it: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))
