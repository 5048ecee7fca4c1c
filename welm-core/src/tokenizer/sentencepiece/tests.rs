use std::path::Path;

use serde_json::{Value, json};

use super::super::added::SideFiles;
use super::super::{GgufVocab, Tokenizer};
use super::*;

/// Models that `tests/reference/sentencepiece_models.py` trains.
const MODELS: [&str; 13] = [
    "unigram",
    "unigram_bytes",
    "unigram_folding",
    "unigram_suffix",
    "unigram_unused",
    "unigram_spaces",
    "bpe",
    "bpe_llama",
    "bpe_gemma",
    "bpe_folding",
    "bpe_suffix",
    "bpe_unused",
    "bpe_equal",
];

fn fixture(file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/sentencepiece").join(file);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json_fixture(file: &str) -> Value {
    serde_json::from_slice(&fixture(file)).unwrap()
}

/// Texts, and the ids and decoded texts that `sentencepiece` gives for them.
fn expected(name: &str) -> Vec<(String, Vec<u32>, String)> {
    let list = |value: &Value| value.as_array().unwrap().clone();
    let text = |value: Value| value.as_str().unwrap().to_string();
    let of_model = json_fixture(&format!("{name}.json"));
    let ids = list(&of_model["ids"]).into_iter().map(|ids| serde_json::from_value(ids).unwrap());
    let (texts, decoded) = (list(&json_fixture("texts.json")), list(&of_model["texts"]));
    assert!(texts.len() > 200 && texts.len() == decoded.len());
    texts.into_iter().zip(ids).zip(decoded).map(|((t, ids), d)| (text(t), ids, text(d))).collect()
}

fn declared(name: &str) -> Declared {
    Declared::from_proto(&fixture(&format!("{name}.model"))).unwrap()
}

fn with_config(name: &str, config: Value) -> Result<Tokenizer> {
    let files = SideFiles { tokenizer_config: config, ..SideFiles::default() };
    Tokenizer::from_model(&fixture(&format!("{name}.model")), &files)
}

#[test]
fn ids_and_texts_are_those_of_sentencepiece() {
    for name in MODELS {
        let tokenizer = with_config(name, Value::Null).unwrap();
        let Declared { space, pieces, .. } = declared(name);
        assert_eq!(tokenizer.vocab_size(), pieces.len());
        for (text, ids, decoded) in expected(name) {
            assert_eq!(tokenizer.encode(&text, false, false).unwrap(), ids, "{name}: {text:?}");
            // There an unknown piece is shown as one, here it adds nothing.
            if ids.iter().any(|&id| pieces[id as usize].kind == PieceKind::Unknown) {
                continue;
            }
            // The library leaves out the space that the model puts in front. A continuation needs it.
            let got = tokenizer.decode(&ids);
            let got = match (space.add_dummy_prefix, space.remove_extra_whitespaces) {
                _ if !space.escape_whitespaces => &got,
                (_, true) => got.trim_start_matches(' '),
                (true, false) => got.strip_prefix(' ').unwrap_or(&got),
                (false, false) => &got,
            };
            assert_eq!(got, decoded, "{name}: {text:?}");
        }
    }
}

/// The same model as a GGUF file has it.
fn gguf(name: &str) -> GgufVocab {
    let Declared { pieces, unigram, charsmap, space, bos, eos, .. } = declared(name);
    GgufVocab {
        model: if unigram { "t5" } else { "llama" }.into(),
        // Converters write user-defined tokens as they stand in texts.
        tokens: pieces
            .iter()
            .map(|piece| match piece.kind {
                PieceKind::UserDefined => piece.text.replace('▁', " "),
                _ => piece.text.clone(),
            })
            .collect(),
        scores: pieces.iter().map(|piece| piece.score).collect(),
        token_types: pieces.iter().map(|piece| piece.kind as i64 + 1).collect(),
        add_space_prefix: space.add_dummy_prefix,
        remove_extra_whitespaces: space.remove_extra_whitespaces,
        charsmap,
        bos,
        eos,
        add_bos: true,
        ..GgufVocab::default()
    }
}

