//! What the settings of `config.json` and of GGUF metadata do that no family reads: nothing, or something that is not
//! computed here and so has to be off.

use std::fmt;

use serde_json::Value as Json;

/// What a setting does that nothing reads.
#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    /// Nothing to the arithmetic: training, bookkeeping, other programs.
    None,
    /// It changes the arithmetic, unless it has this value.
    Off(Off),
    /// Nobody knows.
    Unknown,
}

/// The value with which a setting changes nothing. Null does so too, and false, but for [`Off::True`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Off {
    /// Null or false only.
    Absent,
    /// True, of a setting that models without it have.
    True,
    /// This number.
    Number(f64),
    /// One of these texts.
    Text(&'static [&'static str]),
    /// A list, all of whose entries are this text.
    All(&'static str),
}

impl Off {
    /// Whether `value` turns the setting off.
    pub(super) fn is(self, value: &Json) -> bool {
        match (self, value) {
            (Off::True, value) => matches!(value, Json::Null | Json::Bool(true)),
            (_, Json::Null | Json::Bool(false)) => true,
            (Off::Number(off), Json::Number(x)) => x.as_f64() == Some(off),
            (Off::Text(off), Json::String(text)) => off.contains(&text.as_str()),
            (Off::All(off), Json::Array(list)) => list.iter().all(|x| x.as_str() == Some(off)),
            (_, Json::Array(list)) => list.is_empty(),
            (_, Json::Object(object)) => object.is_empty(),
            _ => false,
        }
    }
}

impl fmt::Display for Off {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Off::Absent => f.write_str("nothing"),
            Off::True => f.write_str("true"),
            Off::Number(x) => write!(f, "{x}"),
            Off::Text(texts) => f.write_str(&texts.join(" or ")),
            Off::All(text) => write!(f, "only {text}"),
        }
    }
}

/// What a setting that is not off, by its name in either kind of file, makes of a model.
pub(super) fn unsupported(key: &str) -> &'static str {
    let has = |parts: &[&str]| parts.iter().any(|part| key.contains(part));
    if has(&["expert", "moe"]) {
        "a mixture of experts is not supported"
    } else if has(&["vision", "audio"]) {
        "a vision or audio tower is not supported"
    } else if has(&["ssm", "wkv", "mamba", "recurrent"]) {
        "state-space layers are not supported"
    } else if has(&["lora_rank", "_mla"]) {
        "latent attention is not supported"
    } else {
        "not supported"
    }
}

/// Settings of `config.json` that say nothing about the arithmetic of generating text.
#[rustfmt::skip]
const WITHOUT_EFFECT: &[&str] = &[
    // Where it comes from, and how it is stored or run.
    "transformers_version", "transformers.js_config", "name_or_path", "architectures", "task_specific_params",
    "torch_dtype", "dtype",
    "torchscript", "use_bfloat16", "use_cache", "attn_implementation", "use_flash_attn", "use_flash_attention_2",
    "flash_attn", "unsloth_version", "unsloth_fixed", "auto_map", "custom_pipelines", "finetuning_task", "license",
    "tokenizer_class",
    "tokenizer_name", "prefix", "pruned_heads", "tie_encoder_decoder", "tie_last_hidden_states", "is_decoder",
    "chunk_size_feed_forward", "max_sequence_length", "max_seq_len", "max_seq_length", "seq_length", "model_max_length",
    "tokenizer_model_max_length", "n_positions", "model_name", "base_model_name_or_path", "_name_or_path",
    // Sums a matrix product in slices; the same product.
    "pretraining_tp",
    // What is returned.
    "output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "output_past", "output_scores",
    "return_dict_in_generate",
    // Training.
    "initializer_range", "initializer_factor", "init_std", "init_method", "init_device", "gradient_checkpointing",
    "label2id", "id2label", "num_labels", "problem_type", "use_fused_cross_entropy", "fuse_cross_entropy",
    "fused_ops", "router_aux_loss_coef", "full_attn_mod", "interpolate_factor", "cache_implementation",
    "classifier_dropout", "output_router_logits", "ep_size", "freeze_input_layernorm", "is_llama_config",
    "max_window_layers",
    // Sampling defaults, which a request states anew.
    "do_sample", "early_stopping", "max_length", "min_length", "max_new_tokens", "min_new_tokens", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values",
    // Of images, videos and classes, beside Hunyuan's dense models. Their tensors would be refused.
    "add_classification_head", "class_num", "pool_type", "skip_cls_token", "num_media_embeds", "mask_init_id",
    "image_token_id", "im_start_id", "im_end_id", "im_newline_id", "video_start_id", "video_end_id", "text_start_id",
    "text_end_id", "anyres_pooling_size", "anyres_vit_max_image_size", "anyres_vit_two_views",
    "vit_add_patchemb_bias", "vit_input_resolution", "vit_mapping_type", "vit_norm_type", "vit_patch", "vit_path",
    "vit_remove_prenorm", "vit_token", "vit_type", "vit_used_rms_norm",
    // Of what a model would have if other settings, which are refused, turned it on.
    "cla_share_factor", "moe_topk", "num_shared_expert", "moe_drop_tokens", "moe_layer_num_skipped",
    "moe_random_routing_dropped_token", "group_limited_greedy", "n_group", "topk_group", "norm_topk_prob",
    "routed_scaling_factor",
    // Rows of the vocabulary before it was padded.
    "org_vocab_size",
    // Tokens that do not begin or end a text here.
    "pad_id", "eod_token_id",
    "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "decoder_start_token_id",
];

