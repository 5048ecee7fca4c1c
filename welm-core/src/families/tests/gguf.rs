//! Settings of GGUF files, what is refused in either kind of file, and multipliers in both.

use serde_json::{Value as Json, json};

use super::super::*;
use super::{fault, with};
use crate::config::{Activation, QueryScale, RopeScaling};
use crate::weights::gguf::tests::{Writer, array, string};

/// A GGUF file of this architecture with sixteen values in two heads, and these settings and tensors beside.
fn gguf(architecture: &str, more: impl Fn(Writer) -> Writer) -> Result<(ModelConfig, Names)> {
    gguf_of(architecture, 1, 16, more)
}

/// The same with so many layers and values.
fn gguf_of(
    architecture: &str,
    layers: u32,
    dim: u32,
    more: impl Fn(Writer) -> Writer,
) -> Result<(ModelConfig, Names)> {
    let number = |n: u32| n.to_le_bytes();
    let mut file = Writer::default().key("general.architecture", 8, &string(architecture));
    for (name, n) in [
        ("embedding_length", dim),
        ("attention.head_count", (dim / 96).max(2)),
        ("block_count", layers),
        ("feed_forward_length", 12),
        ("context_length", 64),
    ] {
        file = file.key(&format!("{architecture}.{name}"), 4, &number(n));
    }
    let file = file
        .key(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 6, &1e-5f32.to_le_bytes())
        .tensor("token_embd.weight", &[dim.into(), 16], 0, &vec![0; 64 * dim as usize]);
    of_gguf(&more(file).open().unwrap(), Path::new("folder/model.gguf"))
}

fn float(file: Writer, name: &str, value: f32) -> Writer {
    file.key(name, 6, &value.to_le_bytes())
}