#[test]
fn the_same_pieces_in_a_gguf_file_have_the_same_ids() {
    for name in ["bpe_llama", "bpe_gemma", "bpe_equal", "bpe_unused"] {
        let tokenizer = Tokenizer::from_gguf(gguf(name)).unwrap();
        // `▁▁` is two spaces in such a file, and not what is written so in a text.
        for (text, ids, _) in expected(name).into_iter().filter(|(text, ..)| !text.contains('▁')) {
            assert_eq!(tokenizer.encode(&text, false, false).unwrap(), ids, "{name}: {text:?}");
        }
        assert_eq!(tokenizer.encode("", true, false).unwrap(), [1]);
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    }
}

/// As llama.cpp, the library adds in f64.
#[test]
fn unigram_pieces_in_a_gguf_file_have_the_librarys_ids() {
    use tokenizers::Model as _;
    for name in ["unigram", "unigram_bytes", "unigram_folding"] {
        let Declared { pieces, byte_fallback, charsmap, space, .. } = declared(name);
        let table = CharsMap::read(&charsmap).unwrap();
        // User-defined ones are cut out before, and the library has no unused ones.
        let vocab = pieces.iter().map(|piece| (piece.text.clone(), f64::from(piece.score))).collect();
        let library = tokenizers::models::unigram::Unigram::from(vocab, Some(0), byte_fallback).unwrap();
        let tokenizer = Tokenizer::from_gguf(gguf(name)).unwrap();
        let defined: Vec<&Piece> =
            pieces.iter().filter(|piece| piece.kind == PieceKind::UserDefined).collect();
        let plain = |text: &str| {
            !text.contains('<') && !defined.iter().any(|piece| text.contains(piece.text.trim_matches('▁')))
        };
        let mut compared = 0;
        for (text, ..) in expected(name).into_iter().filter(|(text, ..)| plain(text)) {
            let none = Trie::new(Vec::new());
            let normalized =
                normalizer::normalize(&text, space, true, table.as_ref(), &none, &mut Watch::none());
            let tokens = library.tokenize(&normalized.unwrap()).unwrap();
            let want: Vec<u32> = tokens.iter().map(|token| token.id).collect();
            assert_eq!(tokenizer.encode(&text, false, false).unwrap(), want, "{name}: {text:?}");
            compared += 1;
        }
        assert!(compared > 100, "{compared}");
    }
}

#[test]
fn gguf_control_tokens_are_found_before_the_rest_and_a_space_follows() {
    let mut vocab = gguf("bpe_llama");
    let encode = |vocab: &GgufVocab, text: &str| {
        Tokenizer::from_gguf(vocab.clone()).unwrap().encode(text, false, true).unwrap()
    };
    let a = encode(&vocab, "a");
    assert_eq!(encode(&vocab, "a</s>a"), [&a[..], &[2], &a].concat());
    assert_ne!(encode(&vocab, "</s> a"), [&[2], &a[..]].concat());
    // Phi-3's control tokens take the spaces after them, three of them excepted.
    vocab.strips_after = true;
    assert_eq!(encode(&vocab, "</s> \n a"), [&[2], &a[..]].concat());
    assert_ne!(encode(&vocab, "<s> a"), [&[1], &a[..]].concat());
    // The key for unknown text is right, whatever the types say.
    let mut vocab = gguf("bpe");
    vocab.unknown = Some(2);
    assert_eq!(encode(&vocab, "ქ").last(), Some(&2));
    vocab.unknown = Some(60_000);
    assert!(Tokenizer::from_gguf(vocab).is_err());
}

