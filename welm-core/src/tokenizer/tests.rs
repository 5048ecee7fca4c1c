use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokenizers::NormalizedString;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::*;

/// A random number below `n`, by a linear congruential generator.
fn below(state: &mut u64, n: usize) -> usize {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    ((*state >> 33) as usize) % n
}

fn texts(n: usize) -> Vec<String> {
    let atoms = [
        "Hello", " world", "a", "b", "ab", " ", "  ", "\n", "12", "你好", "世界", "。", "é", "😀", "<s>",
        "</s>", "<|end|>", "<tool>", "<unk>", "\u{FFFD}", "▁", "<0x41>",
    ];
    let mut state = 3;
    let text = |state: &mut u64| (0..below(state, 9)).map(|_| atoms[below(state, atoms.len())]).collect();
    (0..n).map(|_| text(&mut state)).collect()
}

fn added(id: u32, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "special": special, "normalized": !special,
           "single_word": false, "lstrip": false, "rstrip": false})
}

/// A `tokenizer.json` with the byte alphabet in the order of its characters, two merges, and then added tokens.
fn byte_level() -> Value {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let spelled = alphabet.iter().map(char::to_string).chain(["ab", "Ġw"].map(String::from));
    let vocab: BTreeMap<String, u32> = spelled.zip(0..).collect();
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
        "added_tokens": [added(258, "<s>", true), added(259, "<|end|>", true), added(260, "<tool>", false),
                         added(261, "你好", false)],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "<|end|>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [258], "tokens": ["<s>"]},
                               "<|end|>": {"id": "<|end|>", "ids": [259], "tokens": ["<|end|>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": 0.5, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["a", "b"], ["Ġ", "w"]]},
    })
}

/// A `tokenizer.json` like that of Llama 2: `▁` before the text and for spaces, bytes for unknown characters.
fn sentence_piece() -> Value {
    let pieces = ["<unk>", "<s>", "</s>"].map(String::from).into_iter();
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let rest = ["▁", "a", "b", "H", "e", "l", "o", "你", "▁a", "ab", "▁▁"].map(String::from);
    let vocab: BTreeMap<String, u32> = pieces.chain(bytes).chain(rest).zip(0..).collect();
    let next = vocab.len() as u32;
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true),
                         added(next, "<tool>", false)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                       {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": [["▁", "a"], ["a", "b"], ["▁", "▁"]]},
    })
}

/// A `tokenizer.json` like that of T5: Unigram after a Metaspace.
fn unigram() -> Value {
    let pieces = ["<unk>", "▁", "a", "b", "▁a", "ab", "你好", "▁Hello", "<s>"];
    let vocab: Vec<Value> = pieces.iter().zip(0..).map(|(piece, i)| json!([piece, -f64::from(i)])).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>", true), added(8, "<s>", true), added(9, "<|end|>", true)],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
        "post_processor": null,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false},
    })
}

fn from(json: &Value) -> Result<Tokenizer> {
    Tokenizer::from_json(json.to_string().as_bytes(), &SideFiles::default())
}

#[test]
fn ids_are_the_librarys_with_and_without_special_tokens() {
    for mut json in [byte_level(), sentence_piece(), unigram()] {
        let tokenizer = from(&json).unwrap();
        for key in ["truncation", "padding"] {
            json[key] = Value::Null;
        }
        if json["model"]["type"] == "BPE" {
            json["model"]["dropout"] = Value::Null;
        }
        let mut library = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
        for parse_special in [false, true] {
            library.set_encode_special_tokens(!parse_special);
            for text in texts(2_000) {
                let want = library.encode(text.as_str(), false).unwrap();
                assert_eq!(
                    tokenizer.encode(&text, false, parse_special).unwrap(),
                    want.get_ids(),
                    "{text:?}"
                );
            }
        }
    }
}

#[test]
fn byte_level_texts_come_back_byte_for_byte() {
    let tokenizer = from(&byte_level()).unwrap();
    for text in texts(2_000) {
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false, false).unwrap()), text);
    }
    // Added tokens are spelled as they are in the file. Special tokens and ids after the last add nothing to a text.
    assert_eq!(tokenizer.token_bytes(261), "你好".as_bytes());
    assert_eq!(tokenizer.token_bytes(258), b"");
    assert_eq!(tokenizer.token_bytes(257), b" w");
    assert_eq!((tokenizer.token_bytes(262), tokenizer.vocab_size()), (&b""[..], 262));
    assert!(tokenizer.is_special(259) && !tokenizer.is_special(260));
    assert_eq!(tokenizer.token_to_id("<|end|>"), Some(259));
    assert_eq!(tokenizer.token_to_id("absent"), None);
    // The first of the two bytes of a character.
    let ids = tokenizer.encode("é", false, false).unwrap();
    assert_eq!((ids.len(), tokenizer.decode(&ids[..1])), (2, "\u{FFFD}".to_string()));
}

