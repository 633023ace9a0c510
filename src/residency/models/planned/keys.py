"""Keys of config.json that nobody has asked for: harmless ones are passed over, those that look structural refused.

A key that no architecture here knows may mean another shape or another state. The words of its name tell: one with a
word of structure is refused, unless its value is off or another word says that it is a mere factor.
"""

from collections.abc import Mapping
from typing import Any

from residency.errors import UnsupportedError
from residency.models.configuration import Configuration

STRUCTURE = frozenset(
    """adapter adapters attention attn bias bits block blocks cache chunk chunked cla compress compressed compression
    conv cross delta dense depth dim dims dsa embed embedding embeddings expert experts ff ffn head heads hyper index
    indexer k key keys kv latent laurel altup layer layers linear lora mamba memory mla mlp moba moe mtp n nextn nsa
    num pattern q qk quant quantization query rank ranks recurrence recurrent rwkv share shared sharing size sliding
    sparse ssm state states swa type types v value values vocab vocabulary width window""".split()
)
FACTORS = frozenset(
    """act activation coef coefficient drop dropout eps epsilon id ids implementation init initializer loss multiplier
    multipliers pdrop prob probs scalar scale scaling softcap softcapping theta tuning""".split()
)
HARMLESS = frozenset(
    """attention_factor block_use_swiglu chunk_size chunk_size_feed_forward ep_size head_dim head_size_divisor
    layer_norm_elementwise_affine mamba_chunk_size mamba_norm_before_gate max_position_embeddings model_type n_ctx
    n_group n_positions no_rope_layer_interval no_rope_layers norm_type num_expert_group num_labels
    num_ln_in_parallel_attn num_logits_to_keep num_return_sequences original_max_position_embeddings
    output_hidden_states pad_vocab_size_multiple problem_type scale_attn_weights summary_type
    time_step_rank type_vocab_size use_bidirectional_attention use_cache use_mamba_kernels
    vision_feature_layer""".split()
)
HARMLESS_WITHIN = frozenset(
    """alibi_bias_max attention_heads attn_impl fullatt_block_indexes hidden_size image_size intermediate_layers_indices
    moe_normalize_expert_weights num_attention_heads num_heads out_hidden_size projection_dim spatial_patch_size
    vocab_size window_size""".split()
)
# Read key by key where they are: scalings of rotations, and schemes of quantization; a text model is checked alone.
UNCHECKED = frozenset("""quantization_config rope_parameters rope_scaling text_config""".split())
HARMLESS_BEGINNINGS = ("_", "rope_", "rotary_")
HARMLESS_ENDS = ("_token_index", "_token_id")
OFF = (None, False, 0, "", "none", "default")


def refuse_unknown_structure(c: Configuration, *, within: str = "") -> None:
    """UnsupportedError for the first key, here or in a nested object that is read, which looks as if it changed memory
    and which nothing here has asked for."""
    for key, value in sorted(c.unasked().items()):
        if looks_structural(key, within) and not _off(value):
            raise UnsupportedError(
                f"{c.source} sets {within}{key[:80]} to {repr(value)[:80]}, which {c.architecture} models here do not "
                "have and which may change what they need; take the key out if it changes neither a shape nor a state."
            )
    for name, section in sorted(c.sections().items()):
        if name not in UNCHECKED:
            refuse_unknown_structure(section, within=f"{within}{name}.")


def looks_structural(key: str, within: str = "") -> bool:
    """Whether a key that no architecture has asked for, in an object `within` the whole, may change a shape or a
    state."""
    if within and key in HARMLESS_WITHIN:
        return False
    if key in HARMLESS or key.startswith(HARMLESS_BEGINNINGS) or key.endswith(HARMLESS_ENDS):
        return False
    words = set(key.lower().split("_"))
    return bool(words & STRUCTURE) and not words & FACTORS


def _off(value: Any) -> bool:
    return not value if isinstance(value, list | Mapping) else value in OFF
