//! Tiny models, whole or with something wrong, as folders and as GGUF files.

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::tensor::{Dtype, TensorView};
use half::{bf16, f16};
use serde_json::json;

use super::*;
use crate::config::QkNorm;
use crate::config::part::LayerPart;
use crate::options::LoadOptions;
use crate::side_file::{DESCRIPTIONS, TOKENIZER_MODELS};
use crate::transformer::tests::peak_bytes;
use crate::weights::gguf::tests::{Writer, array, string};
use crate::{Model, quantize};

const VOCAB: usize = 32;
const DIM: usize = 32;
const KV: usize = 16;
const HIDDEN: usize = 64;

/// Tensors of a file: element type, shape, bytes.
#[derive(Clone)]
struct Stored(Dtype, Vec<usize>, Vec<u8>);
type Tensors = BTreeMap<String, Stored>;

fn f32s(shape: &[usize], values: &[f32]) -> Stored {
    Stored(Dtype::F32, shape.to_vec(), values.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// Numbers around zero that are the same each time, and others for another seed.
fn random(seed: u32, shape: &[usize]) -> Stored {
    let n = shape.iter().product::<usize>() as u32;
    let value = |i: u32| ((seed * 7919 + i + 1).wrapping_mul(2_654_435_761) >> 12) as f32 / 1e6 - 0.5;
    f32s(shape, &(0..n).map(value).collect::<Vec<_>>())
}

/// A Llama of one layer with the names of folders; untied.
fn llama() -> Tensors {
    let layer = "model.layers.0.";
    [
        ("model.embed_tokens", vec![VOCAB, DIM]),
        ("lm_head", vec![VOCAB, DIM]),
        ("model.norm", vec![DIM]),
        (&format!("{layer}input_layernorm"), vec![DIM]),
        (&format!("{layer}post_attention_layernorm"), vec![DIM]),
        (&format!("{layer}self_attn.q_proj"), vec![DIM, DIM]),
        (&format!("{layer}self_attn.k_proj"), vec![KV, DIM]),
        (&format!("{layer}self_attn.v_proj"), vec![KV, DIM]),
        (&format!("{layer}self_attn.o_proj"), vec![DIM, DIM]),
        (&format!("{layer}mlp.gate_proj"), vec![HIDDEN, DIM]),
        (&format!("{layer}mlp.up_proj"), vec![HIDDEN, DIM]),
        (&format!("{layer}mlp.down_proj"), vec![DIM, HIDDEN]),
    ]
    .iter()
    .enumerate()
    .map(|(i, (stem, shape))| (format!("{stem}.weight"), random(i as u32, shape)))
    .collect()
}

fn with(mut tensors: Tensors, name: &str, tensor: Stored) -> Tensors {
    tensors.insert(name.into(), tensor);
    tensors
}

fn without(mut tensors: Tensors, name: &str) -> Tensors {
    assert!(tensors.remove(name).is_some());
    tensors
}

fn config() -> serde_json::Value {
    json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": DIM, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": HIDDEN,
        "max_position_embeddings": 64
    })
}

fn config_with(key: &str, value: impl Into<serde_json::Value>) -> serde_json::Value {
    let mut config = config();
    config[key] = value.into();
    config
}

fn write(folder: &Path, config: &serde_json::Value, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, Stored(dtype, shape, bytes))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let file = safetensors_file(views);
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn safetensors_file<'a>(views: impl Iterator<Item = (&'a str, TensorView<'a>)>) -> Vec<u8> {
    ::safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()
}

fn folder(config: &serde_json::Value, tensors: &Tensors) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, tensors);
    folder
}

fn options() -> LoadOptions {
    LoadOptions { threads: Some(1), device: crate::Device::Cpu, ..LoadOptions::default() }
}

fn logits_with(path: &Path, options: &LoadOptions) -> Result<Vec<f32>> {
    let model = Model::load(path, options)?;
    model.logits(&[1, 5, 2, 9, 30][..], 0)
}

fn logits(config: &serde_json::Value, tensors: &Tensors) -> Result<Vec<f32>> {
    logits_with(folder(config, tensors).path(), &options())
}

fn error(config: &serde_json::Value, tensors: &Tensors) -> String {
    logits(config, tensors).unwrap_err().to_string()
}

/// A GGUF file of the same model. llama.cpp's names; rows of q and k as they are, which is another model than the
/// folder's, and good enough for comparing files with each other.
fn gguf(tensors: &Tensors, keys: impl FnOnce(Writer) -> Writer) -> Vec<u8> {
    let u32 = |x: u32| x.to_le_bytes();
    let mut writer = Writer::default()
        .key("general.architecture", 8, &string("llama"))
        .key("llama.context_length", 4, &u32(64))
        .key("llama.embedding_length", 4, &u32(DIM as u32))
        .key("llama.block_count", 4, &u32(1))
        .key("llama.feed_forward_length", 4, &u32(HIDDEN as u32))
        .key("llama.attention.head_count", 4, &u32(4))
        .key("llama.attention.head_count_kv", 4, &u32(2))
        .key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes())
        .key("tokenizer.ggml.model", 8, &string("gpt2"))
        .key("tokenizer.ggml.pre", 8, &string("gpt-2"))
        .key("tokenizer.ggml.merges", 9, &array(8, 0, &[]));
    writer = keys(writer);
    for (name, Stored(dtype, shape, bytes)) in tensors {
        let name = [
            ("model.layers.0.", "blk.0."),
            ("model.embed_tokens", "token_embd"),
            ("lm_head", "output"),
            ("model.norm", "output_norm"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ]
        .iter()
        .fold(name.clone(), |name, (from, to)| name.replace(from, to));
        let dims: Vec<u64> = shape.iter().rev().map(|&n| n as u64).collect();
        // F64 stands for a type that nobody reads; the 8-bit one for Q8_0 blocks, packed by the caller.
        let type_id = match dtype {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::U8 => 8,
            Dtype::U16 => 2,
            Dtype::U32 => 3,
            Dtype::I8 => 24,
            _ => 28,
        };
        writer = writer.tensor(&name, &dims, type_id, bytes);
    }
    writer.finish()
}