#[test]
fn only_the_beginning_of_the_template_is_added() {
    let mut json = byte_level();
    let tokenizer = from(&json).unwrap();
    let plain = tokenizer.encode("ab", false, true).unwrap();
    assert_eq!(tokenizer.encode("ab", true, true).unwrap(), [&[258], &plain[..]].concat());
    assert_eq!(tokenizer.encode("", true, false).unwrap(), [258]);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(258), None));
    // A template that only appends tokens puts nothing in front.
    json["post_processor"]["single"].as_array_mut().unwrap().remove(0);
    let tokenizer = from(&json).unwrap();
    assert_eq!((tokenizer.encode("ab", true, true).unwrap(), tokenizer.bos()), (plain, None));
    json["post_processor"]["single"] = json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}]);
    assert!(from(&json).is_err());
    let mut json = byte_level();
    json["post_processor"]["special_tokens"]["<s>"]["ids"] = json!([4_000_000_000u32]);
    assert!(from(&json).is_err(), "an id that no token has");
}

#[test]
fn sentence_piece_bytes_keep_the_leading_space() {
    let tokenizer = from(&sentence_piece()).unwrap();
    let bytes = |token: &str| tokenizer.token_bytes(tokenizer.token_to_id(token).unwrap());
    assert_eq!(bytes("▁a"), b" a");
    assert_eq!(bytes("▁▁"), b"  ");
    assert_eq!(bytes("<0xE4>"), [0xE4]);
    assert_eq!(bytes("你"), "你".as_bytes());
    assert_eq!((bytes("</s>"), bytes("<tool>")), (&b""[..], &b"<tool>"[..]));
    // 好 has no piece of its own and is made of three bytes.
    let ids = tokenizer.encode("a 你好", false, false).unwrap();
    assert_eq!(tokenizer.decode(&ids), " a 你好");
    assert_eq!(from(&unigram()).unwrap().token_bytes(4), b" a");
}

#[test]
fn a_file_that_does_not_fit_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    assert!(matches!(Tokenizer::from_json_file(&path), Err(Error::Io { .. })));
    let mut twice = byte_level();
    twice["model"]["vocab"]["ab"] = json!(5);
    let mut far = byte_level();
    far["model"]["vocab"]["ab"] = json!(4_000_000_000u32);
    let mut decoder = byte_level();
    decoder["decoder"] =
        json!({"type": "CTC", "pad_token": "p", "word_delimiter_token": "|", "cleanup": true});
    for (json, name) in [
        (twice.to_string(), "both"),
        (far.to_string(), "4000000000"),
        (decoder.to_string(), "CTC"),
        ("{}".into(), ""),
        ("[1]".into(), ""),
        (String::new(), ""),
    ] {
        std::fs::write(&path, json).unwrap();
        match Tokenizer::from_json_file(&path) {
            Err(Error::Tokenizer(reason)) => {
                assert!(reason.contains("tokenizer.json") && reason.contains(name), "{reason}")
            }
            other => panic!("{name}: {:?}", other.err()),
        }
    }
}

#[test]
fn a_damaged_file_is_an_error_or_works_but_never_panics() {
    let mut state = 9;
    for json in [byte_level(), sentence_piece(), unigram()] {
        let json = json.to_string();
        for _ in 0..400 {
            let mut bytes = json.clone().into_bytes();
            match below(&mut state, 3) {
                0 => bytes.truncate(below(&mut state, bytes.len())),
                1 => {
                    let at = below(&mut state, bytes.len());
                    bytes[at] = b"\"{}[]:,019nt\xFF"[below(&mut state, 13)];
                }
                _ => {
                    // A part of the file is lost.
                    let at = below(&mut state, bytes.len() - 40);
                    bytes.drain(at..at + 1 + below(&mut state, 40));
                }
            }
            if let Ok(tokenizer) = Tokenizer::from_json(&bytes, &SideFiles::default()) {
                for text in texts(5) {
                    if let Ok(ids) = tokenizer.encode(&text, true, true) {
                        tokenizer.decode(&ids);
                    }
                }
            }
        }
    }
}

/// The vocabulary of a GGUF file: the byte alphabet, a word, and one token of each type.
fn gguf() -> GgufVocab {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut vocab = GgufVocab { model: "gpt2".into(), pre: "gpt-2".into(), ..GgufVocab::default() };
    let words = ["ab", "abc", "<s>", "<|im_end|>", "<tool>", "<unk>", "", "<0x41>"].map(String::from);
    vocab.tokens = alphabet.iter().map(char::to_string).chain(words).collect();
    vocab.token_types = [vec![1; 258], vec![3, 4, 4, 2, 5, 6]].concat();
    vocab.merges = vec!["a b".into()];
    (vocab.bos, vocab.eos) = (Some(258), Some(259));
    vocab
}

