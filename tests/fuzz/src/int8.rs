//! Fuzzes folders that `quantize` writes.

use std::sync::OnceLock;

use super::files::{Folder, config, join, parts, repository, try_model, weights};

/// Settings, header and values that `quantize` makes of the small model.
fn sound() -> &'static [Vec<u8>; 3] {
    static SOUND: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    SOUND.get_or_init(|| {
        let config = config(&serde_json::json!({})).to_string();
        let from = Folder::with(&[("config.json", config.as_bytes()), ("model.safetensors", &weights(8))]);
        let to = Folder::with(&[]);
        let to = to.path().join("int8");
        welm_core::quantize(from.path(), &to, |_| true).expect("a sound model");
        let config = std::fs::read(to.join("config.json")).expect("a file");
        let mut header = std::fs::read(to.join("model.safetensors")).expect("a file");
        let len = u64::from_le_bytes(header[..8].try_into().expect("eight bytes")) as usize;
        let values = header.split_off(8 + len);
        [config, header.split_off(8), values]
    })
}

/// Input: `config.json`, 0xFF, the header of `model.safetensors`. If one is empty, the valid one is used. Bytes after
/// another 0xFF replace the first values.
pub fn run(input: &[u8]) {
    let [config, header, first] = parts(input);
    let [sound_config, sound_header, values] = sound();
    let or = |given, sound| if <[u8]>::is_empty(given) { sound } else { given };
    let (config, header) = (or(config, &sound_config[..]), or(header, &sound_header[..]));
    let mut values = values.clone();
    let n = first.len().min(values.len());
    values[..n].copy_from_slice(&first[..n]);
    let tensors = [&(header.len() as u64).to_le_bytes(), header, &values].concat();
    let folder = Folder::with(&[("config.json", config), ("model.safetensors", &tensors)]);
    try_model(folder.path(), "");
}

/// The sound folder, and the one of the repository.
pub fn seeds() -> Vec<Vec<u8>> {
    let [config, header, values] = sound();
    let nano = repository("examples/welm-nano/config.json");
    vec![
        join(&[config, header]),
        join(&[b"", header]),
        join(&[config, b""]),
        join(&[b"", b"", &values[..values.len().min(256)]]),
        join(&[&nano, b""]),
    ]
}