/// A vocabulary of one letter each, with these tokens from id 1 on.
fn vocab(writer: Writer, named: &[(&str, i32)]) -> Writer {
    let mut tokens: Vec<(String, i32)> =
        (0..VOCAB).map(|i| (char::from(b'A' + i as u8).to_string(), 1)).collect();
    for (i, (name, kind)) in named.iter().enumerate() {
        tokens[i + 1] = ((*name).into(), *kind);
    }
    let types: Vec<u8> = tokens.iter().flat_map(|(_, kind)| kind.to_le_bytes()).collect();
    let texts: Vec<u8> = tokens.iter().flat_map(|(text, _)| string(text)).collect();
    writer.key("tokenizer.ggml.tokens", 9, &array(8, VOCAB as u64, &texts)).key(
        "tokenizer.ggml.token_type",
        9,
        &array(5, VOCAB as u64, &types),
    )
}

fn gguf_file(tensors: &Tensors, keys: impl FnOnce(Writer) -> Writer) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), gguf(tensors, |w| keys(vocab(w, &[])))).unwrap();
    file
}

fn gguf_logits(tensors: &Tensors) -> Result<Vec<f32>> {
    logits_with(gguf_file(tensors, |w| w).path(), &options())
}

const PARTS: [(&str, usize); 7] = [
    ("self_attn.q_proj", DIM),
    ("self_attn.k_proj", KV),
    ("self_attn.v_proj", KV),
    ("self_attn.o_proj", DIM),
    ("mlp.gate_proj", HIDDEN),
    ("mlp.up_proj", HIDDEN),
    ("mlp.down_proj", DIM),
];

fn bias_name(part: &str) -> String {
    format!("model.layers.0.{part}.bias")
}

#[test]
fn each_part_of_a_gguf_file_has_its_bias_or_not() {
    let base = gguf_logits(&llama()).unwrap();
    for present in [&[0][..], &[1], &[2], &[3], &[4], &[5], &[6], &[0, 1, 2], &[0, 1, 2, 3], &[4, 6], &[0, 5]]
    {
        let (mut some, mut all) = (llama(), llama());
        for (i, (part, rows)) in PARTS.iter().enumerate() {
            let bias = if present.contains(&i) {
                random(90 + i as u32, &[*rows])
            } else {
                f32s(&[*rows], &vec![0.0; *rows])
            };
            if present.contains(&i) {
                some.insert(bias_name(part), bias.clone());
            }
            all.insert(bias_name(part), bias);
        }
        let (some, all) = (gguf_logits(&some).unwrap(), gguf_logits(&all).unwrap());
        assert_eq!(some, all, "{present:?}");
        assert_ne!(some, base, "{present:?}");
    }
    let file = gguf_file(&with(llama(), &bias_name("self_attn.v_proj"), random(1, &[KV])), |w| w);
    let model = Model::load(file.path(), &options()).unwrap();
    assert!(model.config().attention_bias && !model.config().mlp_bias);
    let short = with(llama(), &bias_name("mlp.up_proj"), random(1, &[HIDDEN - 1]));
    assert!(
        gguf_logits(&short).unwrap_err().to_string().contains("`blk.0.ffn_up.bias`: expected shape (64)")
    );
    let of_output = with(llama(), "lm_head.bias", random(1, &[VOCAB]));
    assert!(
        gguf_logits(&of_output)
            .unwrap_err()
            .to_string()
            .starts_with("tensor `output.bias`: nothing reads it")
    );
}

#[test]
fn a_folder_has_the_biases_that_its_configuration_says() {
    let (attention, mlp) = (&PARTS[..4], &PARTS[4..]);
    for (key, parts) in [("attention_bias", attention), ("mlp_bias", mlp)] {
        let mut all = llama();
        for (i, (part, rows)) in parts.iter().enumerate() {
            all.insert(bias_name(part), random(50 + i as u32, &[*rows]));
        }
        let on = config_with(key, true);
        assert_ne!(logits(&on, &all).unwrap(), logits(&config(), &llama()).unwrap());
        for (part, _) in parts {
            let name = bias_name(part);
            let message = error(&on, &without(all.clone(), &name));
            assert!(message.starts_with(&format!("tensor `{name}`: missing")), "{message}");
            // One that the configuration does not know of.
            let message = error(&config(), &with(llama(), &name, all[&name].clone()));
            assert!(message.starts_with(&format!("tensor `{name}`: nothing reads it")), "{message}");
        }
    }
}

/// Names of a family that normalises heads and whatever it adds, as Qwen3 and Gemma 3 do.
fn names_with_norms(part: ModelPart) -> StoredAs {
    let stem = match part {
        ModelPart::Layer(_, LayerPart::QNorm) => "self_attn.q_norm",
        ModelPart::Layer(_, LayerPart::KNorm) => "self_attn.k_norm",
        ModelPart::Layer(_, LayerPart::AttnPostNorm) => "attn_post_norm",
        ModelPart::Layer(_, LayerPart::FfnPostNorm) => "ffn_post_norm",
        part => return (llama_names().of)(part),
    };
    StoredAs::One(format!("model.layers.0.{stem}"))
}

