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
    let whole = repository("tests/fixtures/gguf_llama_q4_0/model.gguf");
    for model in ["llama", "t5"] {
        seeds.push([&[0], &with_pieces(&whole, model)[..]].concat());
    }
    seeds.push([&[1], &whole[..]].concat());
    seeds
}

/// The file with its tokenizer's model and its space named otherwise, with a score for each token and a table of rules.
fn with_pieces(file: &[u8], model: &str) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let find =
        |bytes: &[u8]| file.windows(bytes.len()).position(|w| w == bytes).expect("a key of the fixture");
    let array = |key: &str, kind: u32, n: u64, elements: &[u8]| {
        [&text(key)[..], &9u32.to_le_bytes(), &kind.to_le_bytes(), &n.to_le_bytes(), elements].concat()
    };
    let tokens = text("tokenizer.ggml.tokens");
    let n = &file[find(&tokens) + tokens.len() + 8..];
    let n = u64::from_le_bytes(*n.first_chunk().expect("a number of tokens"));
    let scores: Vec<u8> = (0..n).flat_map(|i| (-(i as f32)).to_le_bytes()).collect();
    // One rule: `a` becomes `b`.
    let mut units = [0u32; 512];
    (units[0x61], units[0x161]) = (0x61 | 1 << 8 | 0x100 << 10, 1 << 31);
    let units: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let table = [&2048u32.to_le_bytes()[..], &units, b"b\0"].concat();
    let more = [
        array("tokenizer.ggml.scores", 6, n, &scores),
        array("tokenizer.ggml.precompiled_charsmap", 0, table.len() as u64, &table),
    ]
    .concat();
    // So long that tensors begin at a multiple of 32, as before.
    let filler = |len: usize| {
        [&text("general.description")[..], &8u32.to_le_bytes(), &text(&" ".repeat(len))].concat()
    };
    let moved = more.len() + model.len() + filler(0).len() + "▁".len() - "gpt2".len() - "Ġ".len();
    let filler = filler(moved.next_multiple_of(32) - moved);
    // After magic, version and number of tensors comes the number of keys.
    let head = &file[..16];
    let keys = u64::from_le_bytes(*file[16..].first_chunk().expect("a number of keys")) + 3;
    let (name, space) = (find(&text("gpt2")), find(&text("Ġ")));
    let between = &file[name + text("gpt2").len()..space];
    let after = &file[space + text("Ġ").len()..];
    let parts: [&[u8]; 9] = [
        head,
        &keys.to_le_bytes(),
        &filler,
        &more,
        &file[24..name],
        &text(model),
        between,
        &text("▁"),
        after,
    ];
    parts.concat()
}
