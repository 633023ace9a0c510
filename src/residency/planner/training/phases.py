"""How full a device is at each part of a step.

The loss: everything kept, and two gradients of the logits. The backward pass of each layer: what the layers before it
keep, what is recomputed of it, and the gradients of those behind it. The optimizer's step: all gradients, no
activations. A fused optimizer needs no room of its own.
"""

from dataclasses import dataclass

from residency.planner.training.memory import Origin, PhaseName, TrainingFigure, TrainingPhase
from residency.planner.training.options import TrainingOptions
from residency.planner.training.saved import end_saved, layer_saved, saved_bytes, stored_tensors
from residency.planner.training.states import TensorBytes, gradient_bytes, share, weight_bytes
from residency.planner.training.tensors import DeviceTensor, end_tensors, layer_tensors, stage_layers
from residency.spec.model import AttentionSpec, LatentAttentionSpec, LayerSpec, ModelSpec, MoeSpec


@dataclass(frozen=True, kw_only=True)
class LayerActivations:
    """Bytes of one layer on one device, for one micro-batch."""

    stored: int  # from forward to backward
    recomputed: int  # made again in the backward pass
    derivatives: int  # gradients of activations while it is differentiated
    gradients: int  # of its parameters, whole
    first_gradient: int  # of the matrix that is differentiated first, taken to be the largest
    weights: int  # whole, as ZeRO stage 3 gathers them


@dataclass(frozen=True, kw_only=True)
class StageActivations:
    """What the activations of one pipeline stage come to on one device."""

    layers: tuple[LayerActivations, ...]
    in_flight: int  # micro-batches whose activations are kept at once (one forward, one backward: "1F1B")
    ends: int  # kept by the final norm, the head and the loss
    logits: int  # gradients of the logits
    is_extrapolated: bool = False  # some layers are recurrent: their scans were not compared with a real step

    @classmethod
    def of(cls, model: ModelSpec, training: TrainingOptions, stage: int) -> "StageActivations":
        """The activations of `stage`; layers that are alike are counted once."""
        known: dict[object, LayerActivations] = {}
        found = []
        for layer in stage_layers(model, training, stage):
            kind = (layer.attention, layer.mixer, layer.mlp, tuple((t.shape, t.role) for t in layer.tensors))
            if kind not in known:
                known[kind] = _layer_activations(model, layer, training)
            found.append(known[kind])
        remaining = training.pipeline_parallel - stage
        is_last = remaining == 1
        return cls(
            layers=tuple(found),
            in_flight=min(remaining, training.accumulation_steps) if training.pipeline_parallel > 1 else 1,
            ends=_end_bytes(model, training, stage) if is_last else 0,
            logits=_logit_gradients(model, training) if is_last else 0,
            is_extrapolated=any(layer.mixer for layer in stage_layers(model, training, stage)),
        )

    @property
    def stored(self) -> int:
        """Bytes kept at the end of the forward pass."""
        return self.in_flight * sum(layer.stored for layer in self.layers) + self.ends

    @property
    def figures(self) -> list[TrainingFigure]:
        """The amounts with their arithmetic."""
        layers = self.in_flight * sum(layer.stored for layer in self.layers)
        most = max(layer.stored for layer in self.layers)
        in_flight = f" x {self.in_flight} micro-batches in flight" if self.in_flight > 1 else ""
        layers_origin: Origin = "extrapolated" if self.is_extrapolated else "modelled"
        lines = [
            ("activations of layers", layers, f"{len(self.layers)} layers x at most {most:,} bytes{in_flight}"),
            ("activations of head and loss", self.ends, "final norm, head and float32 log-probabilities"),
            ("gradients of logits", self.logits, "vocabulary x tokens, twice in float32"),
            ("recomputed layer", max(layer.recomputed for layer in self.layers), "one layer at a time"),
        ]
        return [
            TrainingFigure(
                name=name,
                num_bytes=num_bytes,
                origin="modelled" if name in ("gradients of logits", "activations of head and loss") else layers_origin,
                arithmetic=arithmetic,
            )
            for name, num_bytes, arithmetic in lines
            if num_bytes
        ]


def stage_phases(
    model: ModelSpec, training: TrainingOptions, stage: int, held: TensorBytes, activations: StageActivations
) -> tuple[TrainingPhase, ...]:
    """The loss, the fullest layer's backward pass and the optimizer's step of one device."""
    gathered = _gathered(activations, training)

    def phase(name: PhaseName, gradients: int, kept: int, temporary: int) -> TrainingPhase:
        return TrainingPhase(
            name=name,
            weights=held.weights,
            master_weights=held.master_weights,
            optimizer=held.optimizer,
            gradients=gradients,
            activations=kept,
            temporary=temporary,
        )

    # Buckets of parallel training, and gradients that are summed over micro-batches, are there all the time.
    permanent = training.accumulation_steps > 1 or training.devices > 1
    whole = activations.stored
    loss = phase("loss", held.gradients if permanent else 0, whole, activations.logits + gathered)
    ends = end_tensors(model, training, stage)
    # An embedding of its own is differentiated last, a tied one with the head.
    behind = sum(gradient_bytes(t, training) for t in ends if model.tied or t.name != model.embedding.name)
    backward = []
    kept = whole - activations.ends
    for layer in reversed(activations.layers):
        gradients = held.gradients if permanent else min(behind + layer.first_gradient, held.gradients)
        backward.append(phase("backward", gradients, kept, layer.recomputed + layer.derivatives + gathered))
        behind += layer.gradients
        kept -= layer.stored
    step = phase("optimizer step", held.gradients, 0, 0)
    return (loss, max(backward, key=lambda each: each.total), step)


