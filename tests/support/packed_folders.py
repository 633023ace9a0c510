"""Saves small checkpoints of packed integers as GPTQ's, AWQ's and compressed-tensors' tools do, code after code.

Codes, zero points and scales are random; what they stand for is returned, as float32. Nothing here is shared with
what reads them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from support.folders import config_of
from support.models import SmallModel, Weights, random_weights

Array = npt.NDArray[Any]
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ's order_map


@dataclass(frozen=True, kw_only=True)
class Integers:
    """A matrix (rows, columns): value = scale[row, group of the column] * (code - zero[row, group])."""

    bits: int
    codes: npt.NDArray[np.int64]
    zeros: npt.NDArray[np.int64]
    scales: npt.NDArray[np.float32]  # exact in 8 bits, so in float16 and bfloat16
    groups: npt.NDArray[np.int64]  # of each column

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """What it stands for."""
        offsets = (self.codes - self.zeros[:, self.groups]).astype(np.float32)
        return self.scales[:, self.groups] * offsets


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A layout with its properties."""

    layout: str  # gptq, gptq_v2, awq, packed, int8, llm-int8
    bits: int = 4
    group: int | None = 128
    symmetric: bool = False
    shuffled: bool = False  # columns' groups in any order
    scales: str = "F16"

    def random(self, shape: tuple[int, ...], seed: int) -> Integers:
        """A matrix whose products are of the size of their inputs."""
        rows, columns = shape
        rng = np.random.default_rng([seed, rows, columns])
        group = self.group or columns
        num_groups, top = -(-columns // group), 2**self.bits
        groups = np.arange(columns) // group
        scales = rng.integers(128, 256, (rows, num_groups)) * 2.0 ** -np.round(np.log2(top * 80 * columns**0.5))
        least = 1 if self.layout == "gptq" else 0
        zeros = (
            rng.integers(least, top, (rows, num_groups))
            if not self.symmetric
            else np.full((rows, num_groups), top // 2)
        )
        return Integers(
            bits=self.bits,
            codes=rng.integers(0, top, (rows, columns)),
            zeros=zeros,
            scales=scales.astype(np.float32),
            groups=rng.permutation(groups) if self.shuffled else groups,
        )

    def tensors(self, matrix: Integers) -> dict[str, Array]:
        """The tensors that the tools write, by suffix."""
        bits, signed = self.bits, matrix.codes - 2 ** (self.bits - 1)
        if self.layout in ("gptq", "gptq_v2"):
            less = 1 if self.layout == "gptq" else 0
            return {
                ".qweight": in_words(matrix.codes, bits).T,
                ".qzeros": in_words((matrix.zeros - less).T, bits),
                ".scales": self._floats(matrix.scales.T),
                ".g_idx": matrix.groups.astype("<i4"),
            }
        if self.layout == "awq":
            return {
                ".qweight": in_words(_awq_order(matrix.codes.T), bits),
                ".qzeros": in_words(_awq_order(matrix.zeros.T), bits),
                ".scales": self._floats(matrix.scales.T),
            }
        if self.layout == "packed":
            tensors = {
                ".weight_packed": in_words(matrix.codes, bits),
                ".weight_scale": self._floats(matrix.scales),
                ".weight_shape": np.array(matrix.codes.shape, "<i8"),
            }
            if not self.symmetric:
                tensors[".weight_zero_point"] = in_words(matrix.zeros.T, bits).T
            if self.shuffled:
                tensors[".weight_g_idx"] = matrix.groups.astype("<i4")
            return tensors
        if self.layout == "int8":
            return {".weight": signed.astype("i1"), ".weight_scale": self._floats(matrix.scales)}
        return {
            ".weight": signed.astype("i1"),
            ".SCB": (matrix.scales[:, 0] * np.float32(127)).astype("<f4"),
            ".weight_format": np.array(0, "u1"),
        }

    @property
    def configuration(self) -> dict[str, Any]:
        """config.json's quantization_config."""
        if self.layout in ("gptq", "gptq_v2"):
            return {
                **{"quant_method": "gptq", "bits": self.bits, "group_size": self.group or -1, "sym": self.symmetric},
                **{"desc_act": self.shuffled, "checkpoint_format": self.layout},
            }
        if self.layout == "awq":
            return {"quant_method": "awq", "bits": 4, "group_size": self.group, "zero_point": True, "version": "gemm"}
        if self.layout == "llm-int8":
            return {"quant_method": "bitsandbytes", "load_in_8bit": True}
        weights = {
            **{"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "group_size": self.group},
            **{"strategy": "group" if self.group else "channel", "actorder": "group" if self.shuffled else None},
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized" if self.layout == "packed" else "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head"],
        }

    def _floats(self, values: npt.NDArray[np.float32]) -> Array:
        if self.scales == "BF16":
            return (np.ascontiguousarray(values).view("<u4") >> 16).astype("<u2")
        return values.astype({"F16": "<f2", "F32": "<f4"}[self.scales])


def write_packed(folder: Path, model: SmallModel, kind: Kind) -> Weights:
    """Saves `model` with its layers' matrices packed, the rest in float32; returns all weights as they are meant."""
    folder.mkdir(parents=True)
    config = {**config_of(model), "quantization_config": kind.configuration}
    (folder / "config.json").write_text(json.dumps(config))
    meant = random_weights(model)
    held: dict[str, Array] = {}
    for seed, (name, values) in enumerate(list(meant.items())):
        if values.ndim == 2 and ".layers." in name and not name.endswith("gate.weight"):  # tools leave routers
            matrix = kind.random(values.shape, seed)
            meant[name] = matrix.values
            stem = name.removesuffix(".weight")
            held |= {stem + suffix: tensor for suffix, tensor in kind.tensors(matrix).items()}
        else:
            held[name] = values
    (folder / "model.safetensors").write_bytes(file_of(held, "BF16" if kind.scales == "BF16" else "U16"))
    return meant


def file_of(tensors: dict[str, Array], halves: str) -> bytes:
    """A safetensors file; unsigned words of 16 bits are called `halves`."""
    names = {"<i4": "I32", "<i8": "I64", "|i1": "I8", "|u1": "U8", "<f2": "F16", "<f4": "F32", "<u2": halves}
    header: dict[str, Any] = {}
    content = b""
    for name, tensor in tensors.items():
        data = np.ascontiguousarray(tensor).tobytes()
        ends = [len(content), len(content) + len(data)]
        header[name] = {"dtype": names[tensor.dtype.str], "shape": list(tensor.shape), "data_offsets": ends}
        content += data
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def in_words(codes: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int32]:
    """Codes along the last axis, the first in the lowest bits; those of 3 bits straddle words."""
    rows, count = codes.shape
    words = np.zeros((rows, -(-count * bits // 32)), object)
    for index in range(count):
        word, shift = divmod(index * bits, 32)
        words[:, word] |= codes[:, index].astype(object) << shift
        if shift + bits > 32:
            words[:, word + 1] |= codes[:, index].astype(object) >> (32 - shift)
    return np.array([[int(word) & 0xFFFFFFFF for word in row] for row in words], np.uint32).astype("<u4").view("<i4")


def _awq_order(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    eights = codes.reshape(len(codes), -1, 8)
    return np.stack([eights[:, :, column] for column in AWQ_COLUMNS], axis=2).reshape(codes.shape)
