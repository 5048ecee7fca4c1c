//! Damaged files: a typed error or a working model, and never a panic in any thread.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use welm_core::{Error, GenerateOptions, LoadOptions, Model};
use welm_tests::fixture;

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Loads and generates; counts a working model. Errors are fine if they are about the files.
fn try_model(path: &Path, what: &str) -> usize {
    let options = LoadOptions {
        threads: Some(1),
        cache_tokens: Some(64),
        max_running: 2,
        chunk_tokens: Some(16),
        memory_limit: Some(1 << 30),
        ..LoadOptions::default()
    };
    let worked = match Model::load(path, &options) {
        Ok(model) => match model.generate(&vec![1u32, 2, 3], &GenerateOptions::greedy(3)) {
            Ok(_) => 1,
            Err(Error::EngineStopped(reason)) => panic!("{what}: the engine stopped: {reason}"),
            Err(_) => 0,
        },
        Err(_) => 0,
    };
    let panics = PANICS.lock().unwrap();
    assert!(panics.is_empty(), "{what}: {panics:?}");
    worked
}

/// Truncates one file of a model and flips bits in it; restores it afterwards.
fn damage(model: &Path, file: &Path, flips: usize) {
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let sound = std::fs::read(file).unwrap();
    let (mut worked, mut tried) = (0, 0);
    let mut attempt = |bytes: &[u8], what: String| {
        std::fs::write(file, bytes).unwrap();
        worked += try_model(model, &format!("{name}, {what}"));
        tried += 1;
    };
    let mut state = 0x9E37_79B9u32;
    let mut random = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    for i in 0..40 {
        let len = if i < 12 { i } else { random(sound.len()) };
        attempt(&sound[..len.min(sound.len())], format!("cut at {len}"));
    }
    for i in 0..flips {
        // Two thirds in the first kilobytes: headers and settings matter more than weights.
        let range = if i % 3 == 0 { sound.len() } else { sound.len().min(4_096) };
        let (at, bit) = (random(range), random(8));
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << bit;
        attempt(&bytes, format!("bit {bit} of byte {at}"));
    }
    std::fs::write(file, &sound).unwrap();
    println!("{}: {worked} of {tried} damaged copies still work", file.display());
    assert!(worked < tried, "no damage to {name} was noticed");
    assert_eq!(try_model(model, "sound again"), 1);
}

fn copy(from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    folder
}

#[test]
fn every_file_of_a_model() {
    std::panic::set_hook(Box::new(|info| {
        // The tokenizer library's own panics are caught and become errors.
        if !info.location().is_some_and(|l| l.file().contains("tokenizers-")) {
            PANICS.lock().unwrap().push(info.to_string());
        }
        eprintln!("{info}");
    }));
    for name in ["llama_sharded", "neox_odd"] {
        let folder = copy(&fixture(name));
        std::fs::remove_file(folder.path().join("expected.safetensors")).unwrap();
        let _ = std::fs::remove_file(folder.path().join("config_v4.json"));
        let files: Vec<PathBuf> =
            std::fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().path()).collect();
        for file in files {
            damage(folder.path(), &file, 200);
        }
    }
    // SentencePiece's tokenizers, with a model of the rows of the smallest.
    for name in ["unigram_folding", "bpe_gemma"] {
        let folder = copy(&fixture("llama_gqa"));
        std::fs::remove_file(folder.path().join("expected.safetensors")).unwrap();
        let file = folder.path().join("tokenizer.model");
        std::fs::copy(fixture(&format!("sentencepiece/{name}.model")), &file).unwrap();
        damage(folder.path(), &file, 200);
    }
    let folder = copy(&fixture("gguf_llama_q4_0"));
    let file = folder.path().join("model.gguf");
    damage(&file, &file, 300);

    // The int8 folder: its own tensors, and a real tokenizer.
    let folder = copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/welm-nano"));
    for (name, flips) in [
        ("config.json", 100),
        ("generation_config.json", 60),
        ("tokenizer.json", 60),
        ("model.safetensors", 100),
    ] {
        damage(folder.path(), &folder.path().join(name), flips);
    }
}

#[test]
fn what_is_no_model_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let load = |path: &Path| Model::load(path, &LoadOptions::default()).map(drop).unwrap_err();
    assert!(matches!(load(&folder.path().join("absent")), Error::Io { .. }));
    assert!(matches!(load(folder.path()), Error::Io { .. }), "no config.json");
    std::fs::write(folder.path().join("x.gguf"), b"GGML and more").unwrap();
    assert!(matches!(load(&folder.path().join("x.gguf")), Error::InvalidFile { .. }));
    std::fs::write(folder.path().join("empty.gguf"), b"").unwrap();
    assert!(matches!(load(&folder.path().join("empty.gguf")), Error::InvalidFile { .. }));
    std::fs::copy(fixture("llama_gqa/config.json"), folder.path().join("config.json")).unwrap();
    assert!(matches!(load(folder.path()), Error::Io { .. } | Error::InvalidFile { .. }), "no weights");
    std::fs::copy(fixture("neox_odd/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert!(matches!(load(folder.path()), Error::Tensor { .. }), "another model's weights");
}