/// Settings of `config.json` that change the arithmetic of models which have them.
#[rustfmt::skip]
const CHANGES: &[(&str, Off)] = &[
    // What the matrices hold.
    ("quantization_config", Off::Absent), ("compression_config", Off::Absent), ("quantization", Off::Absent),
    ("quantize_config", Off::Absent),
    ("quant_config", Off::Absent), ("quant_method", Off::Absent), ("weight_format", Off::Absent),
    ("sparsity_config", Off::Absent),
    ("load_in_8bit", Off::Absent), ("load_in_4bit", Off::Absent), ("modelopt", Off::Absent),
    ("exllama_config", Off::Absent),
    // Which positions see which.
    ("sliding_window_size", Off::Absent), ("attention_window", Off::Absent),
    ("attention_chunk_size", Off::Absent), ("sliding_window_pattern", Off::Absent),
    ("layer_types", Off::All("full_attention")), ("attn_layer_types", Off::All("full_attention")),
    ("mlp_layer_types", Off::All("dense")), ("attention_sinks", Off::Absent), ("use_sliding_window", Off::Absent),
    ("use_sinks", Off::Absent), ("prefix_lm", Off::Absent), ("use_bidirectional_attention", Off::Absent),
    ("use_cla", Off::Absent),
    ("use_logn_attn", Off::Absent), ("attn_temperature_tuning", Off::Absent), ("is_causal", Off::True),
    // Factors and caps.
    ("logit_scale", Off::Number(1.0)), ("logits_scaling", Off::Number(1.0)),
    ("output_multiplier_scale", Off::Number(1.0)), ("residual_multiplier", Off::Number(1.0)),
    ("residual_scale", Off::Number(1.0)), ("embedding_multiplier", Off::Number(1.0)),
    ("embedding_multiplier_scale", Off::Number(1.0)), ("embedding_scale", Off::Number(1.0)),
    ("scale_emb", Off::Number(1.0)),
    ("scale_embedding", Off::Absent), ("scale_depth", Off::Absent), ("dim_model_base", Off::Absent),
    ("attention_multiplier", Off::Absent), ("attention_scale", Off::Absent), ("query_pre_attn_scalar", Off::Absent),
    ("attn_scale", Off::Absent), ("softmax_scale", Off::Absent), ("scale_attn_weights", Off::True),
    ("scale_attn_by_inverse_layer_idx", Off::Absent),
    ("final_logit_softcapping", Off::Absent), ("attn_logit_softcapping", Off::Absent),
    ("logits_soft_cap", Off::Absent), ("logit_soft_cap", Off::Absent),
    ("clip_qkv", Off::Absent), ("mup", Off::Absent), ("mup_scale_factor", Off::Absent), ("width_scale", Off::Absent),
    ("logits_scale", Off::Number(1.0)), ("embed_scale", Off::Number(1.0)),
    // Other layers.
    ("use_qk_norm", Off::Absent), ("qk_norm", Off::Absent), ("qk_layernorm", Off::Absent),
    ("use_qkv_bias", Off::Absent), ("qkv_bias", Off::Absent), ("bias", Off::Absent), ("use_bias", Off::Absent),
    ("lm_head_bias", Off::Absent), ("add_bias_linear", Off::Absent), ("norm_type", Off::Absent),
    ("normalization_type", Off::Absent), ("norm_head", Off::Absent), ("embedding_norm", Off::Absent),
    ("embed_layer_norm", Off::Absent),
    ("use_post_norm", Off::Absent), ("post_norm", Off::Absent), ("sandwich_norm", Off::Absent),
    ("parallel_attn", Off::Absent), ("use_parallel_residual", Off::Absent), ("parallel_residual", Off::Absent),
    ("alibi", Off::Absent), ("use_alibi", Off::Absent),
    ("hidden_activation", Off::Text(&["silu", "swish"])), ("activation_function", Off::Text(&["silu", "swish"])),
    // The third is in Falcon 3.
    ("activation", Off::Text(&["silu", "swish", "swiglu"])), ("mlp_activation", Off::Absent),
    ("use_rope", Off::True), ("rotary", Off::True), ("use_rotary", Off::True),
    ("use_rotary_embeddings", Off::True), ("use_rotary_position_embeddings", Off::True),
    ("no_rope_layers", Off::Absent), ("no_rope_layer_interval", Off::Absent), ("nope_layer_interval", Off::Absent),
    ("position_embedding_type", Off::Text(&["rope", "rotary"])),
    ("add_cross_attention", Off::Absent), ("cross_attention_hidden_size", Off::Absent),
    ("is_encoder_decoder", Off::Absent), ("per_layer_config", Off::Absent), ("block_configs", Off::Absent),
    ("num_kv_shared_layers", Off::Number(0.0)),
    ("text_config", Off::Absent), ("vision_config", Off::Absent), ("audio_config", Off::Absent),
    ("num_nextn_predict_layers", Off::Number(0.0)),
    ("kv_lora_rank", Off::Absent), ("q_lora_rank", Off::Absent), ("sparse_config", Off::Absent),
    // Mixtures of experts.
    ("num_local_experts", Off::Number(0.0)), ("num_experts", Off::Number(0.0)),
    ("n_routed_experts", Off::Number(0.0)), ("n_shared_experts", Off::Number(0.0)),
    ("num_experts_per_tok", Off::Number(0.0)),
    ("num_experts_per_token", Off::Number(0.0)), ("moe_num_experts", Off::Number(0.0)),
    ("moe_intermediate_size", Off::Absent), ("moe_layers", Off::Absent), ("moe", Off::Absent),
    ("shared_expert_intermediate_size", Off::Absent),
];

