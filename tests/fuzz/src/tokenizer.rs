//! Fuzzes `tokenizer.json`, with a text.

use serde_json::{Value, json};

use super::files::{BYTE_LEVEL_ROWS, Folder, byte_level, config, join, parts, try_model, weights};

/// Input: the file, 0xFF, the text.
pub fn run(input: &[u8]) {
    let [tokenizer, text] = parts(input);
    let config = config(&json!({"vocab_size": BYTE_LEVEL_ROWS})).to_string();
    let weights = weights(BYTE_LEVEL_ROWS);
    let files =
        [("config.json", config.as_bytes()), ("model.safetensors", &weights), ("tokenizer.json", tokenizer)];
    let folder = Folder::with(&files);
    try_model(folder.path(), &String::from_utf8_lossy(text));
}

/// A tokenizer of each kind, with the stages that published ones have.
pub fn seeds() -> Vec<Vec<u8>> {
    let vocab =
        json!({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5, "▁": 6, "<0x0A>": 7, "##b": 8});
    let scores: Vec<(&str, f64)> =
        vec![("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁a", -1.0), ("b", -2.0), ("▁", -3.0)];
    let byte = byte_level();
    let bpe = |more: Value| {
        let mut model = json!({"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": ["a b"]});
        model.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        model
    };
    let cases = [
        json!({}),
        json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s+(?!\\S)|[[:alpha:]]+"},
                "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]}}),
        json!({"model": bpe(json!({})), "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "pre_tokenizer": null, "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}}),
        json!({"model": bpe(json!({"ignore_merges": true, "end_of_word_suffix": "</w>"})),
            "decoder": {"type": "BPEDecoder", "suffix": "</w>"}, "pre_tokenizer": {"type": "Whitespace"},
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true}}),
        json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": scores, "byte_fallback": false},
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": ""},
                {"type": "NFKC"}, {"type": "Strip", "strip_left": false, "strip_right": true},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]},
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
            "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}}),
        json!({"model": {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab}, "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}}),
        json!({"model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocab}, "decoder": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
                {"type": "Punctuation", "behavior": "Isolated"}, {"type": "WhitespaceSplit"}]}}),
        json!({"post_processor": {"type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "added_tokens": [{"id": 1, "content": "<s>", "single_word": true, "lstrip": true, "rstrip": true,
                "normalized": true, "special": false}],
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}}),
    ];
    let text = "Hello <s> ab aab\n 123 né中👍  </s> don't".as_bytes();
    let seed = |more: &Value| {
        let mut whole = byte.clone();
        whole.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        join(&[whole.to_string().as_bytes(), text])
    };
    cases.iter().map(seed).collect()
}
