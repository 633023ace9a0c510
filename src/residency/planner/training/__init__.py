"""What training a model takes: weights, master weights, gradients, optimizer states, activations, and the peak."""

from residency.planner.training.fitting import FittedTraining, fit_training
from residency.planner.training.memory import StageMemory, TrainingFigure, TrainingMemory, TrainingPhase
from residency.planner.training.options import PRECISIONS, LoraOptions, Precision, TrainingOptions
from residency.planner.training.plan import plan_training
from residency.planner.training.published import published_layer_bytes
from residency.planner.training.saved import SavedTensor, layer_saved

__all__ = [
    "FittedTraining",
    "LoraOptions",
    "PRECISIONS",
    "Precision",
    "SavedTensor",
    "StageMemory",
    "TrainingFigure",
    "TrainingMemory",
    "TrainingOptions",
    "TrainingPhase",
    "fit_training",
    "layer_saved",
    "plan_training",
    "published_layer_bytes",
]