#[test]
fn gguf_types_decide_what_is_found_in_a_text_and_what_is_shown() {
    let tokenizer = Tokenizer::from_gguf(gguf()).unwrap();
    let encode = |text: &str, parse| tokenizer.encode(text, false, parse).unwrap();
    // <s> is a control token, <|im_end|> is one by its name, and <unk> counts as one. <tool> is found in every text.
    for (text, id) in [("<s>", 258), ("<|im_end|>", 259), ("<unk>", 261)] {
        assert_eq!(encode(text, true), [id]);
        assert_eq!(encode(text, false).len(), text.len());
        assert_eq!((tokenizer.token_bytes(id), tokenizer.is_special(id)), (&b""[..], true));
    }
    assert_eq!((encode("<tool>", false), encode("<tool>", true)), (vec![260], vec![260]));
    assert_eq!((tokenizer.token_bytes(260), tokenizer.token_bytes(262)), (&b"<tool>"[..], &b""[..]));
    assert_eq!((tokenizer.token_bytes(263), tokenizer.vocab_size()), (&b"A"[..], 264));
    for text in texts(500) {
        assert_eq!(tokenizer.decode(&encode(&text, false)), text);
    }
}

#[test]
fn gguf_beginnings_and_whole_words() {
    let mut vocab = gguf();
    vocab.add_bos = true;
    let tokenizer = Tokenizer::from_gguf(vocab.clone()).unwrap();
    assert_eq!(tokenizer.encode("ab", true, false).unwrap(), [258, 256]);
    assert_eq!(tokenizer.encode("ab", false, false).unwrap(), [256]);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(258), Some(259)));
    let without = Tokenizer::from_gguf(gguf()).unwrap();
    assert_eq!((without.encode("", true, false).unwrap(), without.bos()), (vec![], Some(258)));
    // No merge makes `abc`. It is found only if whole words are looked up.
    assert_eq!(tokenizer.encode("abc", false, false).unwrap().len(), 2);
    vocab.pre = "llama-bpe".into();
    assert_eq!(Tokenizer::from_gguf(vocab).unwrap().encode("abc", false, false).unwrap(), [257]);
}

#[test]
fn gguf_faults_are_named() {
    let fault = |change: &dyn Fn(&mut GgufVocab)| {
        let mut vocab = gguf();
        change(&mut vocab);
        match Tokenizer::from_gguf(vocab) {
            Err(Error::Tokenizer(reason)) => reason,
            other => panic!("{:?}", other.err()),
        }
    };
    for (reason, name) in [
        (fault(&|v| v.model = "rwkv".into()), "`rwkv`"),
        (fault(&|v| v.model = "llama".into()), "score for each"),
        (fault(&|v| v.pre = "new-one".into()), "`new-one`"),
        (fault(&|v| v.pre = "new-one".into()), "qwen2"),
        (fault(&|v| v.pre = String::new()), "smollm"),
        (fault(&|v| v.tokens.clear()), "got 0"),
        (fault(&|v| v.tokens[3] = "!".into()), "two ids"),
        (fault(&|v| v.token_types.truncate(5)), "got 5"),
        (fault(&|v| v.merges.push("ab".into())), "merge 1"),
        (fault(&|v| v.merges.push("ab zz".into())), "zz"),
        (fault(&|v| v.eos = Some(1_000)), "end of a text"),
        (fault(&|v| (v.bos, v.add_bos) = (None, true)), "none is named"),
    ] {
        assert!(reason.contains(name), "{reason}");
    }
}

fn with_files(json: &Value, config: Value, map: Value, added_tokens: Value) -> Result<Tokenizer> {
    let files = SideFiles { tokenizer_config: config, special_tokens_map: map, added_tokens };
    Tokenizer::from_json(json.to_string().as_bytes(), &files)
}

fn reason(result: Result<Tokenizer>) -> String {
    match result {
        Err(Error::Tokenizer(reason)) => reason,
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn quantifiers_are_rubys() {
    let mut json = byte_level();
    json["model"]["vocab"]["12"] = json!(300);
    json["model"]["vocab"]["34"] = json!(301);
    json["model"]["vocab"]["1234"] = json!(302);
    json["model"]["merges"] = json!([["1", "2"], ["3", "4"], ["12", "34"]]);
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}+|\P{N}"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    assert_eq!(from(&json).unwrap().encode("1234", false, false).unwrap(), [302]);
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"(?=ab)a");
    assert!(reason(from(&json)).contains("more than one character"));
}

