"""Which forward pass an architecture has."""

from collections.abc import Callable

from residency.errors import UnsupportedError
from residency.kernels.recorder import Recorder
from residency.models.gemma3.model import record as gemma3
from residency.models.layers import Parts
from residency.models.llama.model import record as llama
from residency.models.mixtral.model import record as mixtral
from residency.models.qwen2.model import record as qwen2
from residency.models.qwen2_moe.model import record as qwen2_moe
from residency.models.qwen3.model import record as qwen3
from residency.models.qwen3_moe.model import record as qwen3_moe
from residency.models.specs import architecture_folder
from residency.spec.model import LayerSpec, ModelSpec

FORWARD: dict[str, Callable[[Recorder, Parts], None]] = {
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma3": gemma3,
    "mixtral": mixtral,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
}


def forward_of(spec: ModelSpec) -> Callable[[Recorder, Parts], None]:
    """The function that records the forward pass of a model.

    UnsupportedError names the architectures that there are, or the extent that the kernels cannot work on.
    """
    forward = FORWARD[architecture_folder(spec.architecture)]
    for layer in spec.layers:
        heads = layer.grouped_attention.num_heads * layer.grouped_attention.head_dim
        _refuse_uneven(spec, layer)
        for name, extent, multiple in (
            ("head", layer.grouped_attention.head_dim, 16),
            ("hidden state", spec.hidden, 32),
            ("attention output", heads, 32),
            ("feed-forward state", layer.gated_network.intermediate, 32),
            *(("feed-forward state", gate.shape[0], 32) for gate in layer.gated_matrices[:1]),
        ):
            if extent % multiple:
                raise UnsupportedError(
                    f"{spec.name} has a {name} of {extent} values, which is not a multiple of {multiple}; "
                    "such a model can be planned but not run."
                )
    return forward


def _refuse_uneven(spec: ModelSpec, layer: LayerSpec) -> None:
    """UnsupportedError where an expert's matrices are in formats that its kernels do not multiply together."""
    if layer.experts:
        gate, up, down = (tensor.format for tensor in layer.experts)
        if gate != up or gate.is_float != down.is_float:
            raise UnsupportedError(
                f"{spec.name} has experts whose matrices are in {gate.name}, {up.name} and {down.name}; the first two "
                "must be alike, and all three in blocks or none."
            )