fn llama_names() -> Names {
    families::of_folder(folder(&config(), &llama()).path()).unwrap().1
}

/// What a part has and what is left over follow from the configuration, part by part.
#[test]
fn optional_parts_and_biases_are_read_if_the_configuration_has_them() {
    let norms =
        [("self_attn.q_norm", 8), ("self_attn.k_norm", 8), ("attn_post_norm", DIM), ("ffn_post_norm", DIM)];
    let mut tensors = llama();
    for (i, (stem, len)) in norms.iter().enumerate() {
        tensors.insert(format!("model.layers.0.{stem}.weight"), random(70 + i as u32, &[*len]));
    }
    for (i, (part, rows)) in PARTS[..3].iter().enumerate() {
        tensors.insert(bias_name(part), random(80 + i as u32, &[*rows]));
    }
    let open = |tensors: &Tensors, change: &dyn Fn(&mut ModelConfig), of| {
        let dir = folder(&config(), tensors);
        let mut config = families::of_folder(dir.path())?.0;
        // As in Qwen2: q, k and v have biases, and the output has none.
        config.attention_bias = true;
        config.layers[0].qk_norm = Some(QkNorm::Head);
        config.layers[0].post_norms = true;
        change(&mut config);
        let names = Names { of, biases_as_stored: false };
        Source::of(config, names, safetensors::open(dir.path())?, None, false)
    };
    let error = |tensors: &Tensors, change: &dyn Fn(&mut ModelConfig)| {
        open(tensors, change, names_with_norms).err().unwrap().to_string()
    };
    let source = open(&tensors, &|c| c.norm_offset = 1.0, names_with_norms).unwrap();
    let mut n_norms = 0;
    for spec in source.config.parts() {
        if spec.kind != PartKind::Norm {
            assert_eq!(
                source.linear(&spec).unwrap().bias.is_some(),
                spec.part == ModelPart::Layer(0, LayerPart::Qkv)
            );
            continue;
        }
        let StoredAs::One(stem) = names_with_norms(spec.part) else { panic!("{}", spec.part) };
        let Stored(_, shape, bytes) = &tensors[&format!("{stem}.weight")];
        let stored: Vec<f32> = bytes.as_chunks().0.iter().map(|b| 1.0 + f32::from_le_bytes(*b)).collect();
        let norm = source.norm(&spec).unwrap();
        assert_eq!((norm.weight, norm.bias, &vec![spec.rows()]), (stored, None, shape), "{}", spec.part);
        n_norms += 1;
    }
    assert_eq!(n_norms, 3 + norms.len());

    for name in norms.map(|(stem, _)| format!("model.layers.0.{stem}.weight")) {
        let message = error(&without(tensors.clone(), &name), &|_| ());
        assert!(message.starts_with(&format!("tensor `{name}`: missing")), "{message}");
        let off = |c: &mut ModelConfig| {
            let layer = &mut c.layers[0];
            if name.contains("post") { layer.post_norms = false } else { layer.qk_norm = None }
        };
        let message = error(&tensors, &off);
        assert!(message.contains("nothing reads it, like") && message.contains(&name), "{message}");
    }
    for (part, rows) in &PARTS[..4] {
        let name = bias_name(part);
        let message = match tensors.contains_key(&name) {
            true => error(&without(tensors.clone(), &name), &|_| ()),
            false => error(&with(tensors.clone(), &name, random(1, &[*rows])), &|_| ()),
        };
        let reason = if tensors.contains_key(&name) { "missing" } else { "nothing reads it" };
        assert!(message.starts_with(&format!("tensor `{name}`: {reason}")), "{message}");
    }
    // A family that has no name for what its own configuration asks for.
    let message = open(&tensors, &|_| (), llama_names().of).err().unwrap().to_string();
    assert!(
        message.starts_with("tensor `layers.0.attn_post_norm`: the configuration asks for it"),
        "{message}"
    );
}

/// What a checkpoint may hold beside the model, and must not be left out in silence.
fn extras() -> Vec<(&'static str, Stored)> {
    vec![
        ("model.layers.0.self_attn.q_norm.weight", random(1, &[8])),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", random(2, &[4, DIM])),
        ("model.layers.0.self_attn.q_proj.SCB", random(2, &[DIM])),
        ("model.layers.1.input_layernorm.weight", random(3, &[DIM])),
        ("model.layers.0.input_layernorm.bias", random(3, &[DIM])),
        ("lm_head.bias", random(4, &[VOCAB])),
        ("score.weight", random(5, &[2, DIM])),
        ("value_head.summary.weight", Stored(Dtype::F64, vec![1], vec![0; 8])),
        ("model.layers.0.mlp.gate_proj.qzeros", Stored(Dtype::I32, vec![2], vec![0; 8])),
        ("model.layers.0.attention.bias", random(6, &[DIM])),
    ]
}

#[test]
fn tensors_that_nothing_reads_are_an_error_or_a_warning() {
    let base = logits(&config(), &llama()).unwrap();
    let allowed = LoadOptions { allow_unread_tensors: true, ..options() };
    for (name, tensor) in extras() {
        let dir = folder(&config(), &with(llama(), name, tensor));
        let want = format!(
            "tensor `{name}`: nothing reads it; if the model is good without, load it with allow_unread_tensors"
        );
        assert_eq!(Model::load(dir.path(), &options()).unwrap_err().to_string(), want);
        assert_eq!(Model::estimate(dir.path(), &options()).unwrap_err().to_string(), want);
        let target = tempfile::tempdir().unwrap();
        let quantized = quantize(dir.path(), &target.path().join("int8"), |_| true);
        assert_eq!(quantized.unwrap_err().to_string(), want);
        assert_eq!(logits_with(dir.path(), &allowed).unwrap(), base);
        Model::estimate(dir.path(), &allowed).unwrap();
    }
    let mut several = llama();
    several.extend(extras().into_iter().map(|(name, tensor)| (name.to_string(), tensor)));
    let message = error(&config(), &several);
    assert!(
        message.starts_with("tensor `lm_head.bias`: nothing reads it, like 9 others up to `value_head"),
        "{message}"
    );
    let two = with(with(llama(), "score.weight", random(1, &[2])), "other", random(1, &[1]));
    assert!(error(&config(), &two).starts_with("tensor `other`: nothing reads it, like `score.weight`; "));
}