#[test]
fn gguf_faults_of_pieces_are_named() {
    for name in ["unigram_folding", "bpe_folding"] {
        let fault = |change: &dyn Fn(&mut GgufVocab)| {
            let mut vocab = gguf(name);
            change(&mut vocab);
            Tokenizer::from_gguf(vocab).err().expect("an error").to_string()
        };
        let long = "x".repeat(5_000);
        for (error, reason) in [
            (fault(&|v| v.scores.truncate(7)), "score for each of"),
            (fault(&|v| v.scores[9] = f32::NAN), "finite score, got NaN"),
            (fault(&|v| v.scores[9] = f32::INFINITY), "finite score, got inf"),
            (fault(&|v| v.token_types.truncate(7)), "type for each of"),
            (fault(&|v| v.tokens[300] = v.tokens[301].clone()), "two ids, 300 and 301"),
            (fault(&|v| v.tokens[300] = long.clone()), "got 5000"),
            (fault(&|v| v.charsmap.truncate(70)), "precompiled_charsmap"),
            (fault(&|v| v.charsmap = vec![0; (1 << 24) + 1]), "at most 16777216 bytes"),
            (
                fault(&|v| v.charsmap.extend([[b'x'; 300].as_slice(), &[0]].concat())),
                "replacements of at most 256 bytes",
            ),
            (fault(&|v| v.bos = None), "none is named"),
            (fault(&|v| v.unknown = Some(1 << 30)), "unknown text"),
        ] {
            assert!(error.contains(reason), "{name}: {reason}: {error}");
        }
        // Fewer than all bytes are none, and without an unknown token, too, some text cannot be encoded.
        let mut vocab = gguf(name);
        let byte = vocab.tokens.iter().position(|token| token == "<0xE1>").unwrap();
        vocab.tokens[byte] = "[PAD]".into();
        vocab.token_types = vocab.token_types.iter().map(|&kind| if kind == 2 { 3 } else { kind }).collect();
        let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
        let error = tokenizer.encode("ab ქ", false, false).unwrap_err().to_string();
        assert!(error.contains("no token for \"ქ\""), "{error}");
    }
}