/// What the key of a `config.json` does that no family reads.
pub(super) fn of_config(key: &str) -> Effect {
    if let Some(&(_, off)) = CHANGES.iter().find(|(name, _)| *name == key) {
        return Effect::Off(off);
    }
    let dropout = key.contains("dropout") || key.ends_with("pdrop");
    if dropout || key.starts_with('_') || WITHOUT_EFFECT.contains(&key) {
        return Effect::None;
    }
    // No setting of the rotary embedding is without effect.
    if ["rope", "rotary", "ntk"].iter().any(|part| key.contains(part)) {
        return Effect::Off(Off::Absent);
    }
    Effect::Unknown
}

/// Keys of GGUF metadata below the architecture's name that say nothing about its arithmetic.
const WITHOUT_EFFECT_GGUF: &[&str] = &[
    "expert_used_count", // of the experts, of which there are none
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "attention.group_norm_epsilon",
    "attention.recurrent_layers",
];

/// Keys that change the arithmetic of architectures which have them.
const CHANGES_GGUF: &[(&str, Off)] = &[
    ("tensor_data_layout", Off::Text(&["reference", "Meta AI original pth"])),
    ("attention.causal", Off::True),
    ("pooling_type", Off::Number(0.0)),
    ("logit_scale", Off::Number(1.0)),
    ("residual_scale", Off::Number(1.0)),
    ("embedding_scale", Off::Number(1.0)),
    ("attention.clamp_kqv", Off::Number(0.0)),
    ("attention.max_alibi_bias", Off::Number(0.0)),
    ("attention.sliding_window", Off::Number(0.0)),
    ("attn_logit_softcapping", Off::Number(0.0)),
    ("final_logit_softcapping", Off::Number(0.0)),
    ("router_logit_softcapping", Off::Number(0.0)),
    ("swin_norm", Off::Absent),
    ("use_parallel_residual", Off::Absent),
];