#[test]
fn rotary_settings_of_gguf_files_are_those_of_llama_cpp() {
    let rope =
        |more: &dyn Fn(Writer) -> Writer| gguf("llama", more).map(|(config, _)| config.ropes[0].clone());
    let kind = |file: Writer, kind: &str| file.key("llama.rope.scaling.type", 8, &string(kind));
    let yarn = |file| float(kind(file, "yarn"), "llama.rope.scaling.factor", 4.0);
    let list = |file: Writer, name: &str, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        file.tensor(&format!("{name}.weight"), &[values.len() as u64], 0, &bytes)
    };
    // The usual one and that of `yarn_log_multiplier`; a factor of its own multiplies either.
    let usual = 0.1 * 4f32.ln() + 1.0;
    let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{a}, {b}");
    close(rope(&|file| yarn(file)).unwrap().attention_factor, usual);
    let with = |name: &'static str, x: f32| rope(&move |file| float(yarn(file), name, x));
    let of_both = with("llama.rope.scaling.yarn_log_multiplier", 0.5).unwrap().attention_factor;
    close(of_both, usual / (0.05 * 4f32.ln() + 1.0));
    close(with("llama.rope.scaling.attn_factor", 2.0).unwrap().attention_factor, 2.0 * usual);
    // llama.cpp's converter writes config.json's, and its readers compute their own.
    close(with("llama.rope.scaling.yarn_attn_factor", 0.878).unwrap().attention_factor, usual);
    // As early files of OLMo 3 repeat it.
    close(with("llama.rope.scaling.attn_factor", usual).unwrap().attention_factor, usual);
    assert_eq!(
        with("llama.rope.scaling.yarn_beta_fast", 8.0).unwrap().scaling,
        RopeScaling::Yarn {
            factor: 4.0,
            original_context: 64,
            beta_fast: 8.0,
            beta_slow: 1.0,
            truncate: true
        }
    );
    let long = rope(&|file| {
        let file = float(file, "llama.rope.scaling.factor", 2.0).key(
            "llama.rope.scaling.original_context_length",
            4,
            &16u32.to_le_bytes(),
        );
        list(list(file, "rope_factors_long", &[4.0; 4]), "rope_factors_short", &[1.0; 4])
    });
    let (short, long_list) = (vec![2.0; 4], vec![8.0; 4]);
    let want = RopeScaling::LongRope { short, long: long_list, original_context: 16 };
    assert_eq!(long.unwrap().scaling, want);

    type Wrong<'a> = (&'a dyn Fn(Writer) -> Writer, &'a str);
    let wrong: [Wrong; 11] = [
        (&|file| float(file, "llama.rope.scaling.yarn_attn_factor", 0.5), "expected 1 (not supported)"),
        (&|file| list(file, "rope_factors_short", &[1.0; 4]), "or none of them"),
        (&|file| kind(file, "longrope"), "`llama.rope.scaling.type`: longrope, and the file has no"),
        (&|file| kind(file, "dynamic"), "`dynamic` is none of none, linear, yarn, longrope"),
        (&|file| float(yarn(file), "llama.rope.scaling.yarn_ext_factor", 0.5), "expected 1 (not supported)"),
        (&|file| float(kind(file, "yarn"), "llama.rope.scaling.factor", f32::NAN), "rope_scaling."),
        (&|file| float(file, "llama.rope.scaling.attn_factor", f32::INFINITY), "attention_factor"),
        (&|file| list(yarn(file), "rope_freqs", &[1.0; 4]), "expected no divisors beside"),
        (
            &|file| list(list(file, "rope_factors_long", &[1.0; 3]), "rope_factors_short", &[1.0; 4]),
            "rope_factors",
        ),
        (
            &|file| list(list(file, "rope_factors_long", &[0.0; 4]), "rope_factors_short", &[1.0; 4]),
            "long_factor",
        ),
        (
            &|file| {
                let file = list(file, "rope_freqs", &[1.0; 4]);
                list(list(file, "rope_factors_long", &[1.0; 4]), "rope_factors_short", &[1.0; 4])
            },
            "or none of them",
        ),
    ];
    for (more, part) in wrong {
        let error = rope(more).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// GPT-NeoX-20B's `config.json` has `gelu_fast`, Pythia's `gelu`, and their GGUF files have neither.
#[test]
fn gpt_neox_20b_is_known_by_its_size() {
    let activation = |layers, dim| {
        let eps = |file| float(file, "gptneox.attention.layer_norm_epsilon", 1e-5);
        gguf_of("gptneox", layers, dim, eps).unwrap().0.activation
    };
    assert_eq!(activation(44, 6144), Activation::GeluTanh);
    for (layers, dim) in [(44, 16), (1, 6144)] {
        assert_eq!(activation(layers, dim), Activation::Gelu);
    }
}

/// llama.cpp's converter wrote Hunyuan's `num_experts`, and its readers pass over it.
#[test]
fn one_expert_is_the_dense_half_of_a_layer() {
    let read = |architecture: &str, n: u32| {
        let key = format!("{architecture}.expert_count");
        gguf(architecture, |file| file.key(&key, 4, &n.to_le_bytes())).map(|(config, _)| config.layers.len())
    };
    assert_eq!(read("hunyuan-dense", 1), read("hunyuan-dense", 0));
    assert!(read("hunyuan-dense", 1).is_ok());
    for (architecture, n) in [("hunyuan-dense", 2), ("llama", 1)] {
        let error = read(architecture, n).unwrap_err().to_string();
        assert!(error.contains("expert_count") && error.contains("a mixture of experts"), "{error}");
    }
}

#[test]
fn a_refusal_says_what_a_model_is() {
    let error = |result: Result<(ModelConfig, Names)>| result.map(drop).unwrap_err().to_string();
    let refused = error(gguf("qwen2moe", |file| file));
    let want = "config setting `general.architecture`: `qwen2moe` of folder/model.gguf is a mixture of experts, which is \
                not supported; supported are dense decoders: gemma3, glm4, ";
    assert!(refused.starts_with(want), "{refused}");
    let experts = error(gguf("llama", |file| file.key("llama.expert_count", 4, &8u32.to_le_bytes())));
    assert!(experts.contains("expected 0 (a mixture of experts is not supported), got 8"), "{experts}");
    let unrotated = error(gguf("granite", |file| file.key("granite.rope.scaling.finetuned", 7, &[0])));
    assert!(unrotated.contains("without a rotary embedding"), "{unrotated}");
    let folder = |more: &Json| with("llama", more).unwrap_err().to_string();
    for (more, what) in [
        (json!({"model_type": "mamba"}), "config.json is a model with state-space or recurrent layers"),
        (json!({"model_type": "llava"}), "config.json is a model with a vision or audio tower"),
        (json!({"model_type": "bert"}), "config.json is an encoder"),
        (json!({"model_type": "minicpm3"}), "config.json is a model with latent attention"),
        (json!({"num_local_experts": 8}), "expected 0 (a mixture of experts is not supported), got 8"),
        (
            json!({"vision_config": {"depth": 2}}),
            "expected nothing (a vision or audio tower is not supported)",
        ),
    ] {
        let error = folder(&more);
        assert!(error.contains(what), "{more}: {error}");
    }
}

/// In llama.cpp every fourth layer of OLMo 3 sees everything, where the file does not say which.
#[test]
fn layers_of_olmo_3_that_slide_have_a_base_of_their_own() {
    let read = |more: &dyn Fn(Writer) -> Writer| {
        let window = |file: Writer| file.key("olmo2.attention.sliding_window", 4, &8u32.to_le_bytes());
        gguf_of("olmo2", 4, 16, |file| more(window(file))).unwrap().0
    };
    let layers = |config: &ModelConfig| {
        config.layers.iter().map(|l| (l.window, config.ropes[l.rope.unwrap()].base)).collect::<Vec<_>>()
    };
    let plain = (Some(8), 10_000.0);
    assert_eq!(layers(&read(&|file| file)), [plain, plain, plain, (None, 10_000.0)]);
    let sliding = (Some(8), 500.0);
    let own = read(&|file| float(file, "olmo2.rope.freq_base_swa", 500.0));
    assert_eq!(layers(&own), [sliding, sliding, sliding, (None, 10_000.0)]);
}

#[test]
fn ministral3_scales_q_after_the_first_context() {
    let config = with("ministral3", &json!({})).unwrap();
    assert_eq!(config.layers[0].query_scale, Some(QueryScale { beta: 0.1, length: 16 }));
    assert_eq!((config.ropes[0].attention_factor, config.head_dim), (1.0, 128));
    let read = |architecture: &str, original: Option<u32>, beta: f32| {
        let architecture = architecture.to_string();
        gguf(&architecture.clone(), move |mut file| {
            if let Some(original) = original {
                let key = format!("{architecture}.rope.scaling.original_context_length");
                file = file.key(&key, 4, &original.to_le_bytes());
            }
            float(file, &format!("{architecture}.attention.temperature_scale"), beta)
        })
        .map(|(config, _)| config.layers[0].query_scale)
    };
    assert_eq!(read("mistral3", Some(16), 0.1).unwrap(), Some(QueryScale { beta: 0.1, length: 16 }));
    // llama.cpp takes the whole context where no other is stated.
    assert_eq!(read("mistral3", None, 0.1).unwrap(), Some(QueryScale { beta: 0.1, length: 64 }));
    assert_eq!(read("mistral3", Some(16), 0.0).unwrap(), None);
    assert!(read("mistral3", Some(16), -0.5).is_err());
    let error = read("llama", Some(16), 0.1).unwrap_err().to_string();
    assert!(error.contains("`llama.attention.temperature_scale`: expected 0 (not supported)"), "{error}");
    let rope = |change: &dyn Fn(&mut Json)| {
        let mut section = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.1});
        change(&mut section);
        json!({"rope_parameters": section})
    };
    assert!(with("ministral3", &rope(&|_| {})).is_ok());
    let without = rope(&|section| drop(section.as_object_mut().unwrap().remove("llama_4_scaling_beta")));
    assert_eq!(fault("ministral3", &without), "rope_parameters.llama_4_scaling_beta");
    assert_eq!(fault("ministral3", &json!({"rope_parameters": null})), "rope_parameters");
    assert_eq!(fault("ministral3", &rope(&|section| section["ntk"] = json!(2))), "rope_parameters.ntk");
    assert_eq!(fault("mistral", &rope(&|_| {})), "rope_parameters.llama_4_scaling_beta");
    let part = rope(&|section| section["partial_rotary_factor"] = json!(0.5));
    assert_eq!(fault("ministral3", &part), "partial_rotary_factor");
    let never = with("ministral3", &rope(&|section| section["llama_4_scaling_beta"] = json!(0))).unwrap();
    assert_eq!(never.layers[0].query_scale, None);
    let mut outside = rope(&|_| {});
    outside["original_max_position_embeddings"] = json!(32);
    let scale = with("ministral3", &outside).unwrap().layers[0].query_scale.unwrap();
    assert_eq!(scale.length, 32);
}