#[test]
fn tensors_that_nothing_reads_are_an_error_in_gguf_files_too() {
    let base = gguf_logits(&llama()).unwrap();
    for (name, tensor) in [
        ("blk.0.attn_q_norm.weight", random(1, &[8])),
        ("output_norm.bias", random(2, &[DIM])),
        ("blk.1.attn_norm.weight", random(2, &[DIM])),
        ("rope_factors.weight", random(2, &[4])),
        ("cls.weight", Stored(Dtype::F64, vec![4], vec![0; 32])),
    ] {
        let file = gguf_file(&with(llama(), name, tensor), |w| w);
        let message = logits_with(file.path(), &options()).unwrap_err().to_string();
        assert!(message.starts_with(&format!("tensor `{name}`: nothing reads it")), "{message}");
        let allowed = LoadOptions { allow_unread_tensors: true, ..options() };
        assert_eq!(logits_with(file.path(), &allowed).unwrap(), base);
    }
}

/// transformers applies an adapter that lies beside a model.
#[test]
fn an_adapter_beside_the_model_is_not_left_out() {
    let dir = folder(&config(), &llama());
    std::fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    let error = Model::load(dir.path(), &options()).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidFile { path, .. } if path.ends_with("adapter_config.json")),
        "{error}"
    );
    let allowed = LoadOptions { allow_unread_tensors: true, ..options() };
    assert_eq!(logits_with(dir.path(), &allowed).unwrap(), logits(&config(), &llama()).unwrap());
}

#[test]
fn tensors_whose_values_cannot_matter_may_stay_unread() {
    let base = logits(&config(), &llama()).unwrap();
    for (name, tensor) in [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", Stored(Dtype::F64, vec![4], vec![0; 32])),
        ("model.rotary_emb.inv_freq", random(1, &[4])),
        ("model.layers.0.attention.bias", Stored(Dtype::BOOL, vec![1, 1, 4, 4], vec![1; 16])),
        ("model.position_ids", Stored(Dtype::I64, vec![1, 2], vec![0; 16])),
        ("extra.counter", Stored(Dtype::F32, vec![0, 4], vec![])),
        ("extra.counter", Stored(Dtype::F64, vec![0], vec![])),
    ] {
        assert_eq!(logits(&config(), &with(llama(), name, tensor)).unwrap(), base, "{name}");
    }
    let empty = with(llama(), "model.norm.weight", Stored(Dtype::F32, vec![0], vec![]));
    assert_eq!(error(&config(), &empty), "tensor `model.norm.weight`: shape (0) holds no element");
}

#[test]
fn integers_are_no_weights() {
    for name in [
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ] {
        for (dtype, size) in [
            (Dtype::I8, 1),
            (Dtype::U8, 1),
            (Dtype::I32, 4),
            (Dtype::BOOL, 1),
            (Dtype::F8_E4M3, 1),
            (Dtype::F64, 8),
        ] {
            let Stored(_, shape, _) = llama()[name].clone();
            let bytes = vec![1; size * shape.iter().product::<usize>()];
            let message = error(&config(), &with(llama(), name, Stored(dtype, shape, bytes)));
            let want = match dtype {
                Dtype::I8 | Dtype::U8 => format!("tensor `{name}`: expected a type of weights, got {dtype}"),
                _ => format!("tensor `{name}`: type {dtype} is not supported; F32, F16 and BF16 are"),
            };
            assert_eq!(message, want);
        }
    }
}

#[test]
fn the_output_that_is_stored_is_used() {
    let (tied, untied) =
        (config_with("tie_word_embeddings", true), config_with("tie_word_embeddings", false));
    let base = logits(&config(), &llama()).unwrap();
    assert_eq!(logits(&untied, &llama()).unwrap(), base);
    assert_eq!(logits(&tied, &llama()).unwrap(), base, "another one than the embedding");
    let model = Model::load(folder(&tied, &llama()).path(), &options()).unwrap();
    assert!(!model.config().tied_output);

    let alone = without(llama(), "lm_head.weight");
    let of_embedding = logits(&tied, &alone).unwrap();
    assert_ne!(of_embedding, base);
    let embedding = llama()["model.embed_tokens.weight"].clone();
    let both = with(llama(), "lm_head.weight", embedding.clone());
    assert_eq!(logits(&tied, &both).unwrap(), of_embedding);
    assert!(Model::load(folder(&tied, &both).path(), &options()).unwrap().config().tied_output);
    let output_alone = with(without(llama(), "model.embed_tokens.weight"), "lm_head.weight", embedding);
    assert_eq!(logits(&tied, &output_alone).unwrap(), of_embedding);

    for config in [&untied, &config()] {
        let message = error(config, &alone);
        assert!(
            message.starts_with("tensor `lm_head.weight`: missing, and tie_word_embeddings"),
            "{message}"
        );
        assert!(error(config, &output_alone).starts_with("tensor `model.embed_tokens.weight`: missing"));
    }
    // The same values in another type are the same.
    let halves: Vec<f32> = (0..VOCAB * DIM).map(|i| (i % 13) as f32 / 8.0).collect();
    let narrow = halves.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
    let both = with(llama(), "model.embed_tokens.weight", f32s(&[VOCAB, DIM], &halves));
    let both = with(both, "lm_head.weight", Stored(Dtype::BF16, vec![VOCAB, DIM], narrow));
    assert!(Model::load(folder(&tied, &both).path(), &options()).unwrap().config().tied_output);

    let gguf_alone = gguf_logits(&without(llama(), "lm_head.weight")).unwrap();
    assert_ne!(gguf_alone, gguf_logits(&llama()).unwrap());
}

