//! The model of a tokenizer: words to tokens.
//!
//! The model is read here from `tokenizer.json`, so that its size has a limit and no field is ignored. Then it is
//! built with the builders of the crate `tokenizers`. That crate merges pairs in n log n steps, and remembers the ids
//! of short words.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::{Model as _, ModelWrapper};

use super::byte_alphabet::byte_of;
use super::bytes::spelled_byte;
use super::cuts::Cuts;
use super::guarded;
use super::size::{allocated, of_map, of_texts};
use super::watch::{Halt, Watch};
use crate::config::MAX_VOCAB;
use crate::error::{Error, Result};

/// The most bytes of a token, as the file has it. The longest of published vocabularies are 512 spaces or dashes.
const MAX_TOKEN: usize = 4_096;
/// The same for a Unigram model. It looks for every token at every place of the text, so long tokens take time.
const MAX_UNIGRAM_TOKEN: usize = 512;
/// The most characters of a word that a WordPiece model cuts; its time grows with their square.
const MAX_WORD_CHARS: usize = 256;
/// The most characters that the model gets at once: a megabyte, and what stages put in front of it. That takes about a
/// second, in which the model cannot be stopped. Only a text without any place where it can be cut is so long.
const MAX_PIECE: usize = (1 << 20) + 64;
/// The number of words whose tokens the crate remembers. Each takes up to 8 KiB, mostly about 100 bytes.
const CACHED_WORDS: usize = 4_096;

/// `model` of a `tokenizer.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Declared {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Tokens,
    merges: Option<Vec<Merge>>,
    /// Makes ids random, for training. It is switched off here.
    #[serde(rename = "dropout")]
    _dropout: Option<f32>,
    unk_token: Option<String>,
    unk_id: Option<usize>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    max_input_chars_per_word: Option<usize>,
}

impl Declared {
    /// The type of the model. An error if there is a field that this type does not have.
    fn kind(&self) -> Result<&'static str> {
        // Files of early versions have no type.
        let kind = match (&self.kind, &self.vocab) {
            (Some(kind), _) => kind.as_str(),
            (None, Tokens::Scores(_)) => "Unigram",
            (None, _) if self.merges.is_some() => "BPE",
            (None, _) if self.max_input_chars_per_word.is_some() => "WordPiece",
            (None, _) => "WordLevel",
        };
        // The fields that each type has. Nothing would read a field of another type.
        let (kind, allowed): (_, &[&str]) = match kind {
            "BPE" => (
                "BPE",
                &[
                    "unk_token",
                    "continuing_subword_prefix",
                    "end_of_word_suffix",
                    "fuse_unk",
                    "ignore_merges",
                    "byte_fallback",
                    "merges",
                ],
            ),
            "Unigram" => ("Unigram", &["unk_id", "byte_fallback"]),
            "WordLevel" => ("WordLevel", &["unk_token"]),
            "WordPiece" => {
                ("WordPiece", &["unk_token", "continuing_subword_prefix", "max_input_chars_per_word"])
            }
            kind => return refuse(format!("model: unknown type `{kind}`")),
        };
        let there = [
            ("merges", self.merges.is_some()),
            ("unk_token", self.unk_token.is_some()),
            ("unk_id", self.unk_id.is_some()),
            ("continuing_subword_prefix", self.continuing_subword_prefix.is_some()),
            ("end_of_word_suffix", self.end_of_word_suffix.is_some()),
            ("fuse_unk", self.fuse_unk.is_some()),
            ("byte_fallback", self.byte_fallback.is_some()),
            ("ignore_merges", self.ignore_merges.is_some()),
            ("max_input_chars_per_word", self.max_input_chars_per_word.is_some()),
        ];
        if let Some((name, _)) = there.iter().find(|(name, there)| *there && !allowed.contains(name)) {
            return refuse(format!("model {kind}: unknown field `{name}`"));
        }
        Ok(kind)
    }
}

/// A merge. Files write it in two ways.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

