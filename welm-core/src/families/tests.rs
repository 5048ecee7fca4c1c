//! Configurations, right and wrong; what is right is what transformers 5.24 makes of them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::*;
use crate::config::RopeScaling;

mod gguf;

fn base(family: &str) -> Json {
    let mut config = json!({
        "model_type": family, "vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 64
    });
    if family == "gpt_neox" {
        config["hidden_size"] = json!(32);
    }
    if family == "ministral3" {
        config["rope_parameters"] = json!({
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16,
            "max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1
        });
    }
    if family == "granitemoehybrid" {
        let dense =
            json!({"layer_types": ["attention"], "num_local_experts": 0, "shared_intermediate_size": 12});
        config.as_object_mut().unwrap().extend(dense.as_object().unwrap().clone());
    }
    config
}

fn read(text: &str) -> Result<ModelConfig> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), text).unwrap();
    ModelConfig::from_folder(folder.path())
}

/// The family's smallest configuration with these settings beside.
fn with(family: &str, more: &Json) -> Result<ModelConfig> {
    let mut config = base(family);
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    read(&config.to_string())
}

/// The setting that is at fault.
fn fault(family: &str, more: &Json) -> String {
    match with(family, more) {
        Err(Error::Config { setting, .. }) => setting,
        other => panic!("{more}: {other:?}"),
    }
}