#[test]
fn an_int8_folder_keeps_the_output_and_refuses_more() {
    let tied = config_with("tie_word_embeddings", true);
    let target = tempfile::tempdir().unwrap();
    let int8 = target.path().join("int8");
    quantize(folder(&tied, &llama()).path(), &int8, |_| true).unwrap();
    let got = logits_with(&int8, &options()).unwrap();
    let want = logits(&config(), &llama()).unwrap();
    let worst = got.iter().zip(&want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst < 0.5, "the output that differs from the embedding is kept: {worst}");

    // A scale that is no number.
    let file = int8.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let index: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = index["layers.0.down.scale"]["data_offsets"][0].as_u64().unwrap() as usize + 8 + header;
    // Tile row 1, group 0, row 3 of the tile: row 19 of a matrix of one group.
    let at = start + 2 * (16 + 3);
    bytes[at..at + 2].copy_from_slice(&f16::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let message = logits_with(&int8, &options()).unwrap_err().to_string();
    assert_eq!(message, "tensor `layers.0.down.scale`: the scale of row 19, group 0 is not finite");
}

#[test]
fn values_that_are_not_finite_are_named() {
    let bad = |name: &str, at: usize, value: f32| {
        let Stored(_, shape, mut bytes) = llama()[name].clone();
        bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
        with(llama(), name, Stored(Dtype::F32, shape, bytes))
    };
    for (name, at, value) in
        [("model.norm.weight", 3, f32::NAN), ("model.layers.0.input_layernorm.weight", 31, f32::NEG_INFINITY)]
    {
        let message = error(&config(), &bad(name, at, value));
        assert_eq!(message, format!("tensor `{name}`: expected finite values, got {value} at {at}"));
    }
    let bias = with(llama(), &bias_name("mlp.up_proj"), f32s(&[HIDDEN], &[f32::INFINITY; HIDDEN]));
    let message = gguf_logits(&bias).unwrap_err().to_string();
    assert_eq!(message, "tensor `blk.0.ffn_up.bias`: expected finite values, got inf at 0");

    // Matrices are looked at where they are converted.
    let matrix = bad("model.layers.0.mlp.up_proj.weight", 70, f32::NAN);
    for dtype in [crate::Dtype::Bf16, crate::Dtype::Int8] {
        let options = LoadOptions { dtype, ..options() };
        let message = logits_with(folder(&config(), &matrix).path(), &options).unwrap_err().to_string();
        assert!(message.starts_with("tensor `") && message.contains("not"), "{message}");
    }

    // Scales of blocks: the second block of row 5.
    for (dtype, block, scale) in
        [(Dtype::U8, 34, 0), (Dtype::U16, 18, 0), (Dtype::U32, 20, 0), (Dtype::U32, 20, 2)]
    {
        let mut bytes = vec![0; DIM * 2 * block];
        let at = (5 * 2 + 1) * block + scale;
        bytes[at..at + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
        let name = "model.layers.0.mlp.down_proj.weight";
        let file = gguf_file(&with(llama(), name, Stored(dtype, vec![DIM, HIDDEN], bytes)), |w| w);
        for dtype in [crate::Dtype::Auto, crate::Dtype::F32, crate::Dtype::Int8] {
            let message =
                logits_with(file.path(), &LoadOptions { dtype, ..options() }).unwrap_err().to_string();
            assert_eq!(
                message,
                "tensor `blk.0.ffn_down.weight`: the scale of row 5 from column 32 on is not finite"
            );
        }
    }
    // Rotary divisors.
    for (value, reason) in [(f32::NAN, "got NaN at 1"), (0.0, "expected a positive number, got 0")] {
        let freqs = with(llama(), "rope_freqs.weight", f32s(&[4], &[1.0, value, 1.0, 1.0]));
        let message = gguf_logits(&freqs).unwrap_err().to_string();
        assert!(message.ends_with(reason), "{message}");
    }
}

#[test]
fn rotary_settings_of_gguf_files_are_those_of_llama_cpp() {
    let f32 = |x: f32| x.to_le_bytes();
    let of = |keys: &dyn Fn(Writer) -> Writer, tensors: &Tensors| {
        logits_with(gguf_file(tensors, keys).path(), &options())
    };
    let linear = |w: Writer| w.key("llama.rope.scaling.type", 8, &string("linear"));
    let factor = |w: Writer| w.key("llama.rope.scaling.factor", 6, &f32(4.0));
    let older = |w: Writer, x: f32| w.key("llama.rope.scale_linear", 6, &f32(x));
    let none = |w: Writer| w.key("llama.rope.scaling.type", 8, &string("none"));
    let plain = of(&|w| w, &llama()).unwrap();
    let scaled = of(&|w| factor(linear(w)), &llama()).unwrap();
    assert_ne!(plain, scaled);
    for (want, keys) in [
        (&scaled, &factor as &dyn Fn(Writer) -> Writer),
        (&scaled, &|w| older(w, 4.0)),
        (&scaled, &|w| older(linear(w), 4.0)),
        (&scaled, &|w| older(factor(w), 2.0)),
        (&plain, &|w| factor(none(w))),
        (&plain, &|w| older(none(w), 4.0)),
        (&plain, &|w| older(w, 0.0)),
        (&plain, &linear),
        (&scaled, &|w| factor(w).key("llama.rope.scaling.original_context_length", 4, &64u32.to_le_bytes())),
        (&scaled, &|w| factor(w).key("llama.rope.scaling.attn_factor", 6, &f32(1.0))),
        (&scaled, &|w| factor(w).key("llama.rope.scaling.finetuned", 7, &[1])),
    ] {
        assert_eq!(&of(keys, &llama()).unwrap(), want);
    }
    // Divisors and factor together.
    let divisors = |d: f32| with(llama(), "rope_freqs.weight", f32s(&[4], &[d; 4]));
    assert_eq!(of(&|w| w, &divisors(4.0)).unwrap(), scaled);
    assert_eq!(of(&|w| older(w, 2.0), &divisors(2.0)).unwrap(), scaled);
    assert_eq!(of(&|w| factor(none(w)), &divisors(4.0)).unwrap(), scaled);

    // A window, of all layers or of those that the file marks.
    let window = |w: Writer, n: u8| w.key("llama.attention.sliding_window", 4, &[n, 0, 0, 0]);
    let marked =
        |w: Writer, mark: u8| w.key("llama.attention.sliding_window_pattern", 9, &array(7, 1, &[mark]));
    assert_eq!(of(&|w| window(w, 0), &llama()).unwrap(), plain);
    assert_eq!(of(&|w| marked(window(w, 2), 0), &llama()).unwrap(), plain);
    let slides = of(&|w| window(w, 2), &llama()).unwrap();
    assert!(slides != plain && of(&|w| marked(window(w, 2), 1), &llama()).unwrap() == slides);
    let two = |w: Writer| w.key("llama.attention.sliding_window_pattern", 9, &array(7, 2, &[1, 0]));
    let error = of(&|w| two(window(w, 2)), &llama()).unwrap_err().to_string();
    assert!(error.contains("expected one for each of 1 layers, got 2"), "{error}");

    for (key, type_id, value) in [
        ("llama.rope.scaling.type", 8, string("dynamic")),
        ("llama.rope.scaling.type", 8, string("longrope")),
        ("llama.rope.scaling.type", 8, string("")),
        ("llama.rope.scaling.attn_factor", 6, f32(-1.5).to_vec()),
        ("llama.rope.scaling.yarn_ext_factor", 6, f32(1.0).to_vec()),
        ("llama.rope.scaling.factor", 6, f32(f32::NAN).to_vec()),
        ("llama.rope.scaling.factor", 6, f32(-1.0).to_vec()),
        ("llama.rope.scaling.factor", 4, vec![4, 0, 0, 0]),
        ("llama.rope.freq_base", 6, f32(f32::INFINITY).to_vec()),
        ("llama.rope.dimension_sections", 9, array(5, 1, &[1, 0, 0, 0])),
        ("llama.rope.some_new_key", 6, f32(2.0).to_vec()),
        ("llama.attention.value_length", 4, vec![4, 0, 0, 0]),
        ("llama.attention.key_length", 4, vec![4, 0, 0, 0]),
        ("llama.attention.scale", 6, f32(0.5).to_vec()),
        ("llama.attention.causal", 7, vec![0]),
        ("llama.attention.clamp_kqv", 6, f32(8.0).to_vec()),
        ("llama.attention.some_new_key", 4, vec![8, 0, 0, 0]),
        ("llama.expert_count", 4, vec![2, 0, 0, 0]),
        ("llama.logit_scale", 6, f32(0.5).to_vec()),
        ("llama.embedding_scale", 6, f32(2.0).to_vec()),
        ("llama.final_logit_softcapping", 6, f32(30.0).to_vec()),
        ("llama.tensor_data_layout", 8, string("transposed")),
        ("llama.use_parallel_residual", 7, vec![1]),
        ("general.type", 8, string("adapter")),
    ] {
        match of(&|w| w.key(key, type_id, &value), &llama()) {
            Err(Error::Config { setting, .. }) => {
                // The value's own key, or the one that it contradicts.
                assert!(
                    setting == key || setting.contains("value_length") || setting.starts_with("rope"),
                    "{key}: {setting}"
                );
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    for (key, type_id, value) in [
        ("llama.attention.causal", 7, vec![1]),
        ("llama.attention.clamp_kqv", 6, f32(0.0).to_vec()),
        ("llama.attention.scale", 6, f32(1.0 / 8f32.sqrt()).to_vec()),
        ("llama.expert_count", 4, vec![0; 4]),
        ("llama.logit_scale", 6, f32(1.0).to_vec()),
        ("llama.tensor_data_layout", 8, string("Meta AI original pth")),
        ("llama.vocab_size", 4, vec![VOCAB as u8, 0, 0, 0]),
        ("llama.vocab_size", 4, vec![99, 0, 0, 0]), // the rows of the table count
        ("general.type", 8, string("model")),
        ("llama.favourite_colour", 8, string("blue")),
    ] {
        assert_eq!(of(&|w| w.key(key, type_id, &value), &llama()).unwrap(), plain, "{key}");
    }
}

#[test]
fn a_gguf_file_ends_a_text_on_names_and_keys() {
    let ends = |named: &[(&str, i32)], keys: &[(&str, u32)]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes = gguf(&llama(), |w| {
            keys.iter().fold(vocab(w, named), |w, (key, id)| {
                w.key(&format!("tokenizer.ggml.{key}_token_id"), 4, &id.to_le_bytes())
            })
        });
        std::fs::write(file.path(), bytes).unwrap();
        let model = Model::load(file.path(), &options()).unwrap();
        // It does end there.
        for &end in &model.config().eos_token_ids {
            let options = crate::GenerateOptions {
                logit_bias: vec![(end, 100.0)],
                ..crate::GenerateOptions::greedy(3)
            };
            let answer = model.generate(&[7u32][..], &options).unwrap();
            assert_ne!(answer.choices[0].finish_reason, crate::FinishReason::Length, "{named:?}: {end}");
        }
        model.config().eos_token_ids.clone()
    };
    for name in [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<｜end▁of▁sentence｜>",
        "<|fim_pad|>",
        "<|repo_name|>",
        "<|file_sep|>",
        "<turn|>",
    ] {
        assert_eq!(ends(&[("<|im_start|>", 3), (name, 3)], &[]), [2], "{name}");
        assert_eq!(ends(&[("<|im_start|>", 3), (name, 3)], &[("eos", 9)]), [9, 2], "{name}");
        assert_eq!(ends(&[("<|im_start|>", 3), (name, 4)], &[("eot", 2)]), [2], "{name}");
    }
    // A name with a bar is never a word; another one may be.
    assert_eq!(ends(&[("<|eot_id|>", 1)], &[]), [1]);
    assert_eq!(ends(&[("</s>", 1), ("<eos>", 1)], &[]), [0u32; 0]);
    assert_eq!(ends(&[("<|start|>", 3)], &[("eos", 4), ("eot", 5), ("eom", 6)]), [4, 5, 6]);
    // Where an answer has parts, the end of a part ends nothing.
    assert_eq!(ends(&[("<|end|>", 3), ("<|return|>", 3), ("<|call|>", 3)], &[("eos", 2)]), [2, 3]);
    assert_eq!(ends(&[("<|end|>", 3), ("<|flush|>", 3), ("<|calls|>", 3)], &[]), [2, 3]);
    assert_eq!(ends(&[("<|end|>", 3), ("<|return|>", 3)], &[]), [1, 2]);
    assert_eq!(ends(&[("</s>", 3), ("<|tool_response>", 3)], &[("eos", 9)]), [9, 2]);
    // A key goes before the names of its kind.
    assert_eq!(ends(&[("<|fim_pad|>", 3), ("<|file_sep|>", 3)], &[("fim_pad", 8)]), [2, 8]);
}

/// A tokenizer of one letter each, with these added tokens from id 1 on.
fn tokenizer_json(added: &[&str]) -> String {
    let letters: serde_json::Map<_, _> =
        (0..VOCAB).map(|i| (char::from(b'A' + i as u8).to_string(), json!(i))).collect();
    let mut vocab = letters.clone();
    let mut tokens = Vec::new();
    for (i, name) in added.iter().enumerate() {
        vocab.retain(|_, id| *id != json!(i + 1));
        vocab.insert((*name).into(), json!(i + 1));
        tokens.push(
            json!({"id": i + 1, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}),
        );
    }
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({"version": "1.0", "added_tokens": tokens, "normalizer": null, "pre_tokenizer": level, "post_processor": null,
        "decoder": level, "model": {"type": "BPE", "vocab": vocab, "merges": []}})
    .to_string()
}

#[test]
fn a_folder_ends_a_text_where_its_files_say() {
    let ends = |files: &[(&str, serde_json::Value)], config: &serde_json::Value| {
        let dir = folder(config, &llama());
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer_json(&["<a>", "<b>", "<c>"])).unwrap();
        for (name, json) in files {
            std::fs::write(dir.path().join(name), json.to_string()).unwrap();
        }
        Model::load(dir.path(), &options())
            .map(|m| (m.config().bos_token_id, m.config().eos_token_ids.clone()))
    };
    let (generation, tokenizer, map) =
        ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json");
    let token = |name: &str| json!({"eos_token": name, "bos_token": "<a>"});
    let by_config = config_with("eos_token_id", 5);
    for (files, config, want) in [
        (vec![], config(), vec![]),
        (vec![], by_config.clone(), vec![5]),
        (vec![(generation, json!({"eos_token_id": [6, 7]}))], by_config.clone(), vec![6, 7]),
        (vec![(generation, json!({"eos_token_id": 6}))], config(), vec![6]),
        (vec![(generation, json!({"eos_token_id": null, "temperature": 0.6}))], by_config.clone(), vec![5]),
        (vec![(generation, json!({"do_sample": true}))], by_config.clone(), vec![5]),
        (vec![(tokenizer, token("<b>"))], config(), vec![2]),
        (vec![(tokenizer, json!({"eos_token": {"content": "<c>", "special": true}}))], config(), vec![3]),
        // What is outside of the vocabulary never comes, and the tokenizer's own counts if nothing else is left.
        (vec![(generation, json!({"eos_token_id": [VOCAB, 6]}))], config(), vec![6]),
        (vec![(map, token("<b>"))], config_with("eos_token_id", VOCAB), vec![2]),
        (vec![(map, token("<b>"))], config(), vec![2]),
        (vec![(map, json!({"eos_token": {"content": "<b>"}}))], config(), vec![2]),
        (vec![(tokenizer, token("<b>")), (map, token("<c>"))], config(), vec![2]),
        (vec![(tokenizer, json!({"eos_token": null})), (map, token("<c>"))], config(), vec![3]),
        // As in transformers, the model's own go before the tokenizer's.
        (vec![(tokenizer, token("<b>"))], by_config.clone(), vec![5]),
        (vec![(tokenizer, token("<nowhere>"))], config(), vec![]),
        (vec![(tokenizer, json!({"eos_token": false})), (map, token("<c>"))], config(), vec![3]),
    ] {
        assert_eq!(ends(&files, &config).unwrap().1, want, "{files:?}");
    }
    assert_eq!(ends(&[(tokenizer, token("<b>"))], &config()).unwrap().0, Some(1));
    assert_eq!(ends(&[(tokenizer, token("<b>"))], &config_with("bos_token_id", 9)).unwrap().0, Some(9));
    assert_eq!(
        ends(&[(generation, json!({"bos_token_id": 8}))], &config_with("bos_token_id", 9)).unwrap().0,
        Some(8)
    );
    for value in [json!(-1), json!(2.5), json!("2"), json!([3, -1]), json!(1u64 << 40)] {
        for file in ["config", generation] {
            let error = match file {
                "config" => ends(&[], &config_with("eos_token_id", value.clone())),
                file => ends(&[(file, json!({"eos_token_id": value}))], &config()),
            };
            assert!(
                matches!(&error, Err(Error::Config { setting, .. }) if setting.starts_with("eos_token_id")),
                "{error:?}"
            );
        }
    }
    for (file, json) in
        [(tokenizer, json!({"eos_token": 2})), (map, json!({"bos_token": ["<a>"]})), (tokenizer, json!([]))]
    {
        let error = ends(&[(file, json)], &config()).unwrap_err();
        assert!(matches!(&error, Error::InvalidFile { path, .. } if path.ends_with(file)), "{error}");
    }
    for name in [generation, tokenizer, map] {
        let dir = folder(&config(), &llama());
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer_json(&[])).unwrap();
        std::fs::write(dir.path().join(name), r#"{"eos_token_id": 3, "eos_token_id": 4}"#).unwrap();
        let message = Model::load(dir.path(), &options()).unwrap_err().to_string();
        assert!(message.contains("`eos_token_id` appears twice"), "{message}");
    }
}

#[test]
#[cfg(unix)]
fn what_is_no_file_does_not_load() {
    for side in DESCRIPTIONS {
        for target in ["/dev/zero", "/dev/null", "nothing", "."] {
            let dir = folder(&config(), &llama());
            // Beside it, SentencePiece's file is not looked at.
            if TOKENIZER_MODELS.iter().all(|file| file.name != side.name) {
                std::fs::write(dir.path().join("tokenizer.json"), tokenizer_json(&[])).unwrap();
            }
            let path = dir.path().join(side.name);
            let _ = std::fs::remove_file(&path);
            std::os::unix::fs::symlink(target, &path).unwrap();
            let outcome = Model::load(dir.path(), &options()).and_then(|model| {
                // The template waits until a chat is asked for; ids of added tokens are read with the tokenizer.
                assert!(
                    ["chat_template.jinja", "added_tokens.json"].contains(&side.name),
                    "{}: {target}",
                    side.name
                );
                model.chat_prompt(&[crate::Message::new("user", "A")], true)
            });
            if side.name != "added_tokens.json" {
                assert!(matches!(outcome, Err(Error::Io { .. })), "{}: {target}: {outcome:?}", side.name);
            }
            let to = tempfile::tempdir().unwrap();
            assert!(matches!(quantize(dir.path(), &to.path().join("int8"), |_| true), Err(Error::Io { .. })));
        }
    }
    // The model itself.
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("model.gguf");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [&pipe, Path::new("/dev/zero"), Path::new("/dev/null"), &dir.path().join("absent")] {
        assert!(matches!(Model::load(path, &options()), Err(Error::Io { .. })), "{}", path.display());
    }
    let pointer = dir.path().join("pointer.gguf");
    std::fs::write(&pointer, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n").unwrap();
    assert!(Model::load(&pointer, &options()).unwrap_err().to_string().contains("Git LFS"));
}

/// A file cannot make a load take many times its own size.
#[test]
fn memory_is_bounded_by_the_file() {
    const MB: usize = 1 << 20;
    for (text, most) in [
        (format!("[{}[]]", "[],".repeat(7 * MB)), 4 * MB),
        (format!("[{}[]]", "[],".repeat(MB / 3 - 10)), 40 * MB),
        (format!("{{{}\"x\": 0}}", "\"\": 0,".repeat(MB / 7 - 10)), 4 * MB),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let (outcome, peak) = peak_bytes(|| Model::load(dir.path(), &options()).map(|_| ()));
        assert!(matches!(outcome, Err(Error::InvalidFile { .. })), "{outcome:?}");
        assert!(peak < most, "{peak}");
    }

    // Arrays of 16 MB of strings, 4 MB of numbers and 6 MB of arrays, and the most keys.
    let mut writer = Writer::default()
        .key("strings", 9, &array(8, 2 * MB as u64, &vec![0; 16 * MB]))
        .key("bytes", 9, &array(0, 4 * MB as u64, &vec![7; 4 * MB]))
        .key("arrays", 9, &array(9, MB as u64 / 2, &array(0, 0, &[]).repeat(MB / 2)));
    for i in 0..65_000u32 {
        writer = writer.key(&i.to_string(), 0, &[1]);
    }
    let bytes = writer.finish();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let (gguf, peak) = peak_bytes(|| Gguf::open(file.path()).unwrap());
    assert_eq!(gguf.opt_strs("strings").unwrap().unwrap().len(), 2 * MB);
    assert_eq!(gguf.u64("64999").unwrap(), 1);
    assert!(peak < bytes.len() / 2, "{peak} of {}", bytes.len());
}