/// A map from tokens to ids, or a list of tokens and scores in the order of ids.
enum Tokens {
    Ids(HashMap<String, u32>),
    Scores(Vec<(String, f64)>),
}

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("tokens with their ids, or a list of tokens with their scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Tokens, A::Error> {
                let mut tokens = HashMap::new();
                while let Some((token, id)) = map.next_entry::<String, u32>()? {
                    if let Some(other) = tokens.insert(token, id).filter(|other| *other != id) {
                        return Err(serde::de::Error::custom(format!(
                            "a token has the ids {other} and {id}"
                        )));
                    }
                }
                Ok(Tokens::Ids(tokens))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Tokens, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = seq.next_element()? {
                    tokens.push(token);
                }
                Ok(Tokens::Scores(tokens))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A model that is ready to run.
pub(super) struct Vocabulary {
    model: ModelWrapper,
    /// The ids of all its tokens, without added tokens.
    pub(super) ids: HashMap<String, u32>,
    n_merges: usize,
    /// The most bytes of a word that one token can stand for, if there is a limit.
    longest: Option<usize>,
    /// Whether it merges pairs. Such a model leaves out characters that it does not know.
    bpe: bool,
    byte_level: bool,
    /// Where a word may be cut, if that is known.
    cuts: Option<Cuts>,
}

/// Where a word may be cut, if that is known.
fn cuts(bpe: &Bpe) -> Option<Cuts> {
    // With these settings, ids depend on the ends of a word or on the whole word.
    if bpe.continuing_subword_prefix.is_some() || bpe.end_of_word_suffix.is_some() || bpe.ignore_merges {
        return None;
    }
    let single = |token: &String| {
        let mut chars = token.chars();
        chars.next().filter(|_| chars.next().is_none())
    };
    let known = bpe.vocab.keys().filter_map(single).collect();
    Some(Cuts::new(Some(known), bpe.merges.iter().map(|(left, right)| left.chars().chain(right.chars()))))
}

/// What a BPE model is made of.
pub(super) struct Bpe {
    pub(super) vocab: HashMap<String, u32>,
    pub(super) merges: Vec<(String, String)>,
    pub(super) unk_token: Option<String>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
    pub(super) fuse_unk: bool,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
}

fn refuse<T>(reason: String) -> Result<T> {
    Err(Error::Tokenizer(reason))
}

fn check_token(token: &str, most: usize) -> Result<()> {
    if token.len() > most {
        let start: String = token.chars().take(20).collect();
        let got = token.len();
        return refuse(format!("token {start:?}...: expected at most {most} bytes, got {got}"));
    }
    Ok(())
}

fn check_ids(vocab: &HashMap<String, u32>) -> Result<()> {
    if vocab.is_empty() {
        return refuse("model: expected tokens, got none".into());
    }
    let mut given: HashMap<u32, &str> = HashMap::with_capacity(vocab.len());
    for (token, &id) in vocab {
        check_token(token, MAX_TOKEN)?;
        if id as usize >= MAX_VOCAB {
            return refuse(format!("token {token:?}: expected an id below {MAX_VOCAB}, got {id}"));
        }
        if let Some(other) = given.insert(id, token) {
            // Sorted, because a map has no order.
            let (first, second) =
                if other < token.as_str() { (other, token.as_str()) } else { (token.as_str(), other) };
            return refuse(format!("id {id} is given to both {first:?} and {second:?}"));
        }
    }
    Ok(())
}

impl Vocabulary {
    /// The usual name of the model, such as `BPE`.
    pub(super) fn kind(&self) -> &'static str {
        match self.model {
            ModelWrapper::BPE(_) if self.byte_level => "byte-level BPE",
            ModelWrapper::BPE(_) => "BPE",
            ModelWrapper::Unigram(_) => "unigram",
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "words",
        }
    }

    /// Builds the model of a `tokenizer.json`. With `byte_level`, words come in the byte alphabet.
    pub(super) fn new(declared: Declared, byte_level: bool) -> Result<Self> {
        let kind = declared.kind()?;
        let vocab = match declared.vocab {
            Tokens::Ids(vocab) if kind != "Unigram" => vocab,
            Tokens::Scores(vocab) if kind == "Unigram" => {
                return Self::unigram(vocab, declared.unk_id, declared.byte_fallback.unwrap_or(false));
            }
            _ => return refuse(format!("model {kind}: expected another form of `vocab`")),
        };
        if kind == "BPE" {
            let mut merges = Vec::new();
            for (rank, merge) in declared.merges.unwrap_or_default().into_iter().enumerate() {
                merges.push(match merge {
                    Merge::Pair(left, right) => (left, right),
                    // The first line of a `merges.txt`.
                    Merge::Text(text) if text.starts_with("#version") => continue,
                    Merge::Text(text) => match text.split_once(' ').filter(|(_, right)| !right.contains(' '))
                    {
                        Some((left, right)) => (left.to_string(), right.to_string()),
                        None => return refuse(format!("merge {rank}: expected two tokens, got {text:?}")),
                    },
                });
            }
            let bpe = Bpe {
                vocab,
                merges,
                unk_token: declared.unk_token,
                // An empty one is none.
                continuing_subword_prefix: declared.continuing_subword_prefix.filter(|text| !text.is_empty()),
                end_of_word_suffix: declared.end_of_word_suffix.filter(|text| !text.is_empty()),
                fuse_unk: declared.fuse_unk.unwrap_or(false),
                byte_fallback: declared.byte_fallback.unwrap_or(false),
                ignore_merges: declared.ignore_merges.unwrap_or(false),
            };
            return Self::bpe(bpe, byte_level);
        }
        check_ids(&vocab)?;
        let ids = vocab.clone();
        let Some(unk) = declared.unk_token else {
            return refuse(format!("model {kind}: the field `unk_token` is missing"));
        };
        let vocab: Vocab = vocab.into_iter().collect();
        let model = match kind {
            "WordLevel" => guarded("model", || WordLevel::builder().vocab(vocab).unk_token(unk).build())
                .map(ModelWrapper::WordLevel)?,
            _ => {
                let prefix = declared.continuing_subword_prefix.unwrap_or_else(|| "##".into());
                let longest = declared.max_input_chars_per_word.unwrap_or(100);
                if longest > MAX_WORD_CHARS {
                    let reason = format!("expected at most {MAX_WORD_CHARS}, got {longest}");
                    return refuse(format!("model WordPiece: field `max_input_chars_per_word`: {reason}"));
                }
                guarded("model", || {
                    WordPiece::builder()
                        .vocab(vocab)
                        .unk_token(unk)
                        .continuing_subword_prefix(prefix)
                        .max_input_chars_per_word(longest)
                        .build()
                })
                .map(ModelWrapper::WordPiece)?
            }
        };
        Ok(Vocabulary { model, ids, n_merges: 0, longest: None, bpe: false, byte_level, cuts: None })
    }

    fn unigram(tokens: Vec<(String, f64)>, unk_id: Option<usize>, byte_fallback: bool) -> Result<Self> {
        if tokens.len() > MAX_VOCAB {
            return refuse(format!("expected at most {MAX_VOCAB} tokens, got {}", tokens.len()));
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for ((token, score), id) in tokens.iter().zip(0..) {
            check_token(token, MAX_UNIGRAM_TOKEN)?;
            if !score.is_finite() {
                return refuse(format!("token {token:?}: expected a finite score, got {score}"));
            }
            if let Some(other) = ids.insert(token.clone(), id) {
                return refuse(format!("token {token:?} has two ids, {other} and {id}"));
            }
        }
        let model = guarded("model", || {
            let mut unigram = Unigram::from(tokens, unk_id, byte_fallback)?;
            unigram.resize_cache(CACHED_WORDS);
            Ok(unigram)
        })?;
        Ok(Vocabulary {
            model: ModelWrapper::Unigram(model),
            ids,
            n_merges: 0,
            longest: None,
            bpe: false,
            byte_level: false,
            cuts: None,
        })
    }

    /// A model that merges pairs.
    pub(super) fn bpe(bpe: Bpe, byte_level: bool) -> Result<Self> {
        check_ids(&bpe.vocab)?;
        let ids = bpe.vocab.clone();
        // In the byte alphabet, expressions have cut the text already.
        let cuts = if byte_level { None } else { cuts(&bpe) };
        let n_merges = bpe.merges.len();
        let vocab: Vocab = bpe.vocab.into_iter().collect();
        // A fused unknown token may stand for any number of characters. If each byte is a token, nothing is unknown.
        let all_bytes = || (0..=255u8).all(|byte| ids.contains_key(&spelled_byte(byte)));
        let fuses = bpe.fuse_unk && bpe.unk_token.is_some() && !(bpe.byte_fallback && all_bytes());
        let longest = ids.keys().map(String::len).max().filter(|_| !fuses).map(|longest| longest.max(4));
        let model = guarded("model", || {
            let mut builder = BPE::builder()
                .vocab_and_merges(vocab, bpe.merges)
                .cache_capacity(CACHED_WORDS)
                .fuse_unk(bpe.fuse_unk)
                .byte_fallback(bpe.byte_fallback)
                .ignore_merges(bpe.ignore_merges);
            if let Some(unk) = bpe.unk_token {
                builder = builder.unk_token(unk);
            }
            if let Some(prefix) = bpe.continuing_subword_prefix {
                builder = builder.continuing_subword_prefix(prefix);
            }
            if let Some(suffix) = bpe.end_of_word_suffix {
                builder = builder.end_of_word_suffix(suffix);
            }
            builder.build()
        })?;
        let model = ModelWrapper::BPE(model);
        Ok(Vocabulary { model, ids, n_merges, longest, bpe: true, byte_level, cuts })
    }

    /// Bytes of memory, which can be a tenth of a small model. The crate does not say how much it holds, so it is
    /// estimated from the vocabulary: two maps, from text to id and from id to text. Of the words that it will
    /// remember, the entries are counted, and not their texts.
    pub(super) fn size(&self) -> usize {
        let Vocabulary { model, ids, n_merges, cuts, .. } = self;
        let with_scores = matches!(model, ModelWrapper::Unigram(_));
        let scores = if with_scores { allocated(ids.len() * size_of::<(String, f64)>()) } else { 0 };
        let words = if self.bpe || with_scores { CACHED_WORDS } else { 0 };
        let merges = of_map::<((u32, u32), (u32, u32))>(*n_merges);
        let cuts = cuts.as_ref().map_or(0, Cuts::size);
        3 * of_texts(ids) + scores + of_map::<(String, Vec<u32>)>(words) + merges + cuts
    }

    /// The least number of tokens that so many bytes can become.
    pub(super) fn at_least(&self, bytes: usize) -> usize {
        self.longest.map_or(0, |longest| bytes.div_ceil(longest))
    }

    /// Appends the tokens of a word to `into`. A part of the word without a token is an error, where the crate leaves
    /// it out. `place` says where the word is, for messages.
    pub(super) fn tokenize(
        &self,
        word: &str,
        into: &mut Vec<u32>,
        watch: &mut Watch<'_>,
        place: &dyn Fn(usize) -> String,
    ) -> std::result::Result<(), Halt> {
        watch.tokens(into.len() + self.at_least(word.len()))?;
        let mut done = 0;
        while done < word.len() {
            let piece = self.piece(&word[done..]);
            watch.work(piece.len())?;
            if piece.len() > MAX_PIECE && piece.chars().count() > MAX_PIECE {
                let (got, at) = (piece.chars().count(), place(done));
                let reason = format!(
                    "expected at most {MAX_PIECE} characters without a place to cut them, got {got} {at}"
                );
                return Err(Error::Tokenizer(reason).into());
            }
            let tokens = guarded("encoding failed", || self.model.tokenize(piece))?;
            if self.bpe {
                let covered = tokens.last().map_or(0, |token| token.offsets.1);
                if covered != piece.len() {
                    return Err(self.missing(piece, &|offset| place(done + offset)).into());
                }
            }
            into.extend(tokens.iter().map(|token| token.id));
            watch.tokens(into.len())?;
            done += piece.len();
        }
        Ok(())
    }

    /// The beginning of a word that the model can take alone.
    fn piece<'a>(&self, word: &'a str) -> &'a str {
        self.cuts.as_ref().map_or(word, |cuts| &word[..cuts.first(word)])
    }

    /// The number of tokens of a word.
    #[cfg(test)]
    pub(super) fn pieces(&self, word: &str) -> usize {
        let mut rest = word;
        std::iter::from_fn(|| {
            let piece = self.piece(rest);
            rest = &rest[piece.len()..];
            (!piece.is_empty()).then_some(())
        })
        .count()
    }

    /// The error for a word that has a character without a token.
    fn missing(&self, word: &str, place: &dyn Fn(usize) -> String) -> Error {
        let known: HashSet<char> =
            word.chars().filter(|c| self.ids.contains_key(c.encode_utf8(&mut [0; 4]) as &str)).collect();
        let lost = word.char_indices().enumerate().find(|(_, (_, c))| !known.contains(c));
        let (nth, at, c) = lost.map_or((0, 0, ' '), |(nth, (at, c))| (nth, at, c));
        let reason = match byte_of(c).filter(|_| self.byte_level) {
            // In the byte alphabet, each character of a word is a byte of the text.
            Some(byte) => format!("the byte {byte:#04X} {}", place(nth)),
            None => format!("the character {c:?} {}", place(at)),
        };
        Error::Tokenizer(format!("the vocabulary has no token for {reason}"))
    }
}
