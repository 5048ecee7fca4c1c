//! Fuzzes GGUF files: metadata, descriptions of tensors and tensors, with a tokenizer and a chat template.

use super::files::{Folder, repository, try_model};

/// Bytes of zeros after a header, as the tensors.
const TENSORS: usize = 160 << 10;

/// The first byte says whether zeros for tensors follow; the others are the file.
pub fn run(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else { return };
    let mut file = rest.to_vec();
    if kind & 1 == 0 {
        file.resize(file.len() + TENSORS, 0);
    }
    let folder = Folder::with(&[("model.gguf", &file)]);
    try_model(&folder.path().join("model.gguf"), "Hello <|im_end|> 12\n  ab");
}

/// The headers of the fixtures, and one whole file.
pub fn seeds() -> Vec<Vec<u8>> {
    let names = ["llama_q4_0", "llama_q4_1", "llama_q8_0", "llama_bf16", "neox_f32"];
    let mut seeds = Vec::new();
    for name in names {
        let file = repository(&format!("tests/fixtures/gguf_{name}/model.gguf"));
        // Tensors begin after the last name and its description.
        let last = file.windows(7).rposition(|w| w == b".weight" || w == b"rm.bias").map_or(0, |at| at + 64);
        seeds.push([&[0], &file[..last.min(file.len())]].concat());
    }
    seeds.push([&[1], &repository("tests/fixtures/gguf_llama_q4_0/model.gguf")[..]].concat());
    seeds
}
