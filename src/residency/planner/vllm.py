"""vLLM's rules, fitted to its version 0.19: what it holds beside the tensors of a checkpoint, and what a step takes."""

import re
from collections import defaultdict
from dataclasses import replace

from residency.hardware import Device
from residency.planner.graph import StepShape, peak_bytes
from residency.spec.model import AttentionSpec, LayerSpec, ModelSpec, RopeSpec
from residency.spec.ranks import VOCABULARY_PADDING, kv_heads_of, rank_tensor_bytes

GIB = 1024**3
MIB = 1024**2
READINGS = "vLLM 0.19.0 on H100-80GB (github.com/jgchn/llm-d-planner)"

# PyTorch's allocator hands out blocks of 10 MiB and more in whole 2 MiB; a rest of at most 1 MiB stays with its block.
_OWN_BLOCK_BYTES = 10 * MIB
_BLOCK_UNIT_BYTES = 2 * MIB
_KEPT_REST_BYTES = MIB

_FUSED = (
    (re.compile(r"\.(?:q_proj|k_proj|v_proj)\."), ".qkv."),
    (re.compile(r"\.(?:gate_proj|up_proj|w1|w3)\."), ".gate_up."),
)


def is_large(device: Device) -> bool:
    """Whether vLLM's defaults for large accelerators hold: 8,192 tokens a step and 1,024 sequences."""
    return device.usable_bytes >= 70 * GIB and "a100" not in device.name.lower()


def held_bytes(stage: ModelSpec, ranks: int) -> int:
    """Beside the tensors: what the allocator rounds up of fused matrices, and rotation tables for all positions."""
    rounded = sum(_rounded_layer_bytes(layer, ranks) for layer in stage.layers)
    return rounded + _rotation_bytes(stage)


def activation_bytes(model: ModelSpec, shape: StepShape) -> int:
    """The larger of a forward step and of sampling for all sequences: logits in 16 bits and three float32 copies of
    them, beside three arrays of hidden states."""
    vocabulary = -(-model.vocabulary // VOCABULARY_PADDING) * VOCABULARY_PADDING
    sampled = shape.sequences * vocabulary * (2 + 3 * 4) if shape.has_head else 0
    return max(sampled + 3 * shape.tokens * model.hidden * 2, peak_bytes(model, replace(shape, has_head=False)))


def runtime_bytes(device: Device, ranks: int) -> int:
    """What torch does not allocate: the context, and the collectives' buffers."""
    if ranks == 1:
        return round(0.25 * GIB)
    return round((2.07 if ranks == 2 else 2.13) * GIB)


def graphs_bytes(model: ModelSpec, ranks: int) -> int:
    """Recorded steps; fitted to eleven models, within a tenth, Gemma's within a fifth."""
    per_layer, per_width = 0.0125 * len(model.layers), 0.07 * model.hidden / 1024
    return round((0.22 + per_layer + per_width / ranks) * GIB)


def _rounded_layer_bytes(layer: LayerSpec, ranks: int) -> int:
    blocks: dict[str, int] = defaultdict(int)
    for tensor in layer.tensors:
        name = tensor.name
        for pattern, fused in _FUSED:
            name = pattern.sub(fused, name)
        blocks[name] += rank_tensor_bytes(tensor, ranks, kv_heads_of(layer))
    return sum(map(_rounding, blocks.values()))


def _rounding(block_bytes: int) -> int:
    rest = -block_bytes % _BLOCK_UNIT_BYTES
    return rest if block_bytes >= _OWN_BLOCK_BYTES and rest <= _KEPT_REST_BYTES else 0


def _rotation_bytes(stage: ModelSpec) -> int:
    """Cosines and sines in 16 bits, one table for each way of rotating."""
    if any(tensor.role == "position" for tensor in stage.others):
        return 0
    rotations: set[tuple[int, RopeSpec | None]] = set()
    for layer in stage.layers:
        if isinstance(layer.attention, AttentionSpec):
            rope = layer.attention.rope
            rotations.add((2 * len(rope.inverse_frequencies) or layer.attention.head_dim, rope))
        elif layer.attention is not None:
            rotations.add((layer.attention.rope_dim, None))
    return sum(2 * stage.max_context_tokens * width for width, _ in rotations)
