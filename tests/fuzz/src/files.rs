//! Writes models for an input, each into a folder of its own.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde_json::{Value, json};
use welm_core::{Error, GenerateOptions, LoadOptions, Message, Model};

/// A folder for one input, which is removed on drop. It is under `TMPDIR`, which `tests/fuzz/run` puts into memory.
pub struct Folder(PathBuf);

impl Folder {
    /// A new one, with these files.
    pub fn with(files: &[(&str, &[u8])]) -> Self {
        static ROOT: OnceLock<tempfile::TempDir> = OnceLock::new();
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let root = ROOT.get_or_init(|| tempfile::tempdir().expect("a writable temporary folder"));
        let folder = Folder(root.path().join(NEXT.fetch_add(1, Relaxed).to_string()));
        std::fs::create_dir(&folder.0).expect("a new folder");
        for (name, bytes) in files {
            std::fs::write(folder.0.join(name), bytes).expect("a new file");
        }
        folder
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().find(|folder| folder.join("tests/fixtures").is_dir()).expect("the repository")
}

/// A file of the repository.
pub fn repository(path: &str) -> Vec<u8> {
    std::fs::read(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Names in a folder of the repository, sorted.
pub fn names(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name().into_string();
    let mut names: Vec<String> = entries.map(|entry| name(entry).expect("UTF-8")).collect();
    names.sort();
    names
}

/// Models in `tests/fixtures`, which are folders with this file.
pub fn fixtures(file: &str) -> Vec<String> {
    let has = |name: &String| root().join("tests/fixtures").join(name).join(file).is_file();
    names("tests/fixtures").into_iter().filter(has).collect()
}

/// Options with small limits.
pub fn small() -> LoadOptions {
    LoadOptions {
        threads: Some(1),
        context_tokens: Some(64),
        cache_tokens: Some(256),
        max_running: 4,
        chunk_tokens: Some(16),
        memory_limit: Some(64 << 20),
        ..LoadOptions::default()
    }
}

/// Fails at an error that no input may cause.
pub fn expected<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::EngineStopped(reason)) => panic!("the engine stopped: {reason}"),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// Models that could be loaded since the process began.
pub static LOADED: AtomicUsize = AtomicUsize::new(0);

/// Loads a model and, if that works, uses it.
pub fn try_model(path: &Path, text: &str) {
    if let Some(estimate) = expected(Model::estimate(path, &small())) {
        assert!(estimate.total_bytes() > 0);
    }
    let Some(model) = expected(Model::load(path, &small())) else { return };
    LOADED.fetch_add(1, Relaxed);
    let rows = model.config().vocab_size;
    for parse_special in [false, true] {
        let Some(tokens) = expected(model.tokenize(text, parse_special)) else { continue };
        model.detokenize(&tokens);
        for &token in &tokens {
            model.token_bytes(token);
            model.is_special(token);
        }
    }
    expected(model.chat_prompt(&[Message::new("user", text)], true));
    let greedy = GenerateOptions { logprobs: Some(2), ..GenerateOptions::greedy(3) };
    for prompt in [vec![0u32, 1, 2], vec![rows as u32 - 1, 0]] {
        if let Some(answer) = expected(model.generate(&prompt, &greedy)) {
            let tokens = &answer.choices[0].tokens;
            assert!(tokens.len() <= 3 && tokens.iter().all(|t| (t.id as usize) < rows));
        }
    }
    expected(model.generate(text, &greedy));
    expected(model.logits(&vec![0u32, 1], 0));
}

/// A safetensors file: tensors of f32 from a small random generator.
pub fn safetensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let mut state = 1u32;
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            data.extend_from_slice(&value.to_le_bytes());
        }
        let place = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.to_string(), place);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// The settings of a Llama with one layer of 16 columns, with these changed or added.
pub fn config(more: &Value) -> Value {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 16,
        "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"
    });
    let more = more.as_object().expect("an object").clone();
    config.as_object_mut().expect("an object").extend(more);
    config
}

/// Its tensors, for a vocabulary of `rows` tokens.
pub fn weights(rows: usize) -> Vec<u8> {
    safetensors(&[
        ("model.embed_tokens.weight", &[rows, 16]),
        ("model.layers.0.input_layernorm.weight", &[16]),
        ("model.layers.0.self_attn.q_proj.weight", &[16, 16]),
        ("model.layers.0.self_attn.k_proj.weight", &[8, 16]),
        ("model.layers.0.self_attn.v_proj.weight", &[8, 16]),
        ("model.layers.0.self_attn.o_proj.weight", &[16, 16]),
        ("model.layers.0.post_attention_layernorm.weight", &[16]),
        ("model.layers.0.mlp.gate_proj.weight", &[16, 16]),
        ("model.layers.0.mlp.up_proj.weight", &[16, 16]),
        ("model.layers.0.mlp.down_proj.weight", &[16, 16]),
        ("model.norm.weight", &[16]),
    ])
}

/// A `tokenizer.json` of a byte-level vocabulary: `<unk>`, `<s>`, `</s>`, then the bytes, and one merge.
pub fn byte_level() -> Value {
    let shown = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut hidden = 256;
    let letters: Vec<char> = (0..=255u8)
        .map(|byte| {
            if shown(byte) {
                return byte as char;
            }
            hidden += 1;
            char::from_u32(hidden - 1).expect("a letter")
        })
        .collect();
    let mut vocab = serde_json::Map::new();
    for (i, token) in ["<unk>", "<s>", "</s>"].into_iter().enumerate() {
        vocab.insert(token.into(), i.into());
    }
    for (i, letter) in letters.iter().enumerate() {
        vocab.insert(letter.to_string(), (i + 3).into());
    }
    vocab.insert("ab".into(), 259.into());
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [["a", "b"]]}
    })
}

/// Rows of the embedding for this tokenizer.
pub const BYTE_LEVEL_ROWS: usize = 260;

/// The parts of an input, with a byte that no UTF-8 has between them; the last one has the rest.
pub fn parts<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut parts = input.splitn(N, |&byte| byte == 0xFF);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// Parts as one input.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(&0xFF)
}
