//! Compares every family, variant and file kind with transformers in f32, on small random models.
//!
//! The references come from `reference/make_fixtures.py`. A wrong epsilon changes these log-probabilities by 1e-3, a
//! wrong GELU by 2e-3, a wrong rotation by 0.2 and more. The tolerance is 1e-4.

use welm_core::{Dtype, GenerateOptions, LoadOptions, Model, quantize};
use welm_tests::{Reference, exact, fixture, log_softmax};

/// Log-probabilities at every position and 64 greedy tokens of the model at `path`.
fn check(name: &str, path: &str, options: &LoadOptions) {
    let reference = Reference::read(&format!("{name}/expected.safetensors"));
    let prompt = reference.ints("prompt").to_vec();
    let model = Model::load(fixture(path), options).unwrap_or_else(|e| panic!("{path}: {e}"));
    let vocab = model.config().vocab_size;

    let ours = log_softmax(&model.logits(&prompt, 0).unwrap(), vocab);
    let theirs = reference.floats("logprobs");
    assert_eq!(ours.len(), theirs.len(), "{path}");
    let worst = ours.iter().zip(theirs).map(|(a, &b)| (a - f64::from(b)).abs()).fold(0.0, f64::max);
    println!("{path}: largest difference of a log-probability {worst:.1e}");
    assert!(worst < 1e-4, "{path}: log-probabilities differ by {worst:.1e}");

    let greedy = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(64) };
    let answer = model.generate(&prompt, &greedy).unwrap();
    let ids: Vec<u32> = answer.choices[0].tokens.iter().map(|t| t.id).collect();
    assert_eq!(ids, reference.ints("greedy"), "{path}: greedy tokens");
}

/// Exact, and with the context that the reference is of, where frequencies follow it.
fn of_folder(name: &str) -> LoadOptions {
    let context_tokens = match name {
        "llama_rope_dynamic" => Some(160),
        "llama_rope_longrope_short" => Some(96),
        _ => None,
    };
    LoadOptions { context_tokens, ..exact() }
}

macro_rules! folders {
    ($($name:ident),*) => {$(
        #[test]
        fn $name() {
            check(stringify!($name), stringify!($name), &of_folder(stringify!($name)));
        }
    )*};
}

folders!(
    neox_sequential,
    neox_partial_tied,
    neox_parallel,
    neox_odd,
    welm,
    llama_mha,
    llama_gqa,
    llama_head_dim,
    llama_bias,
    llama_rope_llama3,
    llama_rope_linear,
    llama_theta,
    llama_f16,
    llama_bf16,
    llama_sharded,
    qwen2,
    gemma3,
    qwen3,
    mistral,
    ministral,
    ministral3,
    smollm3,
    olmo2,
    hunyuan,
    llama_rope_dynamic,
    llama_rope_yarn,
    llama_rope_longrope,
    llama_rope_longrope_short,
    phi3,
    glm4,
    glm,
    granite,
    granitemoehybrid,
    minicpm,
    internlm2
);

/// A longer context than a model states, where its rotary embedding can be stretched.
#[test]
fn a_context_can_be_stretched_so_far() {
    let too_long = LoadOptions { context_tokens: Some(257), ..exact() };
    let error = Model::load(fixture("llama_rope_dynamic"), &too_long).map(drop).unwrap_err();
    assert!(error.to_string().contains("at most the model's 256, got 257"), "{error}");
}

/// Frequencies follow the context that was asked for. How many tokens the cache has must not change a text.
#[test]
fn the_cache_changes_no_frequencies() {
    let logits = |name, cache_tokens| {
        let options = LoadOptions { cache_tokens: Some(cache_tokens), ..of_folder(name) };
        Model::load(fixture(name), &options).unwrap().logits(&[3, 5, 8][..], 0).unwrap()
    };
    for name in ["llama_rope_longrope", "llama_rope_dynamic"] {
        assert!(logits(name, 16) == logits(name, 1024), "{name}");
    }
}

#[test]
fn configs_as_older_transformers_wrote_them() {
    let mut found = 0;
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if !folder.join("config_v4.json").is_file() {
            continue;
        }
        let old = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(&folder).unwrap() {
            let file = file.unwrap().path();
            std::fs::copy(&file, old.path().join(file.file_name().unwrap())).unwrap();
        }
        std::fs::rename(old.path().join("config_v4.json"), old.path().join("config.json")).unwrap();
        check(&name, old.path().to_str().unwrap(), &of_folder(&name));
        found += 1;
    }
    assert!(found > 30, "{found}");
}