#[test]
#[rustfmt::skip]
fn rotary_frequencies_are_those_of_transformers() {
    let cases: &[(&str, &str, &[f32])] = &[
        ("llama", r#"{}"#, &[1.0, 0.1, 0.01, 0.001]),
        ("llama", r#"{"rope_theta": 500000}"#, &[1.0, 0.03760603, 0.001414213, 5.318296e-05]),
        ("llama", r#"{"rope_scaling": null}"#, &[1.0, 0.1, 0.01, 0.001]),
        ("llama", r#"{"rope_scaling": {}, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}"#, &[1.0, 0.2114742, 0.04472136, 0.009457416]),
        ("llama", r#"{"rope_scaling": {"type": "linear", "factor": 2}}"#, &[0.5, 0.05, 0.005, 0.0005]),
        ("llama", r#"{"rope_scaling": {"rope_type": "linear", "factor": 2.5}}"#, &[0.4, 0.04, 0.004, 0.0004]),
        ("llama", r#"{"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}}"#, &[0.5, 0.05, 0.005, 0.0005]),
        ("llama", r#"{"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}"#, &[0.25, 0.05286856, 0.01118034, 0.002364354]),
        ("llama", r#"{"rope_parameters": {"type": "linear", "factor": 4.0}, "rope_theta": 500.0}"#, &[0.25, 0.05286856, 0.01118034, 0.002364354]),
        ("llama", r#"{"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}, "rope_theta": 7.0}"#, &[0.25, 0.05286856, 0.01118034, 0.002364354]),
        ("llama", r#"{"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}"#, &[0.5, 0.05, 0.005, 0.0005]),
        ("llama", r#"{"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}"#, &[0.5, 0.05, 0.005, 0.0005]),
        ("llama", r#"{"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}, "rope_theta": 300}"#, &[0.5, 0.1201406, 0.02886751, 0.006936319]),
        ("llama", r#"{"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 77.0}, "rope_theta": 300}"#, &[0.5, 0.1687902, 0.05698029, 0.01923543]),
        ("llama", r#"{"rope_scaling": {"type": "dynamic", "factor": 4.0}}"#, &[1.0, 0.1, 0.01, 0.001]),
        ("llama", r#"{"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 32, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}"#, &[1.0, 0.0125, 0.00125, 0.000125]),
        ("llama", r#"{"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}"#, &[1.0, 0.01304226, 0.00125, 0.000125]),
        ("llama", r#"{"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 32, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, "original_max_position_embeddings": 16}"#, &[0.5760564, 0.0125, 0.00125, 0.000125]),
        ("llama", r#"{"rope_parameters": {"rope_type": "llama3", "original_max_position_embeddings": 32, "rope_theta": 500000.0, "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}}"#, &[1.0, 0.004700754, 0.0001767767, 6.64787e-06]),
        ("llama", r#"{"rope_scaling": {"type": "linear", "factor": 2.0, "original_max_position_embeddings": 32, "finetuned": true}}"#, &[0.5, 0.05, 0.005, 0.0005]),
        ("llama", r#"{"rope_scaling": {"type": "default"}}"#, &[1.0, 0.1, 0.01, 0.001]),
        ("llama", r#"{"head_dim": 4}"#, &[1.0, 0.01]),
        ("gpt_neox", r#"{}"#, &[1.0, 0.01]),
        ("gpt_neox", r#"{"rotary_pct": 0.5, "rotary_emb_base": 500}"#, &[1.0, 0.2114742, 0.04472136, 0.009457416]),
        ("gpt_neox", r#"{"rotary_pct": 0.5, "rotary_emb_base": 500, "rope_theta": 500}"#, &[1.0, 0.2114742, 0.04472136, 0.009457416]),
        ("gpt_neox", r#"{"rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_pct": 0.5}"#, &[0.5, 0.05, 0.005, 0.0005]),
        ("gpt_neox", r#"{"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}, "rotary_pct": 0.25, "rotary_emb_base": 7}"#, &[1.0, 0.2114742, 0.04472136, 0.009457416]),
        ("gpt_neox", r#"{"rope_parameters": {"rope_type": "linear", "factor": 2.0}}"#, &[0.5, 0.005]),
    ];
    for (family, more, want) in cases {
        let got = with(family, &serde_json::from_str(more).unwrap()).unwrap().ropes[0].inv_freq(64);
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-6 * b.abs();
        assert!(got.len() == want.len() && got.iter().zip(*want).all(close), "{family} {more}: {got:?}");
    }
}

/// The same where the frequencies depend on the context that the model is loaded with, or have a factor.
#[test]
#[rustfmt::skip]
fn stretched_frequencies_are_those_of_transformers() {
    let cases: &[(&str, usize, f32, &[f32])] = &[
        (r#"{"rope_scaling": {"type": "dynamic", "factor": 4.0}}"#, 32, 1.0, &[1.0, 0.1, 0.01, 0.001]),
        (r#"{"rope_scaling": {"type": "dynamic", "factor": 4.0}}"#, 64, 1.0, &[1.0, 0.1, 0.01, 0.001]),
        (r#"{"rope_scaling": {"type": "dynamic", "factor": 4.0}}"#, 65, 1.0, &[1.0, 0.09799946, 0.009603894, 0.0009411765]),
        (r#"{"rope_scaling": {"type": "dynamic", "factor": 4.0}}"#, 256, 1.0, &[1.0, 0.04252904, 0.001808719, 7.692308e-05]),
        (r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}"#, 64, 1.138629, &[1.0, 0.025, 0.0025, 0.00025]),
        (r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, "rope_theta": 1000000.0}"#, 64, 1.138629, &[1.0, 0.01976424, 0.00025, 7.905694e-06]),
        (r#"{"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 4.0, "beta_slow": 0.5, "truncate": false}}"#, 64, 1.207944, &[1.0, 0.0424418, 0.00125, 0.000125]),
        (r#"{"rope_scaling": {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0, "original_max_position_embeddings": 32}}"#, 64, 0.9210424, &[1.0, 0.0025, 0.00025, 2.5e-05]),
        (r#"{"rope_scaling": {"rope_type": "yarn", "factor": null, "original_max_position_embeddings": 16, "attention_factor": 0.75}}"#, 64, 0.75, &[1.0, 0.025, 0.0025, 0.00025]),
        (r#"{"rope_scaling": {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 64}}"#, 64, 1.0, &[1.0, 0.1, 0.01, 0.001]),
        (r#"{"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 4.0, 8.0, 16.0]}, "original_max_position_embeddings": 16}"#, 16, 1.224745, &[1.0, 0.06666667, 0.005, 0.0003333333]),
        (r#"{"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 4.0, 8.0, 16.0]}, "original_max_position_embeddings": 16}"#, 17, 1.224745, &[0.5, 0.025, 0.00125, 6.25e-05]),
        (r#"{"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 4.0, 8.0, 16.0], "factor": 8.0, "original_max_position_embeddings": 32}}"#, 64, 1.264911, &[0.5, 0.025, 0.00125, 6.25e-05]),
        (r#"{"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 4.0, 8.0, 16.0], "attention_factor": 1.25}}"#, 64, 1.25, &[1.0, 0.06666667, 0.005, 0.0003333333]),
    ];
    for (more, context, factor, want) in cases {
        let rope = &with("llama", &serde_json::from_str(more).unwrap()).unwrap().ropes[0];
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-6 * b.abs();
        let got = rope.inv_freq(*context);
        assert!(got.len() == want.len() && got.iter().zip(*want).all(close), "{more}, {context}: {got:?}");
        assert!(close((&rope.attention_factor, factor)), "{more}: {}", rope.attention_factor);
    }
}

/// Dynamic scaling and YaRN allow a longer context than the model states; the others do not.
#[test]
fn the_context_can_be_stretched_where_the_frequencies_follow() {
    let longest = |section: Json| with("llama", &json!({"rope_scaling": section})).unwrap().longest_context();
    assert_eq!(longest(json!({"type": "dynamic", "factor": 2.5})), 160);
    assert_eq!(longest(json!({"type": "dynamic", "factor": 0.5})), 64);
    assert_eq!(longest(json!({"type": "dynamic", "factor": 1e30})), 1 << 24);
    assert_eq!(longest(json!({"type": "yarn", "factor": 4.0})), 256);
    let yarn = |original: usize| json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": original});
    assert_eq!([longest(yarn(32)), longest(yarn(16)), longest(yarn(8))], [128, 64, 64]);
    assert_eq!(longest(json!({"type": "linear", "factor": 2.5})), 64);
    assert_eq!(longest(json!(null)), 64);
}

#[test]
fn other_keys_of_a_rotary_section_are_errors() {
    for (section, at) in [
        (json!({"factor": 2.0}), "factor"),
        (json!({"type": "linear"}), "factor"),
        (json!({"type": "linear", "factor": null}), "factor"),
        (json!({"type": "linear", "factor": "2"}), "factor"),
        (json!({"type": "linear", "factor": 2.0, "low_freq_factor": 1.0}), "low_freq_factor"),
        (json!({"type": "linear", "factor": 2.0, "attention_factor": 1.5}), "attention_factor"),
        (json!({"type": "default", "mrope_section": [1, 1]}), "mrope_section"),
        (json!({"type": "dynamic", "factor": 2.0, "alpha": 8.0}), "alpha"),
        (json!({"type": "yarn", "factor": 2.0, "low_freq_factor": 1.0}), "low_freq_factor"),
        (json!({"type": "yarn", "factor": 2.0, "truncate": 1}), "truncate"),
        (json!({"rope_type": "longrope", "short_factor": [1.0, 1.0, 1.0, 1.0]}), "long_factor"),
        (json!({"rope_type": "longrope", "short_factor": 1.0, "long_factor": []}), "short_factor"),
        (json!({"rope_type": "longrope", "short_factor": ["1"], "long_factor": []}), "short_factor"),
        (json!({"rope_type": "proportional", "partial_rotary_factor": 0.5}), "rope_type"),
        (json!({"rope_type": "Linear", "factor": 2.0}), "rope_type"),
        (json!({"rope_type": null, "type": "linear", "factor": 2.0}), "rope_type"),
        (json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}), "high_freq_factor"),
        (
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 0}),
            "original_max_position_embeddings",
        ),
        (json!({"full_attention": {"rope_type": "default"}}), "full_attention"),
        (json!({"rope_type": "default", "rope_theta": "10000"}), "rope_theta"),
    ] {
        for name in ["rope_scaling", "rope_parameters"] {
            assert_eq!(fault("llama", &json!({name: section})), format!("{name}.{at}"));
        }
    }
    for section in [json!(2.0), json!("linear"), json!([1]), json!(true)] {
        assert_eq!(fault("llama", &json!({"rope_scaling": section})), "rope_scaling");
    }
    for factor in [0.0, -2.0, 1e39] {
        for kind in ["linear", "dynamic", "yarn"] {
            let section = json!({"type": kind, "factor": factor});
            assert_eq!(fault("llama", &json!({"rope_scaling": section})), "rope_scaling.factor");
        }
    }
    let longrope = |short: Json, original: usize| {
        let long = [1.0; 4];
        json!({"rope_scaling": {"type": "longrope", "short_factor": short, "long_factor": long},
            "original_max_position_embeddings": original})
    };
    for (more, setting) in [
        (longrope(json!([1.0, 1.0, 1.0]), 16), "rope_scaling.short_factor"),
        (longrope(json!([1.0, 0.0, 1.0, 1.0]), 16), "rope_scaling.short_factor"),
        (longrope(json!([1.0, 1e39, 1.0, 1.0]), 16), "rope_scaling.short_factor"),
        // Its logarithm divides.
        (longrope(json!([1.0, 1.0, 1.0, 1.0]), 1), "rope_scaling.attention_factor"),
        (json!({"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 1.0}), "rope_theta - 1"),
        (json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": -1}}), "rope_scaling.beta_fast"),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "head_dim": 2}), "rotary_dim - 2"),
    ] {
        assert_eq!(fault("llama", &more), setting);
    }
}

#[test]
fn spellings_of_other_families_may_not_say_something_else() {
    assert_eq!(fault("gpt_neox", &json!({"rope_theta": 500})), "rope_theta");
    assert_eq!(fault("gpt_neox", &json!({"partial_rotary_factor": 1.0})), "partial_rotary_factor");
    assert_eq!(fault("llama", &json!({"rotary_emb_base": 500})), "rotary_emb_base");
    assert_eq!(fault("llama", &json!({"rotary_pct": 0.5})), "rotary_pct");
    assert_eq!(fault("llama", &json!({"partial_rotary_factor": 0.5})), "partial_rotary_factor");
    assert_eq!(fault("welm", &json!({"rotary_emb_base": 500, "rope_theta": 400})), "rope_theta");
    for (family, more) in [
        ("gpt_neox", json!({"rope_theta": 10_000, "partial_rotary_factor": 0.25})),
        ("llama", json!({"rotary_emb_base": 500, "rope_theta": 500.0, "rotary_pct": 1})),
    ] {
        with(family, &more).unwrap();
    }
    for more in [json!({"rope_theta": 500}), json!({"rotary_emb_base": 500})] {
        assert_eq!(with("welm", &more).unwrap().ropes[0].base, 500.0);
    }
}

#[test]
fn settings_that_change_the_arithmetic_are_refused_unless_they_are_off() {
    for (key, on, off) in [
        ("sliding_window", json!(8), json!(null)),
        ("sliding_window", json!(63), json!(64)),
        ("use_sliding_window", json!(true), json!(false)),
        ("logit_scale", json!(0.0625), json!(1.0)),
        ("logits_scaling", json!(8), json!(1)),
        ("residual_multiplier", json!(0.2), json!(1.0)),
        ("embedding_multiplier", json!(12.0), json!(1)),
        ("attention_multiplier", json!(0.5), json!(null)),
        ("final_logit_softcapping", json!(30.0), json!(null)),
        ("clip_qkv", json!(8), json!(null)),
        ("use_qk_norm", json!(true), json!(false)),
        ("num_local_experts", json!(8), json!(0)),
        ("layer_types", json!(["sliding_attention"]), json!(["full_attention"])),
        ("rope_interleaved", json!(true), json!(false)),
        ("is_causal", json!(false), json!(true)),
        ("is_encoder_decoder", json!(true), json!(false)),
        ("hidden_activation", json!("gelu"), json!("silu")),
        ("quantization_config", json!({"bits": 4}), json!(null)),
        ("compression_config", json!({"format": "int-quantized"}), json!({})),
        ("quantization", json!({"group_size": 64, "bits": 4}), json!(null)),
        ("architectures", json!(["MistralForCausalLM"]), json!(["LlamaForCausalLM"])),
        ("architectures", json!("LlamaForCausalLM"), json!([])),
        ("tie_word_embeddings", json!(null), json!(false)),
        ("tie_word_embeddings", json!("true"), json!(false)),
        ("hidden_act", json!(null), json!("silu")),
        ("hidden_act", json!("gelu"), json!("swish")),
        ("mlp_bias", json!(1), json!(false)),
        ("head_dim", json!(8.0), json!(8)),
        ("rms_norm_eps", json!(1e39), json!(1e-6)),
        ("rms_norm_eps", json!(-1), json!(1e-6)),
        ("rope_theta", json!(1e39), json!(10_000)),
        ("rope_theta", json!(null), json!(10_000)),
        ("rope_theta", json!({"__float__": "NaN"}), json!(10_000)),
        ("hidden_size", json!(-16), json!(16)),
        ("hidden_size", json!(16.0), json!(16)),
        ("num_key_value_heads", json!(3), json!(1)),
        ("bos_token_id", json!(16), json!(15)),
        ("bos_token_id", json!([1, 2]), json!([1])),
    ] {
        let setting = fault("llama", &json!({key: on}));
        let own = match key {
            "num_key_value_heads" => "n_kv_heads",
            "rms_norm_eps" => "norm_eps",
            key => key,
        };
        assert_eq!(setting, own);
        with("llama", &json!({key: off})).unwrap_or_else(|e| panic!("{key}: {e}"));
    }
    for (key, on, off) in [
        ("head_dim", json!(8), json!(16)),
        ("num_key_value_heads", json!(1), json!(2)),
        ("architectures", json!(["LlamaForCausalLM"]), json!(["GPTNeoXForCausalLM"])),
        ("use_parallel_residual", json!(null), json!(false)),
        ("hidden_act", json!("relu"), json!("gelu_new")),
    ] {
        assert_eq!(fault("gpt_neox", &json!({key: on})), key);
        with("gpt_neox", &json!({key: off})).unwrap();
    }
    // A window that is switched off.
    with("llama", &json!({"sliding_window": 8, "use_sliding_window": false})).unwrap();
}

/// Up to the length of a chunk this attention is the ordinary one.
#[test]
fn a_context_ends_where_attention_by_chunks_begins() {
    let context = |more: Json| with("qwen2", &more).map(|config| config.max_context);
    let plain = context(json!({})).unwrap();
    let chunks = |chunk: usize, local: usize| {
        context(json!({"dual_chunk_attention_config": {"chunk_size": chunk, "local_size": local, "x": true}}))
    };
    assert_eq!(chunks(40, 8).unwrap(), 32);
    assert_eq!(chunks(plain + 9, 8).unwrap(), plain);
    let error = chunks(8, 8).unwrap_err().to_string();
    assert!(error.contains("chunk_size`: expected more than local_size, 8, got 8"), "{error}");
}

/// What the model has no row for it cannot generate, so such an end never comes.
#[test]
fn end_tokens_outside_of_the_vocabulary_are_forgotten() {
    let ends = |value: Json| with("llama", &json!({"eos_token_id": value})).unwrap().eos_token_ids;
    assert!(ends(json!(16)).is_empty());
    assert_eq!(ends(json!([15, 16, 3, 4_000_000_000u32])), [15, 3]);
}

/// Settings that public models have.
#[test]
fn settings_of_public_models_are_known() {
    let more = json!({
        "_name_or_path": "x", "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": [2, 3], "hidden_act": "silu", "initializer_range": 0.02,
        "is_llama_config": true, "mlp_bias": false, "pad_token_id": -1, "pretraining_tp": 2, "rms_norm_eps": 1e-5,
        "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100_000, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "transformers_version": "4.42.3", "use_cache": true, "num_key_value_heads": 1, "head_dim": 8,
        "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}
    });
    let config = with("llama", &more).unwrap();
    assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(1), &[2, 3][..]));
}

/// Settings that public models of these families have, in smaller sizes: none is refused.
#[test]
fn settings_of_public_relatives_are_known() {
    let factors = |n: usize| vec![1.5; n];
    let cases = [
        // Phi-4-mini.
        (
            "phi3",
            json!({"architectures": ["Phi3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
                "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1, "embd_pdrop": 0.0,
                "eos_token_id": 2, "full_attn_mod": 1, "hidden_act": "silu", "initializer_range": 0.02,
                "interpolate_factor": 1, "lm_head_bias": false, "max_position_embeddings": 131_072, "mlp_bias": false,
                "num_key_value_heads": 1, "original_max_position_embeddings": 4096, "pad_token_id": 3,
                "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-5, "rope_scaling":
                {"long_factor": factors(3), "short_factor": factors(3), "type": "longrope"}, "rope_theta": 10_000.0,
                "sliding_window": 262_144, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
                "transformers_version": "4.45.0", "use_cache": true}),
        ),
        // GLM-4-9B-0414, with YaRN as its page says to add it.
        (
            "glm4",
            json!({"architectures": ["Glm4ForCausalLM"], "attention_bias": true, "attention_dropout": 0.0,
                "eos_token_id": [1, 2, 3], "head_dim": 8, "hidden_act": "silu", "initializer_range": 0.02,
                "max_position_embeddings": 32_768, "num_key_value_heads": 2, "pad_token_id": 1,
                "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "rope_scaling":
                {"factor": 4.0, "original_max_position_embeddings": 32_768, "type": "yarn"},
                "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true}),
        ),
        // Granite 3.3 2B.
        (
            "granite",
            json!({"architectures": ["GraniteForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
                "attention_multiplier": 0.015_625, "bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0,
                "hidden_act": "silu", "initializer_range": 0.02, "logits_scaling": 8.0,
                "max_position_embeddings": 131_072, "mlp_bias": false, "num_key_value_heads": 1, "pad_token_id": 0,
                "residual_multiplier": 0.22, "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 10_000_000.0,
                "tie_word_embeddings": true, "use_cache": true}),
        ),
        // MiniCPM4 0.5B.
        (
            "minicpm",
            json!({"architectures": ["MiniCPMForCausalLM"], "auto_map": {"AutoConfig": "x.MiniCPMConfig"},
                "bos_token_id": 1, "dim_model_base": 256, "eos_token_id": [2, 14], "hidden_act": "silu",
                "initializer_range": 0.1, "max_position_embeddings": 32_768, "num_key_value_heads": 2,
                "pad_token_id": 2, "rms_norm_eps": 1e-5, "rope_scaling": {"rope_type": "longrope",
                "long_factor": factors(4), "short_factor": factors(4), "original_max_position_embeddings": 32_768},
                "rope_theta": 10_000.0, "scale_depth": 1.4, "scale_emb": 12, "tie_word_embeddings": true,
                "use_cache": true}),
        ),
        // InternLM2.5 7B.
        (
            "internlm2",
            json!({"architectures": ["InternLM2ForCausalLM"], "attn_implementation": "eager", "auto_map":
                {"AutoConfig": "configuration_internlm2.InternLM2Config"}, "bias": false, "bos_token_id": 1,
                "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 32_768,
                "num_key_value_heads": 1, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
                "rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1_000_000,
                "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true}),
        ),
    ];
    for (family, more) in cases {
        let config = with(family, &more).unwrap_or_else(|e| panic!("{family}: {e}"));
        assert_eq!(config.ropes[0].scaling.as_str().is_some(), family != "granite", "{family}");
    }
}

/// Rnj-1 is a Gemma 3 all of whose layers see everything, by YaRN.
#[test]
fn rnj_1_is_a_gemma_3() {
    let rnj = |attn_factor: f64| {
        with(
            "gemma3_text",
            &json!({"head_dim": 8, "final_logit_softcapping": 30.0, "sliding_window_pattern": 1, "rope_theta": 10_000.0,
                "max_position_embeddings": 256, "rope_scaling": {"attn_factor": attn_factor, "beta_fast": 64.0,
                "beta_slow": 1.0, "extrapolation_factor": 1.0, "factor": 4.0,
                "original_max_position_embeddings": 64, "rope_type": "yarn"}}),
        )
    };
    let config = rnj(1.0).unwrap();
    assert!(config.layers.iter().all(|layer| layer.window.is_none() && layer.rope == Some(0)));
    assert_eq!(config.logit_soft_cap, Some(30.0));
    assert!((config.ropes[0].attention_factor - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
    // A factor that transformers passes over, as DeepSeek-R1-0528-Qwen3-8B has one.
    assert_eq!(rnj(0.878).unwrap().ropes, config.ropes);
    let untruncated = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": false}});
    assert_eq!(fault("gemma3_text", &untruncated), "rope_scaling.truncate");
    let outside = json!({"original_max_position_embeddings": 16});
    assert_eq!(fault("gemma3_text", &outside), "original_max_position_embeddings");
}

#[test]
fn granite_4_turns_nothing_where_it_has_no_positions() {
    let turned = |value: Json| {
        let config = with("granitemoehybrid", &json!({"position_embedding_type": value})).unwrap();
        config.layers[0].rope.is_some()
    };
    assert!(turned(json!("rope")) && !turned(json!("nope")) && !turned(Json::Null));
    assert_eq!(
        fault("granitemoehybrid", &json!({"normalization_function": "layernorm"})),
        "normalization_function"
    );
}

#[test]
fn a_context_that_stretches_short_texts_is_told() {
    let factors = vec![1.5; 4];
    let longrope = json!({"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
        "rope_scaling": {"long_factor": factors, "short_factor": factors, "type": "longrope"}});
    let of = |family: &str, more: &Json, context| {
        with(family, more).unwrap().ropes[0].unstretched_in_transformers(context)
    };
    assert_eq!(of("phi3", &longrope, 131_072), Some(4096));
    assert_eq!(of("phi3", &longrope, 4097), Some(4096));
    assert_eq!(of("phi3", &longrope, 4096), None);
    let dynamic = json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}});
    assert_eq!((of("llama", &dynamic, 64), of("llama", &dynamic, 128)), (None, Some(64)));
    assert_eq!(of("llama", &json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}), 128), None);
}

#[test]
fn a_configuration_is_one_object_without_repeated_keys() {
    let one = base("llama").to_string();
    let twice = one.replacen('{', r#"{"rope_theta": 5.0, "rope_theta": 10000.0, "#, 1);
    for (text, reason) in [
        (twice.as_str(), "`rope_theta` appears twice"),
        (&one.replacen('{', r#"{"rope_scaling": {"factor": 1, "factor": 2}, "#, 1), "`factor` appears twice"),
        ("[]", "config.json: expected a JSON object, got []"),
        ("{}", "model_type"),
        ("{", "EOF"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    read(&one).unwrap();
    let error = ModelConfig::from_folder(Path::new("/nowhere")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
}

/// The windows of all layers, and which rotary embedding they have.
fn layers(family: &str, more: &Json) -> (Vec<Option<usize>>, Vec<Option<usize>>) {
    let mut four = json!({"num_hidden_layers": 4});
    four.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let layers = with(family, &four).unwrap().layers;
    layers.iter().map(|layer| (layer.window, layer.rope)).unzip()
}

#[test]
fn windows_are_those_of_transformers() {
    let kinds = |letters: &str| {
        let kind = |c| if c == 's' { "sliding_attention" } else { "full_attention" };
        json!(letters.chars().map(kind).collect::<Vec<_>>())
    };
    for (family, more, want) in [
        ("qwen2", json!({}), "ffff"),
        ("qwen2", json!({"sliding_window": 8, "max_window_layers": 2}), "ffff"),
        ("qwen2", json!({"sliding_window": 8, "max_window_layers": 2, "use_sliding_window": true}), "ffss"),
        ("qwen3", json!({"sliding_window": 8, "max_window_layers": 3, "use_sliding_window": true}), "fffs"),
        (
            "qwen3",
            json!({"sliding_window": 8, "layer_types": kinds("sffs"), "use_sliding_window": true}),
            "sffs",
        ),
        ("qwen3", json!({"sliding_window": 64, "max_window_layers": 0, "use_sliding_window": true}), "ffff"),
        ("mistral", json!({"sliding_window": 8}), "ssss"),
        ("mistral", json!({"sliding_window": null}), "ffff"),
        ("mistral", json!({}), "ffff"), // 4,096, which is beyond the context
        ("mistral", json!({"sliding_window": 8, "layer_types": kinds("sfsf")}), "sfsf"),
        ("ministral", json!({"sliding_window": 8, "layer_types": kinds("fsfs")}), "fsfs"),
        ("ministral3", json!({}), "ffff"),
        ("ministral3", json!({"sliding_window": 8}), "ssss"),
        ("ministral3", json!({"sliding_window": 8, "layer_types": kinds("ffff")}), "ssss"),
        ("gemma3_text", json!({"sliding_window": 8}), "ssss"),
        ("gemma3_text", json!({"sliding_window": 8, "sliding_window_pattern": 2}), "sfsf"),
        ("gemma3_text", json!({"sliding_window": 8, "layer_types": kinds("fffs")}), "fffs"),
        ("smollm3", json!({"sliding_window": 8}), "ffff"),
        ("smollm3", json!({"sliding_window": 8, "use_sliding_window": true}), "fffs"),
    ] {
        let windows = want.chars().map(|c| (c == 's').then_some(8)).collect::<Vec<_>>();
        assert_eq!(layers(family, &more).0, windows, "{family} {more}");
    }
    // Falcon 3 has a second name of its function.
    assert!(with("llama", &json!({"activation": "swiglu"})).is_ok());
    for (family, more, setting) in [
        ("llama", json!({"activation": "gelu"}), "activation"),
        ("llama", json!({"mlp_activation": "gelu"}), "mlp_activation"),
        ("qwen2", json!({"layer_types": ["sliding_attention"]}), "sliding_window"),
        ("qwen2", json!({"layer_types": ["sliding_attention", "full_attention"]}), "layer_types"),
        ("qwen3", json!({"layer_types": ["linear_attention"]}), "layer_types"),
        ("mistral", json!({"sliding_window": null, "layer_types": ["sliding_attention"]}), "sliding_window"),
        ("mistral", json!({"sliding_window": 0}), "attention window"),
        ("olmo2", json!({"sliding_window": 8}), "sliding_window"),
        ("ministral3", json!({"sliding_window": 8, "layer_types": ["sliding_attention"]}), "layer_types"),
        ("gemma3_text", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        ("gemma3_text", json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping"),
    ] {
        assert_eq!(fault(family, &more), setting, "{family} {more}");
    }
}

#[test]
fn layers_have_the_rotary_embeddings_of_transformers() {
    for (family, more, want) in [
        ("smollm3", json!({}), [Some(0), Some(0), Some(0), None]),
        ("smollm3", json!({"no_rope_layer_interval": 2}), [Some(0), None, Some(0), None]),
        ("smollm3", json!({"no_rope_layers": [0, 1, 1, 0, 1]}), [None, Some(0), Some(0), None]),
        ("gemma3_text", json!({"sliding_window_pattern": 2}), [Some(1), Some(0), Some(1), Some(0)]),
    ] {
        assert_eq!(layers(family, &more).1, want, "{family} {more}");
    }
    assert_eq!(fault("smollm3", &json!({"no_rope_layers": []})), "no_rope_layers");
    assert_eq!(fault("smollm3", &json!({"no_rope_layers": [2]})), "no_rope_layers");

    // Of layers that see everything, and of those that slide; before transformers 5 and since.
    let older = json!({"rope_theta": 500.0, "rope_local_base_freq": 50.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    let newer = json!({"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}});
    for (more, bases, scaling) in [
        (json!({}), [1e6, 1e4], RopeScaling::None),
        (older, [500.0, 50.0], RopeScaling::Linear { factor: 8.0 }),
        (newer, [500.0, 50.0], RopeScaling::Linear { factor: 8.0 }),
    ] {
        let ropes = with("gemma3_text", &more).unwrap().ropes;
        assert_eq!([ropes[0].base, ropes[1].base], bases, "{more}");
        assert_eq!((&ropes[0].scaling, &ropes[1].scaling), (&scaling, &RopeScaling::None), "{more}");
    }
    assert_eq!(
        fault("gemma3_text", &json!({"rope_parameters": {"rope_theta": 5.0}})),
        "rope_parameters.rope_theta"
    );

    // 10000 * 1000^(8 / 6)
    let alpha = json!({"head_dim": 8, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}});
    assert_eq!(with("hunyuan_v1_dense", &alpha).unwrap().ropes[0].base, 1e8);
    let negative = json!({"rope_scaling": {"type": "dynamic", "alpha": -1.0}});
    assert_eq!(fault("hunyuan_v1_dense", &negative), "rope_scaling.alpha");
    assert_eq!(with("smollm3", &json!({})).unwrap().ropes[0].base, 2e6);
}

/// In both kinds of files: as many names as a part joins, and no name twice.
#[test]
fn every_part_of_a_family_has_names_of_its_own() {
    for family in FAMILIES {
        let config = with(family.folder.model_type, &json!({"num_hidden_layers": 2})).unwrap();
        let of_gguf = family.gguf.as_ref().map(|gguf| gguf.names);
        for names in [Some(family.folder.names), of_gguf].into_iter().flatten() {
            let mut all = BTreeSet::new();
            for spec in config.parts() {
                let stems = match names(spec.part) {
                    StoredAs::Nowhere => panic!("{} of {}", spec.part, config.family),
                    StoredAs::One(stem) | StoredAs::GroupByGroup(stem) => vec![stem],
                    StoredAs::Each(stems) => {
                        assert_eq!(stems.len(), spec.blocks.len(), "{} of {}", spec.part, config.family);
                        stems
                    }
                };
                assert!(stems.into_iter().all(|stem| all.insert(stem)), "{} of {}", spec.part, config.family);
            }
        }
    }
    let names = |of: fn(&Family) -> Option<&'static str>| FAMILIES.iter().filter_map(of).collect::<Vec<_>>();
    let folder = names(|family| Some(family.folder.model_type));
    let gguf = names(|family| family.gguf.as_ref().map(|gguf| gguf.architecture));
    for mut names in [folder, gguf] {
        let n = names.len();
        names.dedup();
        assert!(names.is_sorted() && names.len() == n, "{names:?}");
    }
}
