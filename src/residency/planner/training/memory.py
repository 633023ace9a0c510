"""The answer: bytes of a training run by class on one device of each pipeline stage, and the moment of the peak."""

from dataclasses import dataclass
from typing import Literal

from residency.planner.training.options import TrainingOptions

Origin = Literal["exact", "modelled", "extrapolated"]
PhaseName = Literal["loss", "backward", "optimizer step"]


@dataclass(frozen=True, kw_only=True)
class TrainingFigure:
    """One amount, where it lies, how it was found and the arithmetic in a line."""

    name: str
    num_bytes: int
    origin: Origin
    arithmetic: str
    place: Literal["device", "ram"] = "device"


@dataclass(frozen=True, kw_only=True)
class TrainingPhase:
    """What a device holds at the fullest moment of one part of a step."""

    name: PhaseName
    weights: int
    master_weights: int
    gradients: int
    optimizer: int
    activations: int
    temporary: int  # gradients of activations, what is recomputed, what ZeRO gathers

    @property
    def total(self) -> int:
        """Bytes of all classes."""
        held = self.weights + self.master_weights + self.gradients + self.optimizer
        return held + self.activations + self.temporary


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """One device of a pipeline stage. Classes are what each comes to; a phase says what is there at one moment."""

    stage: int
    num_layers: int
    weights: int
    master_weights: int
    gradients: int
    optimizer: int
    activations: int
    ram: int  # offloaded, for this device
    phases: tuple[TrainingPhase, ...]
    figures: tuple[TrainingFigure, ...]

    @property
    def peak_phase(self) -> TrainingPhase:
        """The fullest moment."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment."""
        return self.peak_phase.total


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """A training run's memory. Without stages named, figures are of the stage with the highest peak."""

    options: TrainingOptions
    stages: tuple[StageMemory, ...]
    trainable_parameters: int
    published_activations: int | None  # by the formula of arXiv 2205.05198, for comparison; one stage, all layers

    @property
    def fullest(self) -> StageMemory:
        """The stage whose devices need most."""
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def weights(self) -> int:
        """Bytes of weights on a device, adapters and packed scales included, master weights not."""
        return self.fullest.weights

    @property
    def master_weights(self) -> int:
        """Bytes of the float32 copies that the optimizer steps."""
        return self.fullest.master_weights

    @property
    def gradients(self) -> int:
        """Bytes of all gradients on a device."""
        return self.fullest.gradients

    @property
    def optimizer(self) -> int:
        """Bytes of the optimizer's states on a device, without master weights."""
        return self.fullest.optimizer

    @property
    def activations(self) -> int:
        """Bytes kept from the forward pass for the backward pass, the loss's included."""
        return self.fullest.activations

    @property
    def peak(self) -> int:
        """Bytes on a device at the fullest moment of a step."""
        return self.fullest.peak

    @property
    def ram(self) -> int:
        """Bytes of RAM that the devices offload, all together."""
        return sum(stage.ram for stage in self.stages) * self.options.devices // len(self.stages)
