"""The plan of a training step beside what PyTorch keeps and holds in one."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from residency.planner.training import TrainingOptions, plan_training
from support.training import checkpoint_layers, saved_bytes, small_model, spec_of, step_peak_bytes

BATCH, CONTEXT = 3, 48
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.float32}
EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are too small for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def options(precision: Any, **changes: Any) -> TrainingOptions:
    return TrainingOptions(precision=precision, batch_sequences=BATCH, context_tokens=CONTEXT, **changes)


def tokens(model: Any) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (BATCH, CONTEXT))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_what_autograd_saves_is_what_the_list_says(architecture: str, precision: str) -> None:
    model = small_model(architecture).to(DTYPES[precision])
    kept_bytes = saved_bytes(model, tokens(model), autocast=precision == "autocast")
    assert plan_training(spec_of(model), options(precision)).activations == pytest.approx(kept_bytes, rel=0.005)


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text", "phi", "olmo2", "starcoder2"])
def test_other_dense_models_keep_what_the_list_says_within_1_percent(architecture: str) -> None:
    model = small_model(architecture).bfloat16()
    kept_bytes = saved_bytes(model, tokens(model))
    assert plan_training(spec_of(model), options("bf16")).activations == pytest.approx(kept_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("gpt_neox", {"num_key_value_heads": None}),
        ("opt", {"ffn_dim": 256, "word_embed_proj_dim": 64, "intermediate_size": None, "num_key_value_heads": None}),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_models_of_an_earlier_time_keep_what_the_list_says(
    architecture: str, changes: dict[str, Any], precision: str
) -> None:
    model = small_model(architecture, **changes).to(DTYPES[precision])
    kept_bytes = saved_bytes(model, tokens(model))
    assert plan_training(spec_of(model), options(precision)).activations == pytest.approx(kept_bytes, rel=0.005)


@pytest.mark.parametrize(
    "changes",
    [
        {"multi_query": True, "new_decoder_architecture": False},
        {"num_kv_heads": 2, "new_decoder_architecture": True},
        {"multi_query": False, "new_decoder_architecture": False, "parallel_attn": False},
    ],
    ids=["one key-value head", "the newer decoder", "as many heads"],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_kind_of_falcon_keeps_what_the_list_says_within_1_percent(
    changes: dict[str, Any], precision: str
) -> None:
    extents: dict[str, Any] = {"num_key_value_heads": None, "intermediate_size": None, "ffn_hidden_size": 256}
    model = small_model("falcon", **extents, **changes).to(DTYPES[precision])
    kept_bytes = saved_bytes(model, tokens(model))
    assert plan_training(spec_of(model), options(precision)).activations == pytest.approx(kept_bytes, rel=0.01)


@pytest.mark.parametrize("architecture", EXPERTS)
def test_experts_keep_what_the_list_says_within_3_percent(architecture: str) -> None:
    """Indices of who is sent where are not in the list."""
    model = small_model(architecture, **EXPERTS[architecture]).bfloat16()
    kept_bytes = saved_bytes(model, tokens(model))
    assert plan_training(spec_of(model), options("bf16")).activations == pytest.approx(kept_bytes, rel=0.03)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_naive_attention_saves_its_matrix_as_the_list_says(architecture: str, precision: str) -> None:
    model = small_model(architecture, attention="eager").to(DTYPES[precision])
    planned = plan_training(spec_of(model), options(precision, attention="naive"))
    assert planned.activations == pytest.approx(saved_bytes(model, tokens(model)), rel=0.01)


def test_gradient_checkpointing_saves_a_layer_s_input() -> None:
    model = small_model("qwen2")
    checkpoint_layers(model)
    planned = plan_training(spec_of(model), options("fp32", recomputation="full"))
    assert planned.activations == pytest.approx(saved_bytes(model, tokens(model)), rel=0.001)


@pytest.mark.parametrize(("vocabulary", "phase"), [(2000, "loss"), (50, "backward")], ids=["many words", "few words"])
@pytest.mark.parametrize("recomputation", ["none", "full"])
def test_a_step_s_peak_is_within_1_percent(vocabulary: int, phase: str, recomputation: Any) -> None:
    model = small_model("llama", vocab_size=vocabulary)
    if recomputation == "full":
        checkpoint_layers(model)
    peak_bytes = step_peak_bytes(model, torch.optim.AdamW(model.parameters()), tokens(model))
    planned = plan_training(spec_of(model), options("fp32", recomputation=recomputation))
    assert planned.fullest.peak_phase.name == phase
    assert planned.peak == pytest.approx(peak_bytes, rel=0.01)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_optimizer_keeps_what_the_plan_says_to_the_byte(optimizer: Any, precision: str) -> None:
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "adafactor": torch.optim.Adafactor,
    }
    model = small_model("llama").to(DTYPES[precision])
    stepped = makers[optimizer](model.parameters())
    _step(model, [stepped])
    assert plan_training(spec_of(model), options(precision, optimizer=optimizer)).optimizer == _state_bytes(stepped)


def test_muon_keeps_one_moment_of_hidden_matrices_and_leaves_the_rest_to_adamw() -> None:
    model = small_model("llama")
    hidden = [p for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2]
    others = [p for name, p in model.named_parameters() if ".layers." not in name or p.dim() != 2]
    optimizers = [torch.optim.Muon(hidden), torch.optim.AdamW(others)]
    _step(model, optimizers)
    planned = plan_training(spec_of(model), options("fp32", optimizer="muon"))
    assert planned.optimizer == sum(map(_state_bytes, optimizers))


def test_weights_and_gradients_are_planned_to_the_byte() -> None:
    model = small_model("gpt2")
    _step(model, [])
    planned = plan_training(spec_of(model), options("fp32"))
    assert planned.weights == sum(p.nbytes for p in model.parameters())
    assert planned.gradients == sum(p.grad.nbytes for p in model.parameters())


def _step(model: Any, optimizers: list[Any]) -> None:
    ids = tokens(model)
    model(ids, labels=ids).loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in values if value is not None)
