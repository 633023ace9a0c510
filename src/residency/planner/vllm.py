"""vLLM's rules, fitted to its version 0.19: what it holds beside the tensors of a checkpoint, and what a step takes."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from residency.formats.schemes import Scheme
from residency.hardware import Device
from residency.planner.caching_allocator import allocated_bytes
from residency.planner.graph import StepShape, peak_bytes
from residency.spec.model import AttentionSpec, LatentAttentionSpec, LayerSpec, ModelSpec, MoeSpec, RopeSpec, TensorSpec
from residency.spec.ranks import VOCABULARY_PADDING, kv_heads_of, layer_rank_bytes, rank_tensor_bytes
from residency.spec.state import PAGE_TOKENS, StateSpec

GIB = 1024**3
MIB = 1024**2
READINGS = "vLLM 0.19.0 on H100-80GB (github.com/jgchn/llm-d-planner)"

# Made where latent attention's backends are looked through, whichever is chosen (vLLM's
# v1/attention/backends/mla/flashinfer_mla.py).
_LATENT_WORKSPACE_BYTES = 128 * MIB

_FUSED = (
    (re.compile(r"\.(?:q_proj|k_proj|v_proj)\."), ".qkv."),
    (re.compile(r"\.(?:gate_proj|up_proj|w1|w3)\."), ".gate_up."),
)


def is_large(device: Device) -> bool:
    """Whether vLLM's defaults for large accelerators hold: 8,192 tokens a step and 1,024 sequences."""
    return device.usable_bytes >= 70 * GIB and "a100" not in device.name.lower()


def held_bytes(stage: ModelSpec, ranks: int) -> int:
    """Beside the tensors: what PyTorch's allocator rounds up of fused matrices, what kernels pad experts in MXFP4 with,
    rotation tables for all positions, latent attention's workspace, and what ranks do not share of a tower."""
    tensors = sum(rank_tensor_bytes(tensor, ranks) for tensor in stage.beside_layers)
    tensors += sum(count * layer_rank_bytes(layer, ranks) for layer, count in stage.alike)
    workspace_bytes = _LATENT_WORKSPACE_BYTES if _is_latent(stage) else 0
    beside_bytes = _rotation_bytes(stage) + workspace_bytes + _whole_tower_bytes(stage, ranks)
    return allocated_bytes(_arrays(stage, ranks)) - tensors + beside_bytes


