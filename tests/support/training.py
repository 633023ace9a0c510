"""Small models of `transformers` beside their ModelSpec, and what PyTorch keeps and holds while it trains them."""

import json
from typing import Any

import torch
import transformers
from torch.distributed._tools.mem_tracker import MemTracker

from residency.models.planned import planned_spec
from residency.spec.model import ModelSpec

DROPOUTS = (
    "dropout",
    "hidden_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "attention_dropout",
    "residual_dropout",
    "embedding_dropout",
)
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
USUAL = {"hidden_size": 64, "intermediate_size": 176, "vocab_size": 500, "max_position_embeddings": 512, **HEADS}
GPT2 = {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 500, "n_positions": 512}


def small_model(architecture: str, *, attention: str = "sdpa", **changes: int | None) -> Any:
    """A model of `transformers` in float32 with random weights and without dropout. None takes a key out."""
    torch.manual_seed(0)
    extents = {**(GPT2 if architecture == "gpt2" else USUAL), "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    given = {key: value for key, value in {**extents, "use_cache": False, **changes}.items() if value is not None}
    config = transformers.AutoConfig.for_model(architecture, **given)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()


def spec_of(model: Any) -> ModelSpec:
    """The ModelSpec of a small model, from its configuration alone."""
    return planned_spec("small", "config.json", json.loads(model.config.to_json_string(use_diff=False)))


def checkpoint_layers(model: Any) -> None:
    """Recompute each layer in the backward pass."""
    name = "activation_checkpointing_enable"  # of transformers 5; before, another
    enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})


def saved_bytes(model: Any, ids: torch.Tensor, *, autocast: bool = False) -> int:
    """Bytes of the storages that one forward pass keeps for its backward pass, parameters apart, each once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model(ids, labels=ids)
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in parameters)


def step_peak_bytes(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> int:
    """Bytes of all tensors at the fullest moment of the second training step, as PyTorch's own tracker counts."""
    for _ in range(2):
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        del loss
    snapshot = tracker.get_tracker_snapshot("peak")
    return int(snapshot[torch.device("cpu")]["Total"])
