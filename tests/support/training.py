"""Small models of `transformers` beside their ModelSpec, and what PyTorch keeps and holds while it trains them."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch.distributed._tools.mem_tracker import MemTracker

from residency.formats import F32
from residency.spec.model import Activation, AttentionSpec, LayerSpec, MlpSpec, ModelSpec, Role, Split, TensorSpec

ROWS = "q_proj gate_proj up_proj c_attn c_fc k_proj v_proj".split()
COLUMNS = "o_proj down_proj c_proj".split()


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The extents of a small decoder."""

    hidden: int = 64
    intermediate: int = 176
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 2
    vocabulary: int = 500


def make_model(architecture: str, widths: Widths, *, attention: str = "sdpa") -> Any:
    """A randomly initialised model of `architecture` ("llama", "qwen2", "gpt2"), without dropout."""
    torch.manual_seed(0)
    common = {"attn_implementation": attention, "use_cache": False, "vocab_size": widths.vocabulary}
    common |= {"bos_token_id": 0, "eos_token_id": 0}
    if architecture == "gpt2":
        config = transformers.GPT2Config(
            n_embd=widths.hidden,
            n_layer=widths.num_layers,
            n_head=widths.num_heads,
            n_positions=512,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **common,
        )
        return transformers.GPT2LMHeadModel(config)
    names = {"llama": "Llama", "qwen2": "Qwen2"}[architecture]
    config = getattr(transformers, names + "Config")(
        hidden_size=widths.hidden,
        intermediate_size=widths.intermediate,
        num_hidden_layers=widths.num_layers,
        num_attention_heads=widths.num_heads,
        num_key_value_heads=widths.num_kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=architecture == "qwen2",
        **common,
    )
    return getattr(transformers, names + "ForCausalLM")(config)


def spec_of(model: Any, architecture: str, widths: Widths) -> ModelSpec:
    """The ModelSpec of a small model, its tensors from the model itself."""
    gpt2 = architecture == "gpt2"
    activation: Activation = "gelu_tanh" if gpt2 else "silu"
    attention = AttentionSpec(
        num_heads=widths.num_heads,
        num_kv_heads=widths.num_heads if gpt2 else widths.num_kv_heads,
        head_dim=widths.hidden // widths.num_heads,
        scale=1.0,
    )
    width = 4 * widths.hidden if gpt2 else widths.intermediate
    mlp = MlpSpec(intermediate=width, activation=activation, gated=not gpt2)
    tensors = [_tensor(name, tuple(p.shape)) for name, p in model.named_parameters()]
    by_layer: dict[int, list[TensorSpec]] = {index: [] for index in range(widths.num_layers)}
    ends = {}
    for tensor in tensors:
        parts = tensor.name.split(".")
        if parts[1] in ("layers", "h"):
            by_layer[int(parts[2])].append(tensor)
        else:
            ends[parts[-2] + "." + parts[-1]] = tensor
    embedding, final_norm = ("wte.weight", "ln_f.weight") if gpt2 else ("embed_tokens.weight", "norm.weight")
    return ModelSpec(
        name="Small",
        architecture=architecture,
        vocabulary=widths.vocabulary,
        hidden=widths.hidden,
        max_context_tokens=512,
        norm_epsilon=1e-6,
        embedding_scale=1.0,
        embedding=ends.pop(embedding),
        layers=tuple(
            LayerSpec(attention=attention, mlp=mlp, tensors=tuple(by_layer[i])) for i in range(widths.num_layers)
        ),
        final_norm=ends.pop(final_norm),
        head=ends.pop("lm_head.weight", None),
        others=tuple(ends.values()),
    )


def _tensor(name: str, shape: tuple[int, ...]) -> TensorSpec:
    module = name.split(".")[-2]
    role: Role = "matrix" if len(shape) > 1 else "bias"
    if module in ("embed_tokens", "wte"):
        role = "embedding"
    elif module == "wpe":
        role = "position"
    elif "norm" in module or module.startswith("ln_"):
        role = "norm"
    elif module == "lm_head":
        role = "head"
    split: Split = "columns" if module in COLUMNS and len(shape) > 1 else "rows" if module in ROWS else "replicated"
    return TensorSpec(name=name, shape=shape, format=F32, role=role, split=split)


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
