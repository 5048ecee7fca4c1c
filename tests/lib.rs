//! Code that the test files share: where fixtures are, and how references are read.

pub mod emulator;
pub mod installed;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use safetensors::{Dtype, SafeTensors};
use welm_core::{CacheDtype, LoadOptions, Model, Stats};

/// A file or folder of the repository. `WELM_TEST_DATA` names a copy of it, for tests that run elsewhere
/// (`benches/gpu/make`).
pub fn data(path: &str) -> PathBuf {
    let root = std::env::var_os("WELM_TEST_DATA").map(PathBuf::from);
    root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).join(path)
}

/// A file or folder of `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    data("tests/fixtures").join(name)
}

/// The small model of the repository.
pub fn nano() -> PathBuf {
    data("examples/welm-nano")
}

/// A prompt and the result of greedy decoding with the small model, which must be the same from every programming
/// language: an entry of `tests/fixtures/nano_greedy.json`.
pub struct Pin {
    /// The prompt.
    pub prompt: String,
    /// The tokens, without an end.
    pub ids: Vec<u32>,
    /// The tokens that follow if the end token is ignored.
    pub beyond: Vec<u32>,
    /// The text of `ids`.
    pub text: String,
}

/// All pins.
pub fn pins() -> Vec<Pin> {
    let file = std::fs::read_to_string(fixture("nano_greedy.json")).unwrap();
    let list: Vec<serde_json::Value> = serde_json::from_str(&file).unwrap();
    let ids = |ids: &serde_json::Value| -> Vec<u32> {
        ids.as_array().into_iter().flatten().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let one = |entry: &serde_json::Value| Pin {
        prompt: entry["prompt"].as_str().unwrap().into(),
        ids: ids(&entry["ids"]),
        beyond: ids(&entry["beyond"]),
        text: entry["text"].as_str().unwrap().into(),
    };
    list.iter().map(one).collect()
}

/// A reference file: integer tensors as `u32`, float tensors as `f32`.
pub struct Reference {
    ints: HashMap<String, Vec<u32>>,
    floats: HashMap<String, Vec<f32>>,
}

impl Reference {
    /// Reads a `.safetensors` file of `tests/fixtures`.
    pub fn read(name: &str) -> Self {
        let bytes = std::fs::read(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let file = SafeTensors::deserialize(&bytes).expect("a reference is valid");
        let mut reference = Reference { ints: HashMap::new(), floats: HashMap::new() };
        for (tensor, view) in file.tensors() {
            let data = view.data();
            if view.dtype() == Dtype::I64 {
                let ints = data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
                reference.ints.insert(tensor, ints);
            } else {
                let floats = data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                reference.floats.insert(tensor, floats);
            }
        }
        reference
    }

    /// A tensor of integers.
    pub fn ints(&self, tensor: &str) -> &[u32] {
        &self.ints[tensor]
    }

    /// A tensor of floats.
    pub fn floats(&self, tensor: &str) -> &[f32] {
        &self.floats[tensor]
    }
}

/// Exact arithmetic: weights as stored, f32 cache.
pub fn exact() -> LoadOptions {
    LoadOptions { cache_dtype: CacheDtype::F32, ..LoadOptions::default() }
}

/// Natural logarithms of the softmax of each row, `(rows, vocab)`.
pub fn log_softmax(logits: &[f32], vocab: usize) -> Vec<f64> {
    let row = |row: &[f32]| {
        let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
        let sum = row.iter().map(|&x| f64::from(x - max).exp()).sum::<f64>();
        let log_sum = f64::from(max) + sum.ln();
        row.iter().map(move |&x| f64::from(x) - log_sum).collect::<Vec<_>>()
    };
    logits.chunks_exact(vocab).flat_map(row).collect()
}

/// Waits until the engine is at rest, for 20 s at most.
pub fn at_rest(model: &Model) -> Stats {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = model.stats();
        if (stats.open == 0 && stats.blocks_used == 0 && stats.running == 0) || Instant::now() > until {
            return stats;
        }
        std::thread::yield_now();
    }
}