def _layer_activations(model: ModelSpec, layer: LayerSpec, training: TrainingOptions) -> LayerActivations:
    tensors = layer_tensors(layer, training)
    casts = _cast_bytes(tensors, training)
    kept = saved_bytes(stored_tensors(model, layer, training), training)
    whole = saved_bytes(layer_saved(model, layer, training), training)
    again = training.recomputation == "full"
    return LayerActivations(
        stored=kept if again else kept + casts,
        recomputed=whole + casts if again else whole - kept,
        derivatives=_derivatives(model, layer, training),
        gradients=sum(gradient_bytes(tensor, training) for tensor in tensors),
        first_gradient=max(gradient_bytes(tensor, training) for tensor in tensors),
        weights=sum(weight_bytes(tensor, training) for tensor in tensors),
    )


def _derivatives(model: ModelSpec, layer: LayerSpec, training: TrainingOptions) -> int:
    """The gradients of activations at the fullest moment of a layer's backward pass, less what it has let go by then:
    in its feed-forward network those of gate and up-projection, or in its attention those of queries, keys, values,
    output and, in the naive form, the matrix of weights.
    """
    width, mlp, attention = 0, layer.mlp, layer.attention
    value_bytes = training.numerics.compute_bytes
    if isinstance(mlp, MoeSpec):
        width = (2 if mlp.gated else 1) * (mlp.intermediate * mlp.experts_per_token + mlp.shared_intermediate)
    elif mlp is not None:
        width = (2 if mlp.gated else 1) * mlp.intermediate
    attended = 0
    if isinstance(attention, AttentionSpec):
        attended = 2 * (attention.num_heads + attention.num_kv_heads) * attention.head_dim
    elif isinstance(attention, LatentAttentionSpec):
        attended = attention.num_heads * 2 * (attention.nope_dim + attention.rope_dim + attention.value_dim)
    scores_bytes = 0
    if attention is not None and training.attention == "naive":
        scores_bytes = 2 * attention.num_heads * training.context_tokens * (4 if training.kernels == "eager" else 2)
    in_parts = max(width * value_bytes, attended * value_bytes + scores_bytes)
    return share(training.tokens * in_parts, training.tensor_parallel) + training.tokens * model.hidden * value_bytes


def _end_bytes(model: ModelSpec, training: TrainingOptions, stage: int) -> int:
    head = (model.head or model.embedding).name
    casts = _cast_bytes([t for t in end_tensors(model, training, stage) if t.name == head], training)
    return saved_bytes(end_saved(model, training), training) + casts


def _logit_gradients(model: ModelSpec, training: TrainingOptions) -> int:
    """Bytes of the gradients of log-probabilities and of logits, float32, that exist at once when the backward pass
    begins. In chunks, those of one chunk, its log-probabilities and its logits.
    """
    vocabulary = share(model.vocabulary, training.tensor_parallel)
    if training.loss_chunks == 1:
        return 2 * 4 * training.tokens * vocabulary
    chunk_tokens = share(training.tokens, training.loss_chunks)
    head_input = training.tokens * model.hidden * training.numerics.compute_bytes
    return chunk_tokens * vocabulary * (3 * 4 + training.numerics.compute_bytes) + head_input


def _cast_bytes(tensors: list[DeviceTensor], training: TrainingOptions) -> int:
    """16-bit copies of float32 matrices, which torch.autocast makes and the backward pass needs."""
    nf4 = training.lora is not None and training.lora.nf4 and training.precision != "bf16"
    if not (training.numerics.casts or nf4):
        return 0
    return 2 * sum(t.num_values for t in tensors if len(t.shape) >= 2 and not t.is_nf4)


def _gathered(activations: StageActivations, training: TrainingOptions) -> int:
    """Whole tensors that ZeRO holds for a moment: of stage 2 the gradients of one layer, of stage 3 also the weights
    of the layer at hand and of the next. (The vocabulary's matrices are gathered when activations are few.)
    """
    if training.zero_stage < 2 or training.data_parallel == 1:
        return 0
    gradients = max(layer.gradients for layer in activations.layers)
    weights = max(layer.weights for layer in activations.layers)
    return gradients + (2 * weights if training.zero_stage == 3 else 0)