#[test]
fn control_tokens_of_the_other_files_are_found() {
    let mut json = byte_level();
    json["added_tokens"] = json!([]);
    json["post_processor"] = Value::Null;
    let encode = |tokenizer: &Tokenizer| tokenizer.encode("<s>a<|end|>", true, true).unwrap();
    let a = 64;
    let plain = encode(&from(&json).unwrap());
    assert_eq!(plain.len(), 11);
    // Ids with a gap, and one below the others: the ids in the files count.
    let decoder =
        json!({"added_tokens_decoder": {"270": added(0, "<|end|>", true), "265": added(0, "<s>", true)}});
    let mut decoder = decoder;
    for token in decoder["added_tokens_decoder"].as_object_mut().unwrap().values_mut() {
        token.as_object_mut().unwrap().remove("id");
    }
    let tokenizer = with_files(&json, decoder.clone(), Value::Null, Value::Null).unwrap();
    assert_eq!((encode(&tokenizer), tokenizer.vocab_size()), (vec![265, a, 270], 271));
    assert!(tokenizer.is_special(270) && tokenizer.token_bytes(266).is_empty());
    // With names and ids only, the control tokens are those that another file names.
    let ids = json!({"<|end|>": 270, "<s>": 265});
    let named = json!({"eos_token": "<|end|>"});
    let tokenizer = with_files(&json, Value::Null, named.clone(), ids.clone()).unwrap();
    assert_eq!(encode(&tokenizer), [265, a, 270]);
    assert_eq!((tokenizer.is_special(270), tokenizer.is_special(265)), (true, false));
    let tokenizer =
        with_files(&json, json!({"additional_special_tokens": ["<s>"]}), Value::Null, ids).unwrap();
    assert_eq!((tokenizer.is_special(270), tokenizer.is_special(265)), (false, true));
    // If a file names a token of the vocabulary, it becomes a control token. A name without an id is ignored.
    let tokenizer = with_files(
        &json,
        json!({"eos_token": {"content": "ab", "lstrip": true}, "pad_token": "[PAD]"}),
        Value::Null,
        Value::Null,
    );
    let tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.encode("b  ab", false, true).unwrap(), [65, 256]);
    assert!(tokenizer.is_special(256) && tokenizer.token_to_id("[PAD]").is_none());
    // Files that contradict each other.
    for (config, ids, name) in [
        (decoder.clone(), json!({"<s>": 266}), "265"),
        (decoder, json!({"<new>": 265}), "an id of its own"),
        (json!({"added_tokens_decoder": {"5": {"content": "ab"}}}), Value::Null, "256"),
        (json!({"added_tokens_decoder": {"x": {"content": "ab"}}}), Value::Null, "expected an id"),
        (
            json!({"added_tokens_decoder": {"300": {"content": "q".repeat(600)}}}),
            Value::Null,
            "at most 512 bytes",
        ),
        (json!({"added_tokens_decoder": {"300": {"contents": "a"}}}), Value::Null, "contents"),
        (Value::Null, json!({"<new>": "5"}), "expected an id"),
    ] {
        let reason = reason(with_files(&json, config, Value::Null, ids));
        assert!(reason.contains(name), "{name}: {reason}");
    }
}

#[test]
fn holes_among_added_ids_keep_the_ids_of_the_file() {
    let mut json = byte_level();
    for (at, id) in [(0, 300), (2, 280), (3, 259), (1, 400)] {
        json["added_tokens"][at]["id"] = json!(id);
    }
    json["post_processor"] = Value::Null;
    let tokenizer = from(&json).unwrap();
    assert_eq!(tokenizer.encode("<s><tool>你好<|end|>", false, true).unwrap(), [300, 280, 259, 400]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_bytes(280)), (401, &b"<tool>"[..]));
    assert!(tokenizer.token_bytes(299).is_empty() && !tokenizer.is_special(299));
    json["added_tokens"][0]["id"] = json!(400);
    assert!(reason(from(&json)).contains("400"));
}

/// transformers 5 ignores `add_bos_token` if there is a `tokenizer.json`.
#[test]
fn the_template_says_what_is_put_in_front() {
    for add in [true, false] {
        let config = json!({"bos_token": "<|end|>", "add_bos_token": add, "add_eos_token": add});
        let tokenizer = with_files(&byte_level(), config, Value::Null, Value::Null).unwrap();
        assert_eq!(tokenizer.encode("", true, false).unwrap(), [258]);
    }
}

