"""Mixtures of experts: the tensors of a router, its experts, and a network that every token passes beside them."""

from dataclasses import dataclass

from residency.errors import FileError
from residency.models.configuration import Configuration
from residency.models.tensors import TensorFinder
from residency.spec.model import MoeSpec, TensorSpec

NAMES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A layer's mixture, and what its checkpoints call the parts."""

    spec: MoeSpec
    prefix: str = "mlp"
    names: tuple[str, str, str] = NAMES  # of an expert's matrices: gate, up, down
    shared: str = "shared_expert"

    def tensors(self, finder: TensorFinder, layer: int, hidden: int) -> list[TensorSpec]:
        """The router, the experts, the shared network and its gate, as far as there are any."""
        prefix, spec = f"model.layers.{layer}.{self.prefix}", self.spec
        shapes = ((spec.intermediate, hidden), (spec.intermediate, hidden), (hidden, spec.intermediate))
        found = [finder.take(f"{prefix}.gate.weight", (spec.num_experts, hidden))]
        for name, shape in zip(self.names, shapes, strict=True):
            found.append(finder.take_copies(f"{prefix}.experts.{{}}.{name}.weight", spec.num_experts, shape))
        if spec.shared_intermediate:
            found += gated_matrices(finder, f"{prefix}.{self.shared}", hidden, spec.shared_intermediate)
            found.append(finder.take(f"{prefix}.{self.shared}_gate.weight", (1, hidden)))
        return found


def gated_matrices(finder: TensorFinder, prefix: str, hidden: int, intermediate: int) -> list[TensorSpec]:
    """The three matrices of a gated network."""
    shapes = ((intermediate, hidden), (intermediate, hidden), (hidden, intermediate))
    return [finder.take(f"{prefix}.{name}.weight", shape) for name, shape in zip(NAMES, shapes, strict=True)]


def check_routes(config: Configuration, spec: MoeSpec) -> MoeSpec:
    """`spec`. FileError if tokens are sent to more experts than there are."""
    if spec.experts_per_token > spec.num_experts:
        raise FileError(f"{config.source} sends a token to {spec.experts_per_token} of {spec.num_experts} experts.")
    return spec
