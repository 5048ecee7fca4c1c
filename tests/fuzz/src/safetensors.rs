//! Fuzzes safetensors: the header, or the whole file, and the index of several files; also through `quantize`.

use super::files::{Folder, config, expected, repository, try_model, weights};

/// The length and the text of a file's header, or the file as it is.
fn file(kind: u8, input: &[u8]) -> Vec<u8> {
    if kind & 1 == 1 {
        return input.to_vec();
    }
    // The values do not matter: they are those of the valid file.
    let sound = weights(8);
    let header = u64::from_le_bytes(sound[..8].try_into().expect("eight bytes")) as usize;
    [&(input.len() as u64).to_le_bytes(), input, &sound[8 + header..]].concat()
}

/// The first byte of the input chooses what the others are.
pub fn run(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else { return };
    let config = config(&serde_json::json!({})).to_string();
    if kind & 2 == 2 {
        let fixture = |name: &str| repository(&format!("tests/fixtures/llama_sharded/{name}"));
        let shards = [1, 2, 3].map(|i| format!("model-0000{i}-of-00003.safetensors"));
        let (config, tensors) = (fixture("config.json"), shards.each_ref().map(|name| fixture(name)));
        let mut files = vec![("config.json", &config[..]), ("model.safetensors.index.json", rest)];
        files.extend(shards.iter().zip(&tensors).map(|(name, bytes)| (&name[..], &bytes[..])));
        return whole(kind, &files);
    }
    let tensors = file(kind, rest);
    whole(kind, &[("config.json", config.as_bytes()), ("model.safetensors", &tensors)]);
}

fn whole(kind: u8, files: &[(&str, &[u8])]) {
    let folder = Folder::with(files);
    try_model(folder.path(), "");
    if kind & 4 == 4 {
        let out = Folder::with(&[]);
        let out = out.path().join("int8");
        if expected(welm_core::quantize(folder.path(), &out, |_| true)).is_some() {
            try_model(&out, "");
        }
    }
}

/// The parts of a sound file, and a sound index.
pub fn seeds() -> Vec<Vec<u8>> {
    let sound = weights(8);
    let header = 8 + u64::from_le_bytes(sound[..8].try_into().expect("eight bytes")) as usize;
    let index = repository("tests/fixtures/llama_sharded/model.safetensors.index.json");
    let kinds: [(u8, &[u8]); 5] =
        [(0, &sound[8..header]), (4, &sound[8..header]), (1, &sound), (2, &index), (6, &index)];
    kinds.into_iter().map(|(kind, bytes)| [&[kind], bytes].concat()).collect()
}