#[test]
fn stages_do_what_the_library_does() {
    let byte =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = |pattern: Value, behavior: &str, invert: bool| json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert});
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    let mut before = vec![
        json!({"type": "Digits", "individual_digits": true}),
        json!({"type": "Digits", "individual_digits": false}),
        json!({"type": "Punctuation", "behavior": "MergedWithNext"}),
        json!({"type": "WhitespaceSplit"}),
        json!({"type": "Whitespace"}),
        json!({"type": "BertPreTokenizer"}),
        json!({"type": "UnicodeScripts"}),
        json!({"type": "CharDelimiterSplit", "delimiter": "a"}),
    ];
    for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] {
        for invert in [false, true] {
            before.push(split(json!({"String": "a"}), behavior, invert));
            before.push(split(json!({"Regex": "[ab]|1*"}), behavior, invert));
        }
    }
    for scheme in ["always", "first", "never"] {
        before.extend([metaspace(scheme, true), metaspace(scheme, false)]);
    }
    let list = |stages: &[&Value]| json!({"type": "Sequence", "normalizers": stages});
    let normalizers = [
        Value::Null,
        json!({"type": "Strip", "strip_left": true, "strip_right": false}),
        json!({"type": "NFKC"}),
        json!({"type": "NFD"}),
        json!({"type": "StripAccents"}),
        json!({"type": "Lowercase"}),
        json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
               "lowercase": true}),
        json!({"type": "Nmt"}),
        json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "b"}),
        json!({"type": "Prepend", "prepend": "a"}),
        list(&[
            &json!({"type": "Strip", "strip_left": true, "strip_right": true}),
            &json!({"type": "Replace", "pattern": {"String": "a"}, "content": ""}),
        ]),
    ];
    let flags = |token: &mut Value, names: &[&str]| {
        names.iter().for_each(|name| token[*name] = json!(true));
    };
    let texts = texts(60);
    let mut compared = 0;
    for normalizer in &normalizers {
        for stage in &before {
            let mut json = byte_level();
            json["normalizer"] = normalizer.clone();
            json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [stage, byte]});
            flags(&mut json["added_tokens"][0], &["lstrip"]);
            flags(&mut json["added_tokens"][1], &["rstrip", "normalized"]);
            flags(&mut json["added_tokens"][2], &["lstrip", "rstrip"]);
            flags(&mut json["added_tokens"][3], &["single_word"]);
            let tokenizer = from(&json).unwrap();
            for key in ["truncation", "padding"] {
                json[key] = Value::Null;
            }
            json["model"]["dropout"] = Value::Null;
            let mut library = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
            for parse_special in [false, true] {
                library.set_encode_special_tokens(!parse_special);
                for text in &texts {
                    let want = library.encode(text.as_str(), false).unwrap();
                    let got = tokenizer.encode(text, false, parse_special).unwrap();
                    assert_eq!(got, want.get_ids(), "{text:?} {normalizer} {stage}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 40_000);
}

#[test]
fn text_without_tokens_is_an_error_that_says_where() {
    // Without a token for unknown text, the library drops such text.
    let mut json = sentence_piece();
    json["model"]["byte_fallback"] = json!(false);
    json["model"]["unk_token"] = Value::Null;
    let tokenizer = from(&json).unwrap();
    for text in ["🍣", "a🍣", "🍣a", "a🍣b", "ab c"] {
        let reason = tokenizer.encode(text, false, false).unwrap_err().to_string();
        assert!(reason.contains("no token for the character") && reason.contains("near byte"), "{reason}");
    }
    assert_eq!(tokenizer.encode("ab", false, false).unwrap().len(), 2);
    // A byte alphabet that lacks one byte, in both kinds of file.
    let mut json = byte_level();
    json["model"]["vocab"].as_object_mut().unwrap().remove("Ā");
    let mut vocab = gguf();
    let at = vocab.tokens.iter().position(|token| token == "Ā").unwrap();
    vocab.tokens[at] = String::new();
    for tokenizer in [from(&json).unwrap(), Tokenizer::from_gguf(vocab).unwrap()] {
        assert!(tokenizer.encode("ab\u{1}c", false, false).is_ok());
        let reason = tokenizer.encode("你ab\0c", false, false).unwrap_err().to_string();
        assert!(reason.contains("the byte 0x00 near byte 5 of the text"), "{reason}");
    }
}

#[test]
fn what_a_file_may_not_ask_for_is_named() {
    let hostile = |change: &dyn Fn(&mut Value)| {
        let mut json = byte_level();
        change(&mut json);
        reason(from(&json))
    };
    let replace = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let many = |stage: &Value, n| json!({"type": "Sequence", "normalizers": vec![stage.clone(); n]});
    let long = "x".repeat(100_000);
    for (reason, name) in [
        (
            hostile(&|j| {
                j["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})
            }),
            "Precompiled",
        ),
        (
            hostile(&|j| {
                j["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="})
            }),
            "Precompiled",
        ),
        (hostile(&|j| j["normalizer"] = many(&replace, 34)), "256-fold"),
        (hostile(&|j| j["normalizer"] = many(&json!({"type": "NFC"}), 65)), "more than 64"),
        (hostile(&|j| j["normalizer"] = json!({"type": "Prepend", "prepend": long})), "256-fold"),
        (
            hostile(&|j| {
                j["normalizer"] = json!({"type": "Replace", "pattern": {"String": ""}, "content": "a"})
            }),
            "empty pattern",
        ),
        (hostile(&|j| j["normalizer"] = json!({"type": "New"})), "`New`"),
        (hostile(&|j| j["normalizer"] = json!({"type": "NFC", "form": 1})), "`form`"),
        (hostile(&|j| j["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0})), "FixedLength"),
        (hostile(&|j| j["pre_tokenizer"]["new"] = json!(1)), "`new`"),
        (hostile(&|j| j["pre_tokenizer"]["use_regex"] = json!("yes")), "use_regex"),
        (
            hostile(&|j| {
                j["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false})
            }),
            "without",
        ),
        (
            hostile(&|j| {
                j["pre_tokenizer"] =
                    json!({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Odd", "invert": false})
            }),
            "behavior",
        ),
        (hostile(&|j| j["post_processor"] = json!({"type": "New"})), "`New`"),
        (hostile(&|j| j["decoder"]["new"] = json!(1)), "`new`"),
        (
            hostile(&|j| j["decoder"] = json!({"type": "Sequence", "decoders": vec![replace.clone(); 34]})),
            "128-fold",
        ),
        (hostile(&|j| j["model"]["new"] = json!(1)), "new"),
        (hostile(&|j| j["model"]["type"] = json!("Neural")), "Neural"),
        (hostile(&|j| j["model"]["unk_id"] = json!(3)), "unk_id"),
        (hostile(&|j| j["model"]["vocab"]["x".repeat(5_000)] = json!(300)), "4096 bytes"),
        (hostile(&|j| j["added_tokens"][0]["content"] = json!(long)), "512 bytes"),
        (hostile(&|j| j["added_tokens"][0]["odd"] = json!(1)), "odd"),
        (hostile(&|j| j["version"] = json!("2.0")), "2.0"),
    ] {
        assert!(reason.contains(name), "{name}: {reason}");
    }
}

#[test]
fn encoding_stops_when_it_is_told_to_and_never_takes_long() {
    use crate::output::FinishReason;
    let tokenizer = from(&byte_level()).unwrap();
    let text = "ab ".repeat(50_000);
    let stop = || Some(FinishReason::Cancelled);
    let halt = tokenizer.encode_watched(&text, false, false, &mut Watch::new(&stop, usize::MAX)).unwrap_err();
    assert!(matches!(halt, Halt::Stopped(FinishReason::Cancelled)));
    // Too many tokens are found early: after some tokens, or at once if the number of bytes already shows it.
    let halt = tokenizer.encode_watched(&text, false, false, &mut Watch::new(&|| None, 10)).unwrap_err();
    assert!(matches!(halt, Halt::TooMany(n) if n > 10), "{halt:?}");
    let ids = tokenizer.encode_watched(&text, false, false, &mut Watch::new(&|| None, usize::MAX)).unwrap();
    assert_eq!(ids.len(), 100_000);
    // A word of a megabyte; and spaces for which every match attempt reads to the end, as in the library.
    assert_eq!(tokenizer.encode(&"ab".repeat(500_000), false, false).unwrap().len(), 500_000);
    let mut json = byte_level();
    json["added_tokens"][2]["content"] = json!(" ");
    json["added_tokens"][2]["rstrip"] = json!(true);
    let tokenizer = from(&json).unwrap();
    let spaces = |n| format!("{}x", " ".repeat(n));
    assert_eq!(tokenizer.encode(&spaces(1_000_000), false, false).unwrap().len(), 1_000_001);
    let mut json = json.clone();
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    let library = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
    let want = library.encode(spaces(50), false).unwrap();
    assert_eq!(tokenizer.encode(&spaces(50), false, false).unwrap(), want.get_ids());
}

/// If the error were ignored, the control tokens in that file would be missing without notice.
#[test]
fn a_damaged_file_beside_tokenizer_json_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, byte_level().to_string()).unwrap();
    for name in ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"] {
        std::fs::write(folder.path().join(name), "[").unwrap();
        match Tokenizer::from_json_file(&path) {
            Err(Error::InvalidFile { path, .. }) => assert!(path.ends_with(name)),
            other => panic!("{name}: {:?}", other.err()),
        }
        std::fs::write(folder.path().join(name), "{}").unwrap();
    }
    assert!(Tokenizer::from_json_file(&path).is_ok());
}

/// The same as in transformers 5: the flags of the later file count, but a control token stays one.
#[test]
fn flags_that_differ_are_those_of_tokenizer_config() {
    let flagged = |normalized: bool, special: bool| {
        json!({"content": "<T>", "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": normalized, "special": special})
    };
    for flags in 0..16 {
        let [a, b, c, d] = [1, 2, 4, 8].map(|bit| flags & bit != 0);
        let mut token = flagged(a, b);
        token["id"] = json!(5);
        let json = json!({
            "version": "1.0", "added_tokens": [token], "normalizer": {"type": "Lowercase"},
            "model": {"type": "BPE", "unk_token": "?", "vocab": {"?": 0, "<": 1, "t": 2, ">": 3, "T": 4}, "merges": []},
        });
        let config = json!({"added_tokens_decoder": {"5": flagged(c, d)}});
        let tokenizer = with_files(&json, config, Value::Null, Value::Null).unwrap();
        let (special, normalized) = (b || d, c);
        let want: &[u32] = if normalized { &[5, 5] } else { &[1, 2, 3, 5] };
        assert_eq!(tokenizer.encode("<t><T>", false, true).unwrap(), want, "{flags}");
        assert_eq!(tokenizer.is_special(5), special, "{flags}");
        let want: &[u32] = if special { &[1, 2, 3, 1, 2, 3] } else { want };
        assert_eq!(tokenizer.encode("<t><T>", false, false).unwrap(), want, "{flags}");
    }
}

/// Base64 of a SentencePiece table that replaces `x` and nothing else.
fn charsmap(replacement: &str) -> String {
    let mut trie = [0u32; 512];
    trie[0x78] = 0x78 | 1 << 8 | 0x100 << 10; // `x`; its leaf is 0x100 further, and means the text at 0
    let mut bytes = (4 * trie.len() as u32).to_le_bytes().to_vec();
    bytes.extend(trie.iter().flat_map(|unit| unit.to_le_bytes()));
    bytes.extend(replacement.as_bytes());
    bytes.push(0);
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let n = group.iter().chain(&[0, 0]).take(3).fold(0, |n, &byte| n << 8 | usize::from(byte));
        let digit =
            |i: usize| if i <= group.len() { char::from(digits[n >> (18 - 6 * i) & 63]) } else { '=' };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

/// Normalizers like those of T5, XGLM and mBART. The longest replacement in SentencePiece's table is that of U+FDFA.
#[test]
fn the_normalizers_of_converted_unigram_models_are_no_excess() {
    let fdfa = "صلى الله عليه وسلم";
    assert_eq!(fdfa.len(), 33);
    let mut json = unigram();
    json["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Precompiled", "precompiled_charsmap": charsmap(fdfa)},
        {"type": "Lowercase"},
        {"type": "Strip", "strip_left": false, "strip_right": true},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]});
    let tokenizer = from(&json).unwrap();
    let library = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
    for text in ["ab   a b ", "x", " x  x你好", "AB  axb"] {
        let want = library.encode(text, false).unwrap();
        assert_eq!(tokenizer.encode(text, false, true).unwrap(), want.get_ids(), "{text:?}");
    }
    // If the pattern matches the empty string, the replacement is put between all characters.
    json["normalizer"]["normalizers"][3] =
        json!({"type": "Replace", "pattern": {"Regex": " *"}, "content": "▁"});
    assert!(reason(from(&json)).contains("256-fold"));
}

#[test]
fn a_text_that_normalizers_could_make_too_long_is_an_error() {
    let long = "b".repeat(2 << 20);
    let run = |stages: Value| {
        let normalizers = Normalizers::read(&json!({"type": "Sequence", "normalizers": stages})).unwrap();
        let mut text = NormalizedString::from(long.as_str());
        normalizers.run(&mut text, &mut Watch::none()).map(|()| text.len())
    };
    let replace =
        |text: &str| json!({"type": "Replace", "pattern": {"String": "a"}, "content": text.repeat(200)});
    let reason = run(json!([replace("c")])).unwrap_err().to_string();
    assert!(reason.contains("200-fold") && reason.contains("got 2097152"), "{reason}");
    // Only the actual growth of the text counts, not what the stage before could have added.
    assert_eq!(run(json!([{"type": "NFC"}, {"type": "Lowercase"}])).unwrap(), long.len());
}

#[test]
fn work_for_all_expressions_of_a_file_is_bounded() {
    let with = |n: usize| {
        let mut json = byte_level();
        let split = json!({"type": "Split", "pattern": {"Regex": "(?:a|b)*a(?:a|b){9}"}, "behavior": "Isolated",
                           "invert": false});
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": vec![split; n]});
        from(&json)
    };
    assert!(with(1).is_ok());
    assert!(reason(with(64)).contains("ways to match"));
}

#[test]
fn a_text_that_is_one_word_can_be_stopped() {
    use crate::output::FinishReason;
    use std::cell::Cell;
    let json = sentence_piece();
    let tokenizer = from(&json).unwrap();
    let text = "ab a ".repeat(40_000);
    let asked = Cell::new(0);
    let stop_at = |nth: usize| {
        asked.set(0);
        let stop = || {
            asked.set(asked.get() + 1);
            (asked.get() == nth).then_some(FinishReason::Deadline)
        };
        tokenizer.encode_watched(&text, false, false, &mut Watch::new(&stop, usize::MAX))
    };
    assert_eq!(stop_at(0).unwrap().len(), 120_001);
    let all = asked.get();
    assert!(all > 8, "{all}");
    for nth in 1..=all {
        assert!(matches!(stop_at(nth), Err(Halt::Stopped(FinishReason::Deadline))), "{nth}");
    }
    // The number of bytes shows that the text is too long, if no unknown token can stand for many characters.
    let too_many = |json: &Value| match from(json).unwrap().encode_watched(
        &text,
        false,
        false,
        &mut Watch::new(&|| None, 10),
    ) {
        Err(Halt::TooMany(n)) => n,
        other => panic!("{other:?}"),
    };
    assert!(too_many(&json) > 10_000);
    let mut fewer = json.clone();
    fewer["model"]["vocab"].as_object_mut().unwrap().remove("<0x41>");
    assert!(too_many(&fewer) < 10_000);
    // Characters without a token are never cut apart.
    assert_eq!(tokenizer.encode(&"é".repeat(50_000), false, false).unwrap().len(), 100_001);
    let reason = tokenizer.encode(&"é".repeat(1_200_000), false, false).unwrap_err().to_string();
    assert!(reason.contains("got 1200001 near byte 0"), "{reason}");
}

#[test]
fn an_expression_of_a_normalizer_can_be_stopped() {
    use crate::output::FinishReason;
    use std::cell::Cell;
    let mut json = byte_level();
    json["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "a+b"}, "content": "c"});
    let tokenizer = from(&json).unwrap();
    let asked = Cell::new(0);
    let stop = || {
        asked.set(asked.get() + 1);
        (asked.get() == 20).then_some(FinishReason::Cancelled)
    };
    let mut watch = Watch::new(&stop, usize::MAX);
    let halt = tokenizer.encode_watched(&"a".repeat(3_000), false, false, &mut watch).unwrap_err();
    assert!(matches!(halt, Halt::Stopped(FinishReason::Cancelled)), "{halt:?}");
}

/// Cutting a word changes no ids, whatever merges, unknown characters and bytes a vocabulary has.
#[test]
fn cut_words_have_the_librarys_ids() {
    let mut state = 17;
    let (mut compared, mut cut) = (0, 0);
    for _ in 0..400 {
        let alphabet = ["▁", "a", "b", "é", "你"];
        let mut tokens: Vec<String> = vec!["<unk>".into()];
        tokens.extend(alphabet.iter().filter(|_| below(&mut state, 5) != 0).map(|c| c.to_string()));
        tokens.push("c".into());
        let bytes = below(&mut state, 3) == 0;
        tokens.extend((0..=255u8).filter(|byte| bytes && byte % 7 != 0).map(|byte| format!("<{byte:#04X}>")));
        let mut merges = Vec::new();
        for _ in 0..below(&mut state, 12) {
            let pair = [(); 2].map(|()| tokens[below(&mut state, tokens.len())].clone());
            let result = pair.concat();
            if !tokens.contains(&result) {
                tokens.push(result);
            }
            if !merges.contains(&pair) {
                merges.push(pair);
            }
        }
        let vocab: BTreeMap<&String, usize> = tokens.iter().zip(0..).collect();
        let unk = (below(&mut state, 4) != 0).then_some("<unk>");
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": below(&mut state, 2) == 0, "byte_fallback": bytes,
                      "ignore_merges": below(&mut state, 6) == 0, "vocab": vocab, "merges": merges},
        });
        let tokenizer = from(&json).unwrap();
        let library = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
        for _ in 0..40 {
            let text: String = (0..below(&mut state, 12))
                .map(|_| [&alphabet[..], &["c", "d"]].concat()[below(&mut state, 7)])
                .collect();
            // The library drops unknown characters. Here they are an error.
            let Ok(got) = tokenizer.encode(&text, false, false) else { continue };
            assert_eq!(got, library.encode(text.as_str(), false).unwrap().get_ids(), "{text:?} {json}");
            compared += 1;
            let Encoder::Pipeline(pipeline) = &tokenizer.encoder else { panic!("no pipeline") };
            cut += usize::from(pipeline.vocabulary.pieces(&text) > 1);
        }
    }
    assert!(compared > 8_000 && cut > 2_000, "{compared} {cut}");
}