/// What a key below the architecture's name does that nobody reads.
pub(super) fn of_gguf(key: &str) -> Effect {
    if let Some(&(_, off)) = CHANGES_GGUF.iter().find(|(name, _)| *name == key) {
        return Effect::Off(off);
    }
    if WITHOUT_EFFECT_GGUF.contains(&key) {
        return Effect::None;
    }
    let parts = ["rope.", "attention.", "expert", "moe", "ssm.", "wkv.", "nextn", "leading_dense", "shared_"];
    if parts.iter().any(|part| key.contains(part)) {
        return Effect::Off(Off::Number(0.0));
    }
    Effect::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_key_has_one_effect() {
        let mut names: Vec<&str> =
            CHANGES.iter().map(|(name, _)| *name).chain(WITHOUT_EFFECT.iter().copied()).collect();
        names.sort_unstable();
        let n = names.len();
        names.dedup();
        assert_eq!(names.len(), n);
        for (name, off) in CHANGES {
            assert_eq!(of_config(name), Effect::Off(*off));
            assert!(off.is(&Json::Null), "{name}");
        }
        for name in WITHOUT_EFFECT.iter().chain(&["attention_dropout", "resid_pdrop", "_anything"]) {
            assert_eq!(of_config(name), Effect::None, "{name}");
        }
        for name in ["rope_ratio", "rotary_dim", "use_dynamic_ntk"] {
            assert_eq!(of_config(name), Effect::Off(Off::Absent), "{name}");
        }
        for name in ["use_rope", "rotary", "scale_attn_weights"] {
            assert_eq!(of_config(name), Effect::Off(Off::True), "{name}");
        }
        assert_eq!(of_config("favourite_colour"), Effect::Unknown);
        for name in
            ["attention.scale", "rope.dimension_sections", "expert_shared_count", "x.attention.indexer"]
        {
            assert_eq!(of_gguf(name), Effect::Off(Off::Number(0.0)), "{name}");
        }
        assert_eq!(of_gguf("favourite_colour"), Effect::Unknown);
    }

    #[test]
    fn what_is_not_supported_has_a_name() {
        for (key, word) in [
            ("num_local_experts", "experts"),
            ("expert_count", "experts"),
            ("vision_config", "vision"),
            ("ssm.inner_size", "state-space"),
            ("kv_lora_rank", "latent"),
        ] {
            assert!(unsupported(key).contains(word), "{key}: {}", unsupported(key));
        }
        assert_eq!(unsupported("logit_scale"), "not supported");
    }

    #[test]
    fn off_is_told_from_on() {
        for (off, yes, no) in [
            (Off::True, vec![json!(null), json!(true)], vec![json!(false), json!(1)]),
            (
                Off::Absent,
                vec![json!(null), json!(false), json!([])],
                vec![json!(true), json!(0), json!("none")],
            ),
            (
                Off::Number(1.0),
                vec![json!(1), json!(1.0), json!(null)],
                vec![json!(0), json!(1.5), json!("1")],
            ),
            (Off::Text(&["silu"]), vec![json!("silu")], vec![json!("gelu"), json!(1)]),
            (
                Off::All("full"),
                vec![json!(["full", "full"]), json!([])],
                vec![json!(["full", "half"]), json!([1])],
            ),
        ] {
            assert!(yes.iter().all(|value| off.is(value)), "{off:?}");
            assert!(!no.iter().any(|value| off.is(value)), "{off:?}");
        }
    }
}
