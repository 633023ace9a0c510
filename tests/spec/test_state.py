"""What a model remembers of a sequence, whole and by rank."""

import pytest

from residency.errors import UsageError
from residency.formats import BF16, F32
from residency.models.specs import named_spec
from residency.spec import (
    AttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    RecurrentSpec,
    StateSpec,
    kv_format_named,
    rank_bytes,
    rank_states,
)

HEADS = AttentionSpec(num_heads=8, num_kv_heads=2, head_dim=64, scale=0.125)
LATENT = LatentAttentionSpec(num_heads=16, kv_rank=512, rope_dim=64, nope_dim=128, value_dim=128)


@pytest.mark.parametrize(
    ("name", "head_bytes"), [("f32", 256), ("F16", 128), ("bf16", 128), ("fp8", 64), ("int8", 66), ("int4", 34)]
)
def test_a_key_has_its_values_and_in_integers_a_scale(name: str, head_bytes: int) -> None:
    assert kv_format_named(name).head_bytes(64) == head_bytes


def test_an_unknown_format_of_the_cache_names_the_known() -> None:
    with pytest.raises(UsageError, match="'int3' is no format of a KV cache; choose one of f32, f16"):
        kv_format_named("int3")


def test_a_layer_keeps_keys_and_values_of_its_key_value_heads() -> None:
    (state,) = LayerSpec(attention=HEADS, tensors=()).states()
    assert (state.kind, state.bytes_per_token) == ("paged", 2 * 2 * 64 * 2)


def test_a_latent_layer_keeps_one_vector_and_one_rotated_key_for_all_heads() -> None:
    (state,) = LayerSpec(attention=LATENT, tensors=()).states()
    assert (state.kind, state.bytes_per_token) == ("latent", (512 + 64) * 2)


def test_a_window_keeps_no_more_than_its_tokens() -> None:
    state = StateSpec(kind="window", bytes_per_token=100, max_tokens=512)
    assert [state.sequence_bytes(tokens) for tokens in (100, 512, 4096)] == [10_000, 51_200, 51_200]


def test_a_sequence_is_kept_in_whole_pages() -> None:
    state = StateSpec(kind="paged", bytes_per_token=100, max_tokens=None)
    assert state.sequence_bytes(17, page_tokens=16) == 3200


def test_a_layer_that_shares_keys_and_values_keeps_none() -> None:
    shared = AttentionSpec(num_heads=8, num_kv_heads=2, head_dim=64, scale=0.125, shares_kv=True)
    assert LayerSpec(attention=shared, tensors=()).states() == ()


def test_a_recurrent_layer_keeps_as_much_of_any_context() -> None:
    mixer = RecurrentSpec(kind="mamba", recent_values=40, state_values=160, recent_format=BF16, state_format=F32)
    (state,) = LayerSpec(mixer=mixer, tensors=()).states()
    assert state.sequence_bytes(1) == state.sequence_bytes(1 << 20) == 40 * 2 + 160 * 4


def test_gemma_3_slides_in_five_of_six_layers() -> None:
    states = named_spec("gemma-3-12b").states()
    assert [(state.kind, state.layers, state.max_tokens) for state in states] == [
        ("window", 40, 1024),
        ("paged", 8, None),
    ]


def test_mistral_slides_in_its_first_version_and_in_no_later_one() -> None:
    kinds = [named_spec(f"Mistral-7B-{version}").states()[0].kind for version in ("v0.1", "v0.3")]
    assert kinds == ["window", "paged"]


def test_key_value_heads_are_shared_and_then_repeated() -> None:
    model = named_spec("qwen2.5-7b")  # four of them
    per_token = [rank_states(model, tensor_parallel=ranks)[0].bytes_per_token for ranks in (1, 2, 4)]
    assert per_token == [57_344, 28_672, 14_336]
    repeated = rank_states(named_spec("Qwen3-30B-A3B"), tensor_parallel=8)[0].bytes_per_token  # four of them too
    assert repeated == named_spec("Qwen3-30B-A3B").states()[0].bytes_per_token // 4


def test_a_latent_vector_is_held_by_every_rank() -> None:
    model = named_spec("deepseek-v2-lite")
    assert rank_states(model, tensor_parallel=4) == model.states()


def test_one_rank_holds_the_whole_model_and_the_vocabulary_padded_to_64_rows() -> None:
    granite = named_spec("granite-3.1-8b")  # 49,155 rows
    assert rank_bytes(granite) - granite.weight_bytes == (49_216 - 49_155) * 4096 * 2


def test_ranks_repeat_norms_and_share_the_rest() -> None:
    model = named_spec("llama-3.1-8b")
    norms = sum(tensor.num_bytes for tensor in model.tensors if tensor.role == "norm")
    assert rank_bytes(model, 8) == norms + (model.weight_bytes - norms) // 8


@pytest.mark.parametrize(("name", "ranks"), [("llama-3.1-8b", 3), ("llama-3.1-8b", 0), ("qwen2.5-7b", 8)])
def test_ranks_that_cannot_share_the_heads_are_refused(name: str, ranks: int) -> None:
    with pytest.raises(UsageError, match="give"):
        rank_bytes(named_spec(name), ranks)
