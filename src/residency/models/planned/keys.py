"""Keys of config.json that nobody has asked for: harmless ones are passed over, those that look structural refused.

A key that no architecture here knows may mean another shape or another state. What its name is made of tells: a word
of structure ("head", "rank", "layers") is refused unless its value is off; any other word costs no memory.
"""

import re
from collections.abc import Mapping
from typing import Any

from residency.models.configuration import Configuration

STRUCTURAL = re.compile(
    r"(^|_)(n|num|layers?|blocks?|heads?|experts?|moe|mlp|ffn|ff|feed|dims?|size|width|depth|ranks?|lora|latent|kv|qk|"
    r"keys?|values?|query|q|k|v|cache|shared?|sharing|cross|window|sliding|chunk|chunked|attn|attention|attends?|"
    r"compress(ed|ion)?|states?|ssm|mamba|recurrent|conv|linear|sparse|dense|memory|adapters?|bias|embed(ding)?s?|"
    r"vocab(ulary)?|quant(ization)?|bits|mtp|nextn|per|indexer?|index|altup|laurel|pattern|type|types)(_|$)",
)

# Keys with such words that change no shape and no state.
HARMLESS = re.compile(
    r"^(model_type|architectures|auto_map|_.*|transformers_version|torch_dtype|dtype|problem_type|"
    r".*dropout.*|.*_pdrop|.*init.*|.*(eps|epsilon)|rope_.*|.*rope.*|rotary_.*|partial_rotary_factor|max_(position|window|"
    r"seq|sequence).*|seq_length|n_positions|n_ctx|context_length|original_max_position_embeddings|"
    r".*token_(id|index)|.*_token_ids?|.*_token_index|use_cache|use_return_dict|return_dict.*|output_.*|pretraining_tp|"
    r".*loss.*|.*aux.*|router_.*|.*logits?_(soft)?cap.*|.*softcapping|num_logits_to_keep|logits_.*|.*multipliers?|"
    r".*_scaling.*|.*scale.*|scaling.*|norm_topk_prob|topk_.*|n_group|num_expert_group|scoring_func|ep_size|seq_aux|"
    r"cache_implementation|attn_implementation|_attn_implementation.*|query_pre_attn_scalar|use_bidirectional_attention|"
    r"is_decoder|is_encoder_decoder|add_cross_attention|cross_attention_hidden_size|tie_encoder_decoder|tie_word_.*|"
    r"chunk_size_feed_forward|chunk_size|layer_norm.*|layernorm.*|norm_type|hidden_act.*|activation.*|summary_.*|"
    r"num_(beams|beam_groups|return_sequences|labels)|no_repeat_ngram_size|encoder_no_repeat_ngram_size|"
    r"type_vocab_size|task_specific_params|label2id|id2label|pruned_heads|finetuning_task|tokenizer_class|prefix|"
    r"time_step_(min|max|floor|limit|rank|scale)|mamba_(chunk_size|dt_.*|dt)|use_mamba_kernels|mamba_norm_before_gate|use_mem_eff_path|"
    r"use_(fused|parallel|qk)_residual.*|use_parallel_residual|residual_in_fp32|rescale_.*|rms_norm|fused_.*|"
    r"num_ln_in_parallel_attn|clip_qkv|embd_.*|attn_pdrop|bos.*|eos.*|pad.*|unk.*|sep.*|use_flash.*|"
    r"initial_context_length|max_window_layers|sliding_window|use_sliding_window|layer_types|use_bfloat16|"
    r"swiglu_.*|attention_multiplier|use_cca|no_rope_layers|no_rope_layer_interval|sliding_window_pattern|"
    r"head_dim|mlp_bias|attention_bias|model_version|mup_.*|expert_(capacity|dropout).*|use_expert_bias|"
    r"max_length|min_length|top_k|top_p|temperature|typical_p|do_sample|early_stopping|diversity_penalty|"
    r"length_penalty|repetition_penalty|begin_suppress_tokens|suppress_tokens|bad_words_ids|forced_.*|decoder_start.*|"
    r"remove_invalid_values|exponential_decay_length_penalty|torchscript|tf_legacy_loss|gradient_checkpointing|"
    r"output_router_logits|unsloth_.*|quantization_config|vision_config|text_config|.*image.*|.*vision.*|projector_.*|"
    r"multimodal_.*|spatial_merge_size|mm_.*|boi_.*|eoi_.*|alibi|apply_residual_.*|parallel_attn|multi_query|"
    r"embedding_dropout|attention_probs.*|kv_cache_scheme|use_conv_bias|use_bias|rms_norm_add_unit_offset)$",
)
OFF = (None, False, 0, 0.0, "", "none", "default")


def refuse_unknown_structure(c: Configuration) -> None:
    """UnsupportedError for the first key that looks as if it changed memory and that nothing here has asked for."""
    for key, value in sorted(c.unasked().items()):
        if STRUCTURAL.search(key.lower()) and not HARMLESS.match(key) and not _off(value):
            raise c.unsupported(key)


def _off(value: Any) -> bool:
    if isinstance(value, list | Mapping):
        return not value
    return value in OFF