#[test]
fn gguf_files_of_every_type() {
    for kind in ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4"] {
        let name = format!("gguf_llama_{kind}");
        // Dequantised weights in f32: the arithmetic of the reference.
        let options = LoadOptions { dtype: Dtype::F32, ..exact() };
        check(&name, &format!("{name}/model.gguf"), &options);
        if kind.contains('f') && kind != "mxfp4" {
            check(&name, &format!("{name}/model.gguf"), &exact());
        }
    }
}

#[test]
fn gguf_files_of_every_family() {
    for family in [
        "neox_f32",
        "qwen2",
        "gemma3",
        "qwen3",
        "mistral3",
        "ministral3",
        "smollm3",
        "olmo2",
        "hunyuan",
        "llama_yarn",
        "phi3",
        "glm4",
        "granite",
        "minicpm",
        "internlm2",
    ] {
        let name = format!("gguf_{family}");
        check(&name, &format!("{name}/model.gguf"), &exact());
    }
}

/// What `quantize` writes of families that differ in layout or in factors says nearly what the floats say. The bounds are
/// half above what was measured; what two of these models say differs by 4.
#[test]
fn int8_folders_keep_what_families_differ_in() {
    let bounds = [
        ("llama_gqa", 0.15),
        ("gemma3", 0.09),
        ("olmo2", 0.11),
        ("phi3", 0.32),
        ("glm4", 0.23),
        ("granite", 0.21),
        ("minicpm", 0.29),
        ("internlm2", 0.24),
    ];
    for (name, bound) in bounds {
        let to = tempfile::tempdir().unwrap();
        let folder = to.path().join("int8");
        quantize(&fixture(name), &folder, |_| true).unwrap_or_else(|e| panic!("{name}: {e}"));
        let reference = Reference::read(&format!("{name}/expected.safetensors"));
        let model = Model::load(&folder, &exact()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let prompt = reference.ints("prompt");
        let ours = log_softmax(&model.logits(prompt, 0).unwrap(), model.config().vocab_size);
        let theirs = reference.floats("logprobs");
        let sum: f64 = ours.iter().zip(theirs).map(|(a, &b)| (a - f64::from(b)).abs()).sum();
        let mean = sum / theirs.len() as f64;
        println!("{name}: mean difference of a log-probability {mean:.1e}");
        assert!(mean < bound, "{name}: log-probabilities differ by {mean:.1e} in the mean");
    }
}

#[test]
fn an_unknown_family_or_setting_is_named() {
    let config = std::fs::read_to_string(fixture("llama_gqa/config.json")).unwrap();
    let stretched = serde_json::json!({"rope_type": "proportional", "factor": 4.0});
    let edits: [(&str, serde_json::Value, &str); 9] = [
        ("model_type", "mamba".into(), "`model_type`: `mamba` of "),
        ("hidden_act", "relu".into(), "`hidden_act`: expected silu or swish, got `relu`"),
        ("num_attention_heads", 7.into(), "`n_kv_heads`: expected a divisor of 7, got 2"),
        ("num_key_value_heads", 3.into(), "`n_kv_heads`: expected a divisor of 4, got 3"),
        ("vocab_size", "many".into(), "`vocab_size`: expected a whole number, got \"many\""),
        ("hidden_size", 1u64.checked_shl(40).into(), "`dim`: expected 1 to 131072, got 1099511627776"),
        ("rms_norm_eps", (-1.0).into(), "`norm_eps`: expected a positive number, got -1"),
        ("quantization_config", serde_json::json!({"bits": 4}), "`quantization_config`: expected nothing"),
        ("rope_parameters", stretched, "`rope_parameters.rope_type`: `proportional` is none of default"),
    ];
    for (key, value, told) in edits {
        let folder = tempfile::tempdir().unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&config).unwrap();
        json[key] = value;
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        std::fs::copy(fixture("llama_gqa/model.safetensors"), folder.path().join("model.safetensors"))
            .unwrap();
        let error = Model::load(folder.path(), &exact()).map(drop).unwrap_err();
        assert!(
            matches!(&error, welm_core::Error::Config { .. } | welm_core::Error::Tensor { .. }),
            "{key}: {error:?}"
        );
        assert!(error.to_string().contains(told), "{key}: {error}");
    }
}
