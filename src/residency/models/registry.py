"""Which forward pass an architecture has."""

from collections.abc import Callable

from residency.errors import UnsupportedError
from residency.kernels.recorder import Recorder
from residency.models.gemma3.model import record as gemma3
from residency.models.layers import Parts
from residency.models.llama.model import record as llama
from residency.models.qwen2.model import record as qwen2
from residency.models.qwen3.model import record as qwen3

FORWARD: dict[str, Callable[[Recorder, Parts], None]] = {
    "llama": llama,
    "mistral": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma3": gemma3,
    "gemma3_text": gemma3,
}


def forward_of(architecture: str) -> Callable[[Recorder, Parts], None]:
    """The function that records the forward pass of `architecture`. UnsupportedError names those that there are."""
    if architecture not in FORWARD:
        raise UnsupportedError(f"the architecture {architecture} is not supported; supported are {', '.join(FORWARD)}.")
    return FORWARD[architecture]