/// What the multipliers of Granite and MiniCPM come to, and the names of their settings in either kind of file.
#[test]
fn multipliers_are_folded_into_scales() {
    let of = |config: &ModelConfig| {
        [config.embed_scale, config.logit_scale, config.layers[0].scale, config.norm_eps]
    };
    let close = |got: [f32; 4], want: [f32; 4]| {
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()), "{got:?}, {want:?}");
    };
    let granite = json!({"embedding_multiplier": 12, "residual_multiplier": 0.5, "attention_multiplier": 0.25,
        "logits_scaling": 8, "rms_norm_eps": 1e-5});
    close(of(&with("granite", &granite).unwrap()), [24.0, 0.125, 0.25, 4e-5]);
    let of_gguf = gguf("granite", |file| {
        let file = float(float(file, "granite.embedding_scale", 12.0), "granite.residual_scale", 0.5);
        float(float(file, "granite.attention.scale", 0.25), "granite.logit_scale", 8.0)
    });
    close(of(&of_gguf.unwrap().0), [24.0, 0.125, 0.25, 4e-5]);
    let minicpm = json!({"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 4, "num_hidden_layers": 4,
        "rms_norm_eps": 1e-5});
    let usual = 1.0 / 8f32.sqrt();
    close(of(&with("minicpm", &minicpm).unwrap()), [12.0 / 0.7, 0.25, usual, 1e-5 / 0.49]);
    // Of one layer.
    close(of(&gguf("minicpm", |file| file).unwrap().0), [12.0 / 1.4, 16.0, usual, 1e-5 / 1.96]);
    for (key, value) in
        [("residual_multiplier", 0.0), ("logits_scaling", 0.0), ("embedding_multiplier", -1.0)]
    {
        assert!(with("granite", &json!({key: value})).is_err(), "{key}");
    }
    for key in ["scale_depth", "dim_model_base", "scale_emb"] {
        assert!(with("minicpm", &json!({key: 0})).is_err(), "{key}");
    }
    // Sparse attention begins where the context ends.
    assert_eq!(fault("minicpm", &json!({"sparse_config": {"topk": 64}})), "sparse_config.dense_len");
    assert_eq!(fault("llama", &json!({"sparse_config": {"dense_len": 32}})), "sparse_config");
    let dense = |len: usize| json!({"sparse_config": {"topk": 64, "dense_len": len}});
    assert_eq!(with("minicpm", &dense(32)).unwrap().max_context, 31);
    assert_eq!(with("minicpm", &dense(8192)).unwrap().max_context, 64);
}