#[test]
fn files_beside_the_model_add_and_rename_pieces() {
    let tokenizer = with_config(
        "bpe_folding",
        json!({
            "add_bos_token": false, "bos_token": "<|begin|>", "eos_token": {"content": "</s>"},
            "added_tokens_decoder": {
                "3": {"content": "<|begin|>", "special": true, "normalized": false},
                "950": {"content": "<new>", "special": false, "rstrip": true},
            }
        }),
    )
    .unwrap();
    let name = &declared("bpe_folding").pieces[3].text;
    assert_eq!((tokenizer.token_to_id("<|begin|>"), tokenizer.token_to_id(name)), (Some(3), None));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(3), Some(2), 951));
    assert_eq!(tokenizer.token_bytes(950), b"<new>");
    assert!(tokenizer.is_special(3) && !tokenizer.is_special(950) && tokenizer.token_bytes(3).is_empty());
    let a = tokenizer.encode("a", true, true).unwrap();
    assert_eq!(tokenizer.encode("<new>  a", true, true).unwrap(), [&[950], &a[..]].concat());
    assert_eq!(tokenizer.encode("<|begin|>a", true, true).unwrap(), [&[3], &a[..]].concat());
    assert!(!tokenizer.encode("<|begin|>a", true, false).unwrap().contains(&3));
    // Contradictions, and settings of another kind.
    for (config, reason) in [
        (json!({"added_tokens_decoder": {"950": {"content": "</s>"}}}), "</s>"),
        (json!({"added_tokens_decoder": {"3": {"content": "</s>"}}}), "</s>"),
        (json!({"added_tokens_decoder": {"5000000": {"content": "<new>"}}}), "5000000"),
        (json!({"legacy": "yes"}), "legacy"),
    ] {
        let error = with_config("bpe_folding", config).err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn settings_say_what_gets_a_space_and_a_beginning() {
    let encode = |config: Value, text: &str| {
        with_config("bpe_llama", config).unwrap().encode(text, true, true).unwrap()
    };
    let bare = encode(json!({"add_prefix_space": false, "add_bos_token": false}), "a");
    let spaced = encode(json!({"add_bos_token": false}), "a");
    assert_ne!(bare, spaced);
    assert_eq!(encode(json!({}), "a"), [&[1], &spaced[..]].concat());
    assert_eq!(encode(json!({"bos_token": null}), "a"), spaced);
    let begin = |rest: &[u32]| [&[1], &spaced[..], &[2], rest].concat();
    assert_eq!(encode(json!({"legacy": true}), "a</s>a"), begin(&spaced));
    assert_eq!(encode(json!({"legacy": false}), "a</s>a"), begin(&bare));
    assert_eq!(encode(json!({"tokenizer_class": "LlamaTokenizer"}), "a</s>a"), begin(&bare));
    assert_eq!(encode(json!({"tokenizer_class": "InternLM2Tokenizer"}), "a</s>a"), begin(&spaced));
    assert_eq!(encode(json!({"tokenizer_class": "T5Tokenizer"}), "a"), spaced);
}

/// Quadratic work would take hours.
#[test]
fn a_megabyte_of_one_character_takes_no_longer_than_another() {
    for (name, c) in [("unigram_folding", "0"), ("bpe_gemma", " "), ("bpe_unused", "a"), ("bpe_llama", "ქ")]
    {
        let tokenizer = with_config(name, Value::Null).unwrap();
        let ids = tokenizer.encode(&c.repeat((1 << 20) / c.len()), false, false).unwrap();
        assert!(ids.len() > 1 << 16, "{name} {c:?}");
    }
}

#[test]
fn encoding_a_piece_at_a_time_can_be_stopped() {
    use crate::finish_reason::FinishReason;
    for name in MODELS {
        let tokenizer = with_config(name, Value::Null).unwrap();
        let text = "a b中".repeat(20_000);
        let stop = || Some(FinishReason::Cancelled);
        let halt = tokenizer.encode_watched(&text, false, false, &mut Watch::new(&stop, usize::MAX));
        assert!(matches!(halt, Err(Halt::Stopped(FinishReason::Cancelled))), "{name}");
        let halt = tokenizer.encode_watched(&text, false, false, &mut Watch::new(&|| None, 50));
        assert!(matches!(halt, Err(Halt::TooMany(n)) if n > 50), "{name}");
    }
}

#[test]
fn a_damaged_model_is_an_error_or_works_but_never_panics() {
    let mut state = 5u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) as usize) % n
    };
    let mut worked = 0;
    for name in MODELS {
        let whole = fixture(&format!("{name}.model"));
        for _ in 0..150 {
            let mut bytes = whole.clone();
            match below(4) {
                0 => bytes.truncate(below(whole.len())),
                1 => bytes[below(whole.len())] = below(256) as u8,
                // The table of rules and the settings are at the end.
                2 => {
                    let at = whole.len() - 1 - below(1_500);
                    bytes[at] ^= 1 << below(8);
                }
                _ => drop(bytes.drain(below(whole.len() - 40)..).take(1 + below(40))),
            }
            if let Ok(tokenizer) = Tokenizer::from_model(&bytes, &SideFiles::default()) {
                worked += 1;
                for text in ["Hello  世界 ﬁ\u{301}\t½ ﾊﾟ<tool>", "", " ", "ABCß…"] {
                    if let Ok(ids) = tokenizer.encode(text, true, true) {
                        tokenizer.decode(&ids);
                    }
                }
            }
        }
    }
    assert!(worked > 100, "{worked}");
}

/// A field of a message: its number, its kind, and its bytes.
fn field(number: u8, kind: u8, bytes: &[u8]) -> Vec<u8> {
    let len =
        if kind == 2 { vec![bytes.len() as u8 & 0x7F | 0x80, (bytes.len() >> 7) as u8] } else { Vec::new() };
    [&[number << 3 | kind][..], &len, bytes].concat()
}

fn piece(text: &[u8], score: f32, kind: u8) -> Vec<u8> {
    let inside = [field(1, 2, text), field(2, 5, &score.to_le_bytes()), field(3, 0, &[kind])].concat();
    field(1, 2, &inside)
}

