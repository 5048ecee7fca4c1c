//! SentencePiece's `tokenizer.model`.

use serde_json::json;

use super::files::{Folder, config, repository, try_model, weights};

/// Rows of the model: the pieces of the seeds are 900 at most.
const ROWS: usize = 960;

/// The file.
pub fn run(input: &[u8]) {
    let config = config(&json!({"vocab_size": ROWS})).to_string();
    let weights = weights(ROWS);
    let side = json!({"legacy": input.len().is_multiple_of(2), "added_tokens_decoder": {
        "3": {"content": "<|x|>", "special": true, "normalized": false},
        "950": {"content": "<new>", "rstrip": true}}})
    .to_string();
    let files = [
        ("config.json", config.as_bytes()),
        ("model.safetensors", &weights),
        ("tokenizer.model", input),
        ("tokenizer_config.json", side.as_bytes()),
    ];
    try_model(Folder::with(&files).path(), "Hello  <new> ﬁ\t½ ﾊﾟ中国<|x|> abcd\n\n é👍  ");
}

/// Trained models of both kinds, with rules, user-defined and unused pieces.
pub fn seeds() -> Vec<Vec<u8>> {
    let names = ["unigram", "unigram_folding", "unigram_suffix", "bpe_llama", "bpe_gemma", "bpe_unused"];
    names.map(|name| repository(&format!("tests/fixtures/sentencepiece/{name}.model"))).to_vec()
}