/// Granite 4 is Granite where all of its layers have attention and no experts.
#[test]
fn dense_models_of_granite_4_are_granite() {
    let dense = |more: &[(&str, Json)]| {
        let mut all = json!({"layer_types": ["attention"], "num_local_experts": 0, "num_experts_per_tok": 0,
            "shared_intermediate_size": 24, "position_embedding_type": "rope", "mamba_d_state": 256,
            "residual_multiplier": 0.5, "rms_norm_eps": 1e-5});
        all.as_object_mut().unwrap().extend(more.iter().map(|(key, value)| (key.to_string(), value.clone())));
        all
    };
    let config = with("granitemoehybrid", &dense(&[])).unwrap();
    assert_eq!((config.hidden_dim, config.layers[0].rope, config.norm_eps), (24, Some(0), 4e-5));
    let unturned = with("granitemoehybrid", &dense(&[("position_embedding_type", json!("nope"))])).unwrap();
    assert_eq!(unturned.layers[0].rope, None);
    for (key, value, what) in [
        ("layer_types", json!(["mamba"]), "state-space layers"),
        ("layer_types", json!(null), "state-space layers"),
        ("num_local_experts", json!(62), "mixture of experts"),
        ("num_local_experts", json!(null), "mixture of experts"),
    ] {
        let error = with("granitemoehybrid", &dense(&[(key, value)])).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(what), "{error}");
    }
    // In a GGUF file: sizes of what there is nothing of, and a number of heads for each layer.
    let plain = gguf("granite", |file| file.key("granite.attention.head_count_kv", 4, &1u32.to_le_bytes()));
    let heads = |n: u32, file: Writer| {
        let array = array(4, 1, &n.to_le_bytes());
        file.key("granite.attention.head_count_kv", 9, &array).key(
            "granite.ssm.inner_size",
            4,
            &64u32.to_le_bytes(),
        )
    };
    assert_eq!(gguf("granite", |file| heads(1, file)).unwrap().0, plain.unwrap().0);
    let none = gguf("granite", |file| heads(0, file)).map(drop).unwrap_err().to_string();
    assert!(none.contains("head_count_kv"), "{none}");
    let two = [1u32.to_le_bytes(), 1u32.to_le_bytes()].concat();
    let two = gguf("granite", |file| file.key("granite.attention.head_count_kv", 9, &array(4, 2, &two)));
    let two = two.map(drop).unwrap_err().to_string();
    assert!(two.contains("head_count_kv`: expected one for each of 1 layers, got 2"), "{two}");
}