def activation_bytes(model: ModelSpec, shape: StepShape, *, logit_bytes: float = 2 + 3 * 4) -> int:
    """The larger of a forward step and of sampling for all sequences, beside the experts' work space, which stays.

    Sampling takes three arrays of hidden states and `logit_bytes` for each logit: one of 16 bits and three float32
    copies since version 0.17.
    """
    vocabulary = -(-model.vocabulary // VOCABULARY_PADDING) * VOCABULARY_PADDING
    sampled = round(shape.sequences * vocabulary * logit_bytes) if shape.has_head else 0
    hidden_bytes = shape.tokens * model.hidden * 2
    experts_bytes = max(_experts_bytes(model, layer, shape) for layer, _ in model.alike)
    dense = replace(model, layers=tuple(replace(each, mlp=None) if _is_sparse(each) else each for each in model.layers))
    step = peak_bytes(dense, replace(shape, has_head=False)) + (2 + 2 * shape.is_stage) * hidden_bytes
    return experts_bytes + max(sampled + 3 * hidden_bytes, step)


def concurrency(states: tuple[StateSpec, ...], pool_bytes: int, context_tokens: int, step_tokens: int) -> float | None:
    """The "maximum concurrency" that vLLM prints: how many sequences of the whole context have room. None where layers'
    pages differ in size, or states are recurrent.

    Layers that remember alike are cut into groups of equally many, all groups share one pool of pages, and a window is
    counted with a whole step beside it and a page more, as it may begin inside one. What is asked of a running
    sequence is less: pages behind its window are given back.
    """
    page_bytes = {state.bytes_per_token * PAGE_TOKENS // state.layers for state in states}
    if len(page_bytes) != 1 or any(state.fixed_bytes for state in states):
        return None
    fewest, most = (pick(state.layers for state in states) for pick in (min, max))
    group_layers = most if most < 1.25 * fewest else fewest
    pages = 0
    for state in states:
        tokens = context_tokens
        if state.max_tokens is not None:
            tokens = min(context_tokens, state.max_tokens - 1 + step_tokens) + PAGE_TOKENS
        pages += -(-state.layers // group_layers) * -(-tokens // PAGE_TOKENS)
    return pool_bytes // (page_bytes.pop() * group_layers) / pages


def older_activation_bytes(model: ModelSpec, shape: StepShape) -> int:
    """Before version 0.17, whose sampler sorted all logits: 5.64 GiB of Qwen3-14B, where it is 2.23 since."""
    return activation_bytes(model, shape, logit_bytes=37.4)


def runtime_bytes(device: Device, tensor_parallel: int, stages: int) -> int:
    """What torch does not allocate: the context, and the collectives' buffers."""
    if tensor_parallel > 1:
        return round((2.07 if tensor_parallel == 2 else 2.13) * GIB)
    return round((0.25 if stages == 1 else 0.07) * GIB)


def older_runtime_bytes(device: Device, tensor_parallel: int, stages: int) -> int:
    """Before version 0.18, on one device."""
    bytes_since = runtime_bytes(device, tensor_parallel, stages)
    return round(0.13 * GIB) if tensor_parallel == stages == 1 else bytes_since


def graphs_bytes(model: ModelSpec, ranks: int) -> int:
    """Recorded steps; fitted to eleven models, within a tenth, Gemma's within a fifth."""
    per_layer, per_width = 0.0125 * len(model.layers), 0.07 * model.hidden / 1024
    return round((0.22 + per_layer + per_width / ranks) * GIB)


def _arrays(stage: ModelSpec, ranks: int) -> Iterator[int]:
    """Bytes of each array that a rank makes, layer after layer; what kernels want padded is made when all is read."""
    around = [rank_tensor_bytes(each, ranks) for each in stage.beside_layers if each.copies == 1]
    towers = [each for each in stage.beside_layers if each.copies > 1]
    by_kind = {layer.likeness: _layer_arrays(layer, ranks) for layer, _ in stage.alike}
    yield from around
    for _ in range(max((each.copies for each in towers), default=0)):
        yield from (rank_tensor_bytes(each, ranks) // each.copies for each in towers)
    for layer in stage.layers:
        yield from by_kind[layer.likeness]
    for layer, count in stage.alike:
        yield from count * _padded_experts(stage, layer, ranks)


def _layer_arrays(layer: LayerSpec, ranks: int) -> list[int]:
    """Those of one layer: what vLLM fuses is one array, and so are all experts' matrices of a kind."""
    arrays: dict[tuple[str, str], float] = defaultdict(float)
    are_padded = _has_mxfp4_experts(layer)
    for tensor in layer.tensors:
        if are_padded and tensor.role == "expert":
            continue
        name = tensor.name
        for pattern, fused in _FUSED:
            name = pattern.sub(fused, name)
        rank_part = rank_tensor_bytes(tensor, ranks, kv_heads_of(layer)) / max(1, tensor.num_bytes)
        for suffix, part_bytes in _parts(tensor):
            arrays[name, suffix] += part_bytes * rank_part
    return [round(array_bytes) for array_bytes in arrays.values()]


def _whole_tower_bytes(stage: ModelSpec, ranks: int) -> int:
    """Mistral's repositories hold their weights in two forms. vLLM prefers the one whose tower (its models/pixtral.py)
    is whole on every rank; quantized models have only the other."""
    if stage.architecture != "mistral3" or not stage.embedding.format.is_float or stage.format_label != "BF16":
        return 0
    towers = [tensor for tensor in stage.others if tensor.role == "vision"]
    return sum(tensor.num_bytes - rank_tensor_bytes(tensor, ranks) for tensor in towers)


def _parts(tensor: TensorSpec) -> Iterator[tuple[str, int]]:
    """The arrays that are one tensor: codes, scales, zero points, each in a block of its own."""
    if not isinstance(tensor.format, Scheme):
        yield "", tensor.num_bytes
        return
    for suffix, (number_format, shape) in tensor.format.parts_of(tensor.shape).items():
        yield suffix, tensor.copies * number_format.bytes_of(shape)


def _padded_experts(stage: ModelSpec, layer: LayerSpec, ranks: int) -> list[int]:
    """What kernels make of MXFP4 experts: a rank's inner values in whole blocks of 32, the hidden ones in 256; codes
    in 256 outputs, scales in 128 outputs and pairs of blocks, biases in float32. The layouts are Triton's for Hopper;
    which of their extents are padded is what readings of gpt-oss-20b on one and on two ranks leave open and agree with.
    """
    if not isinstance(layer.mlp, MoeSpec) or not _has_mxfp4_experts(layer):
        return []
    num_experts = layer.mlp.num_experts
    hidden, inner = _up_to(256, stage.hidden), _up_to(32, -(-layer.mlp.intermediate // ranks))
    arrays = []
    for inputs, outputs in ((hidden, 2 * inner), (inner, hidden)):
        codes, scales = inputs // 2 * _up_to(256, outputs), _up_to(2, inputs // 32) * _up_to(128, outputs)
        arrays += [num_experts * codes, num_experts * scales, num_experts * outputs * 4]
    return arrays


def _experts_bytes(model: ModelSpec, layer: LayerSpec, shape: StepShape) -> int:
    """Where experts are fused: gate and up, or what comes out, of every token for each of its experts, and what lies
    between. Kernels for MXFP4 have none."""
    mlp = layer.mlp
    if not isinstance(mlp, MoeSpec) or _has_mxfp4_experts(layer):
        return 0
    inner = -(-mlp.intermediate // shape.tensor_parallel)
    outer = max((2 if mlp.gated else 1) * inner, model.hidden)
    return 2 * shape.tokens * mlp.experts_per_token * (outer + inner)


def _is_sparse(layer: LayerSpec) -> bool:
    return isinstance(layer.mlp, MoeSpec)


def _has_mxfp4_experts(layer: LayerSpec) -> bool:
    return any(tensor.format.name.lower() == "mxfp4" for tensor in layer.tensors)


def _up_to(multiple: int, count: int) -> int:
    return -(-count // multiple) * multiple


def _rotation_bytes(stage: ModelSpec) -> int:
    """Cosines and sines of all positions in 16 bits, one table for each way of rotating."""
    if any(tensor.role == "position" for tensor in stage.others):
        return 0
    if stage.rotations:
        return sum(2 * table.positions * table.width for table in stage.rotations)
    rotations: set[tuple[int, RopeSpec | None]] = set()
    for layer in stage.layers:
        if isinstance(layer.attention, AttentionSpec):
            rope = layer.attention.rope
            rotations.add((2 * len(rope.inverse_frequencies) or layer.attention.head_dim, rope))
        elif layer.attention is not None:
            rotations.add((layer.attention.rope_dim, None))
    return sum(2 * stage.max_context_tokens * width for width, _ in rotations)


def _is_latent(stage: ModelSpec) -> bool:
    return any(isinstance(layer.attention, LatentAttentionSpec) for layer in stage.layers)