/// An unknown piece, `a`, `b`, `ab`, and more fields.
fn small(more: &[Vec<u8>]) -> Result<Tokenizer> {
    let own = [piece(b"<unk>", 0.0, 2), piece(b"a", -1.0, 1), piece(b"b", -2.0, 1), piece(b"ab", -2.5, 1)];
    Tokenizer::from_model(&[&own[..], more].concat().concat(), &SideFiles::default())
}

fn table(units: &[u32], replacements: &[u8]) -> Vec<u8> {
    let units: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let table = [&(units.len() as u32).to_le_bytes()[..], &units, replacements].concat();
    field(3, 2, &field(2, 2, &table))
}

#[test]
fn what_a_model_cannot_be_is_refused_with_the_reason() {
    let text = |text: &str, score, kind| piece(text.as_bytes(), score, kind);
    for (more, reason) in [
        (field(2, 2, &field(3, 0, &[3])), "got WORD"),
        (field(2, 2, &field(3, 0, &[4])), "got CHAR"),
        (field(2, 2, &field(3, 0, &[9])), "got 9"),
        (field(2, 2, &field(3, 2, &[9])), "trainer_spec: field 3"),
        (field(2, 0, &[1]), "tokenizer.model: field 2"),
        (field(5, 2, &field(2, 2, &[1])), "denormalizer_spec"),
        (text("c", f32::NAN, 1), "finite score"),
        (text("c", f32::NEG_INFINITY, 1), "finite score"),
        (text("a", 0.0, 1), "two ids, 1 and 4"),
        (text("", 0.0, 1), "1 to 512 bytes"),
        (text(&"c".repeat(513), 0.0, 1), "1 to 512 bytes, got 513"),
        (text("c", 0.0, 7), "type of 1 to 6, got 7"),
        (text("c", 0.0, 2), "one piece for unknown text, got 2"),
        (text("<0x41>", 0.0, 6), "0 pieces of bytes, got 1"),
        (piece(b"\xFF", 0.0, 1), "UTF-8"),
        (field(2, 2, &[0x98, 0x02, 1]), "256 pieces of bytes, got 0"), // field 35
        (vec![0x0A, 0x7F], "expected a field at byte"),
        (vec![0x0B], "expected a field"),
        (field(3, 2, &field(2, 2, &[9])), "precompiled_charsmap"),
        (table(&[0; 4], b"c"), "zero after the last"),
        (table(&[0; 4], b"\xFF\0"), "UTF-8"),
    ] {
        let error = small(&[more]).err().unwrap_or_else(|| panic!("{reason}")).to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    assert!(small(&[]).is_ok());
    assert!(Tokenizer::from_model(&[], &SideFiles::default()).is_err());
}

#[test]
fn a_table_of_rules_that_leads_nowhere_is_an_error_of_the_text() {
    // At the root, `a` (0x61) leads to the unit 0x61.
    let with = |units: &[(usize, u32)]| {
        let mut array = vec![0u32; 512];
        units.iter().for_each(|&(at, unit)| array[at] = unit);
        small(&[table(&array, "c\0é\0".as_bytes())]).unwrap().encode("a", false, false)
    };
    let leaf = 1 << 8 | 0x100 << 10;
    assert_eq!(with(&[(0x61, 0x61 | leaf), (0x161, 1 << 31)]).unwrap(), [0]); // ▁ and c are unknown
    for (units, reason) in [
        (&[(0x61, 0x61 | leaf), (0x161, 1 << 31 | 77)][..], "whole characters"), // no replacement there
        (&[(0x61, 0x61 | leaf), (0x161, 1 << 31 | 3)], "whole characters"),      // in the middle of one
        (&[(0x61, 0x61 | 1 << 8 | 0x1FFFFF << 10)], "whole characters"),         // outside
    ] {
        let error = with(units).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    // A rule without an end: each unit leads to itself.
    let mut array = vec![0u32; 512];
    array[0x61] = 0x61 | 0x61 << 10;
    let circle = small(&[table(&array, b"c\0")]).unwrap();
    let error = circle.encode(&"a".repeat(1_000), false, false).unwrap_err().to_string();
    assert!(error.contains("at most 256 bytes"), "{error}");
}
