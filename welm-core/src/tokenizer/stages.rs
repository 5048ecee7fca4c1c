//! The stages before the model: normalizers change a text, pre-tokenizers cut it into words.
//!
//! `tokenizer.json` can ask for more than any model needs: doublings of the text one after the other, tables that claim
//! eight gigabytes. So each stage is read here, field by field, and only what is known is passed on to the library:
//! a stage or a field that is not is an error that names it, and how much the normalizers can expand a text is
//! known and bounded before any text comes.
//!
//! Normalizers run in the library, which keeps for each byte where it came from (a beginning's `▁` depends on that).
//! Splitting by expressions, single characters and spaces, and the byte alphabet, need no more than a text: each word
//! goes through the remaining stages and the model before the next one is cut off, so that memory stays
//! small and a deadline is kept.

use serde_json::Value;
use tokenizers::normalizers as library;
use tokenizers::{
    NormalizedString, Normalizer as _, NormalizerWrapper, OffsetReferential, OffsetType, Offsets,
    PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper, SplitDelimiterBehavior,
};

use super::byte_alphabet::char_of;
use super::dfa::{Found, MAX_BUILD, Regex, with_gaps};
use super::guarded;
use super::watch::{Halt, Watch};
use crate::error::{Error, Result};

/// Stages of one kind; real files have up to ten.
const MAX_STAGES: usize = 64;
/// How many bytes all normalizers together may make of one. NFKC and `▁` for spaces are 36; SentencePiece's table
/// (33, for U+FDFA), lowercase and `▁` are 198.
const MAX_GROWTH: usize = 256;
/// Bytes that a normalizer may make of a whole text, at most. The library keeps 16 more for each.
const MAX_NORMALIZED: usize = 1 << 28;
/// Bytes that normalizers and pre-tokenizers may put in front of a text.
const MAX_PREFIX: usize = 64;

/// GPT-2's words, which the stage `ByteLevel` cuts by itself.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

fn refuse<T>(reason: String) -> Result<T> {
    Err(Error::Tokenizer(reason))
}

/// A stage's JSON, of which every field must be asked for.
pub(super) struct Fields<'a> {
    /// `normalizer` and its like, for messages.
    what: &'static str,
    pub(super) kind: &'a str,
    value: &'a Value,
}

impl<'a> Fields<'a> {
    pub(super) fn new(what: &'static str, value: &'a Value) -> Result<Self> {
        match value["type"].as_str() {
            Some(kind) => Ok(Fields { what, kind, value }),
            None => refuse(format!("{what}: expected an object with a `type`, got {}", shown(value))),
        }
    }

    /// Refuses fields that are not among `known`; those of `known` that are absent, too, unless marked by a `?`.
    pub(super) fn check(&self, known: &[&str]) -> Result<()> {
        let (what, kind) = (self.what, self.kind);
        for key in self.value.as_object().into_iter().flat_map(|object| object.keys()) {
            if key != "type" && !known.iter().any(|name| name.trim_end_matches('?') == key) {
                return refuse(format!("{what} {kind}: unknown field `{key}`"));
            }
        }
        match known.iter().find(|name| !name.ends_with('?') && self.value.get(**name).is_none()) {
            Some(name) => refuse(format!("{what} {kind}: the field `{name}` is missing")),
            None => Ok(()),
        }
    }

    fn wrong<T>(&self, key: &str, expected: &str) -> Result<T> {
        let got = shown(&self.value[key]);
        refuse(format!("{} {}: field `{key}`: expected {expected}, got {got}", self.what, self.kind))
    }

    pub(super) fn flag(&self, key: &str, absent: bool) -> Result<bool> {
        match &self.value[key] {
            Value::Null => Ok(absent),
            Value::Bool(flag) => Ok(*flag),
            _ => self.wrong(key, "true or false"),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<&'a str> {
        self.value[key].as_str().map_or_else(|| self.wrong(key, "a string"), Ok)
    }

    fn character(&self, key: &str) -> Result<char> {
        let mut chars = self.text(key)?.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) => Ok(c),
            _ => self.wrong(key, "one character"),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<&'a [Value]> {
        self.value[key].as_array().map(Vec::as_slice).map_or_else(|| self.wrong(key, "a list"), Ok)
    }

    /// `{"String": ..}` or `{"Regex": ..}`; an expression takes of `work`.
    fn pattern(&self, work: &mut usize) -> Result<Find> {
        let object = self.value["pattern"].as_object().filter(|object| object.len() == 1);
        match object
            .and_then(|object| object.iter().next())
            .map(|(key, value)| (key.as_str(), value.as_str()))
        {
            Some(("String", Some(""))) => refuse(format!("{} {}: an empty pattern", self.what, self.kind)),
            Some(("String", Some(text))) => Ok(Find::Text(text.to_string())),
            Some(("Regex", Some(pattern))) => {
                Regex::within(pattern, work).map(|regex| Find::Regex(Box::new(regex)))
            }
            _ => self.wrong("pattern", "a `String` or a `Regex`"),
        }
    }

    fn behavior(&self, key: &str) -> Result<SplitDelimiterBehavior> {
        let known = "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous";
        serde_json::from_value(self.value[key].clone()).or_else(|_| self.wrong(key, known))
    }
}

/// A value for a message.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 200 { text } else { text.chars().take(200).chain("...".chars()).collect() }
}

/// The stages in a stage: those of a `Sequence`, at any depth, or itself.
fn flatten<'a>(
    what: &'static str,
    list: &'static str,
    value: &'a Value,
    into: &mut Vec<Fields<'a>>,
) -> Result<()> {
    if value.is_null() {
        return Ok(());
    }
    let fields = Fields::new(what, value)?;
    if fields.kind == "Sequence" {
        fields.check(&[list])?;
        return fields.list(list)?.iter().try_for_each(|inner| flatten(what, list, inner, into));
    }
    if into.len() == MAX_STAGES {
        return refuse(format!("{what}: more than {MAX_STAGES} stages"));
    }
    into.push(fields);
    Ok(())
}

/// What a `Split` or a `Replace` looks for.
enum Find {
    Text(String),
    Regex(Box<Regex>),
}

/// One step of the normalizer.
enum Normalizer {
    Library(Box<NormalizerWrapper>),
    Replace(Box<Regex>, String),
}

/// All normalizers of a file.
pub(super) struct Normalizers {
    /// With the most bytes that each makes of one.
    stages: Vec<(Normalizer, usize)>,
    /// Whether a text can have fewer bytes afterwards.
    pub(super) shrinks: bool,
    /// Whether a `ByteLevel` is among them.
    pub(super) byte_level: bool,
}

impl Normalizers {
    pub(super) fn read(value: &Value) -> Result<Self> {
        let mut all = Normalizers { stages: Vec::new(), shrinks: false, byte_level: false };
        let mut fields = Vec::new();
        flatten("normalizer", "normalizers", value, &mut fields)?;
        let (mut growth, mut prefix, mut work) = (1usize, 0, MAX_BUILD);
        for fields in &fields {
            let (stage, factor, shrinks) = Self::stage(fields, &mut prefix, &mut work)?;
            all.byte_level |= fields.kind == "ByteLevel";
            all.stages.push((stage, factor));
            all.shrinks |= shrinks;
            growth = growth.saturating_mul(factor);
            if growth > MAX_GROWTH || prefix > MAX_PREFIX {
                return refuse(format!(
                    "normalizer: expected to expand a text at most {MAX_GROWTH}-fold and by {MAX_PREFIX} bytes, got \
                     {growth}-fold and {prefix} bytes"
                ));
            }
        }
        Ok(all)
    }

    /// A stage, the most bytes it can make of one, and whether it can leave fewer.
    fn stage(fields: &Fields<'_>, prefix: &mut usize, work: &mut usize) -> Result<(Normalizer, usize, bool)> {
        let none = || fields.check(&[]);
        let (wrapper, growth, shrinks) = match fields.kind {
            "NFC" => (none().map(|()| NormalizerWrapper::NFC(library::NFC))?, 3, true),
            "NFD" => (none().map(|()| NormalizerWrapper::NFD(library::NFD))?, 3, false),
            "NFKC" => (none().map(|()| NormalizerWrapper::NFKC(library::NFKC))?, 12, true),
            "NFKD" => (none().map(|()| NormalizerWrapper::NFKD(library::NFKD))?, 12, true),
            "Lowercase" => (none().map(|()| NormalizerWrapper::Lowercase(library::Lowercase))?, 2, true),
            "StripAccents" => {
                (none().map(|()| NormalizerWrapper::StripAccents(library::StripAccents))?, 1, true)
            }
            "Nmt" => (none().map(|()| NormalizerWrapper::Nmt(library::Nmt))?, 1, true),
            "ByteLevel" => {
                (none().map(|()| NormalizerWrapper::ByteLevel(library::ByteLevel::new()))?, 2, false)
            }
            "Strip" => {
                fields.check(&["strip_left", "strip_right"])?;
                let (left, right) = (fields.flag("strip_left", true)?, fields.flag("strip_right", true)?);
                (NormalizerWrapper::StripNormalizer(library::Strip::new(left, right)), 1, true)
            }
            "BertNormalizer" => {
                fields.check(&["clean_text", "handle_chinese_chars", "strip_accents?", "lowercase"])?;
                let accents = match &fields.value["strip_accents"] {
                    Value::Null => None,
                    _ => Some(fields.flag("strip_accents", false)?),
                };
                let (clean, chinese) =
                    (fields.flag("clean_text", true)?, fields.flag("handle_chinese_chars", true)?);
                let lowercase = fields.flag("lowercase", true)?;
                let bert = library::BertNormalizer::new(clean, chinese, accents, lowercase);
                (NormalizerWrapper::BertNormalizer(bert), 12, true)
            }
            "Prepend" => {
                fields.check(&["prepend"])?;
                let text = fields.text("prepend")?;
                *prefix += text.len();
                (NormalizerWrapper::Prepend(library::Prepend::new(text.to_string())), 1, false)
            }
            "Precompiled" => {
                fields.check(&["precompiled_charsmap"])?;
                let (precompiled, longest) = precompiled(fields.text("precompiled_charsmap")?)?;
                (NormalizerWrapper::Precompiled(precompiled), longest.max(1), true)
            }
            "Replace" => {
                fields.check(&["pattern", "content"])?;
                let content = fields.text("content")?;
                match fields.pattern(work)? {
                    Find::Text(text) => {
                        let (growth, shrinks) =
                            (content.len().div_ceil(text.len()).max(1), content.len() < text.len());
                        let replace = guarded("normalizer Replace", || library::Replace::new(text, content))?;
                        (NormalizerWrapper::Replace(replace), growth, shrinks)
                    }
                    // One that matches nothing puts its text between all characters.
                    Find::Regex(regex) => {
                        let growth = (content.len() + usize::from(regex.nullable)).max(1);
                        return Ok((Normalizer::Replace(regex, content.to_string()), growth, true));
                    }
                }
            }
            kind => return refuse(format!("normalizer: unknown type `{kind}`")),
        };
        Ok((Normalizer::Library(Box::new(wrapper)), growth, shrinks))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Changes a text in place, asking between the stages whether to go on. What a stage could make too long is an
    /// error; how long the text is by then counts, not how long the stages before could have made it.
    pub(super) fn run(
        &self,
        text: &mut NormalizedString,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<(), Halt> {
        for (stage, growth) in &self.stages {
            watch.work(text.len())?;
            let len = text.len();
            if len.saturating_mul(*growth) > MAX_NORMALIZED {
                let most = MAX_NORMALIZED / growth;
                return Err(Error::Tokenizer(format!(
                    "a normalizer that may expand a text {growth}-fold: expected a text of at most {most} bytes, got {len}"
                ))
                .into());
            }
            match stage {
                Normalizer::Library(library) => guarded("normalizer", || library.normalize(text))?,
                Normalizer::Replace(regex, content) => {
                    let found = Found(regex.find_all(text.get(), watch)?);
                    guarded("normalizer", || text.replace(found, content))?;
                }
            }
        }
        Ok(())
    }
}

/// SentencePiece's table of replacements, and the longest one in bytes. Its header says how long its trie is; the
/// library believes it and allocates.
fn precompiled(encoded: &str) -> Result<(library::Precompiled, usize)> {
    let bytes = from_base64(encoded).unwrap_or_default();
    let trie_len = bytes.first_chunk().map_or(0, |head| u32::from_le_bytes(*head) as usize);
    let Some(texts) = bytes.get(4..).and_then(|rest| rest.get(trie_len..)).filter(|_| trie_len >= 4) else {
        let len = bytes.len();
        return refuse(format!(
            "normalizer Precompiled: expected a trie and texts in base64, got {len} bytes, {trie_len} of them the trie"
        ));
    };
    // After the trie come the replacements, each with a zero after it.
    let longest = texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    let table = guarded("normalizer Precompiled", || Ok(library::Precompiled::from(&bytes)?))?;
    Ok((table, longest))
}

fn from_base64(encoded: &str) -> Option<Vec<u8>> {
    let digits = encoded.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let (mut bits, mut n) = (0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, n) = (bits << 6 | u32::from(value), n + 6);
        if n >= 8 {
            n -= 8;
            bytes.push((bits >> n) as u8);
        }
    }
    Some(bytes)
}

/// One step of the pre-tokenizer.
enum PreTokenizer {
    Split {
        find: Find,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// Single characters that are of a kind.
    Chars(Kind, SplitDelimiterBehavior),
    /// Writes each byte as a character of the byte alphabet.
    Bytes,
    /// Puts a text in front, where the word does not begin with it.
    Prefix {
        text: char,
        only_first: bool,
    },
    /// Writes a character for each space.
    Spaces(char),
    Library(Box<PreTokenizerWrapper>),
}

#[derive(Clone, Copy)]
enum Kind {
    Numeric,
    Space,
    Is(char),
}

impl Kind {
    fn has(self, c: char) -> bool {
        match self {
            Kind::Numeric => c.is_numeric(),
            Kind::Space => c.is_whitespace(),
            Kind::Is(other) => c == other,
        }
    }
}

/// All pre-tokenizers of a file.
pub(super) struct PreTokenizers {
    stages: Vec<PreTokenizer>,
    /// Whether a part of a text can get lost.
    pub(super) shrinks: bool,
    /// Whether words are written in the byte alphabet.
    pub(super) byte_level: bool,
    /// Whether it matters which word begins the text.
    pub(super) knows_first: bool,
}

/// A word, where it begins in the text that the first stage got, and whether it begins the whole prompt.
#[derive(Clone, Copy)]
pub(super) struct Word<'a> {
    pub(super) text: &'a str,
    pub(super) at: usize,
    pub(super) first: bool,
}

impl PreTokenizers {
    pub(super) fn read(value: &Value) -> Result<Self> {
        let mut all =
            PreTokenizers { stages: Vec::new(), shrinks: false, byte_level: false, knows_first: false };
        let mut fields = Vec::new();
        flatten("pre_tokenizer", "pretokenizers", value, &mut fields)?;
        let mut work = MAX_BUILD;
        for fields in &fields {
            let kind = fields.kind;
            // Twice the byte alphabet would write bytes of bytes.
            if all.byte_level && kind == "ByteLevel" || all.knows_first && kind == "Metaspace" {
                return refuse(format!("pre_tokenizer {kind}: more than one of this kind"));
            }
            all.stage(fields, &mut work)?;
        }
        Ok(all)
    }

    /// Those that split by expressions, one after the other, and then write bytes: a GGUF file's.
    pub(super) fn of_splits(patterns: &[&str]) -> Result<Self> {
        let mut all =
            PreTokenizers { stages: Vec::new(), shrinks: false, byte_level: true, knows_first: false };
        for pattern in patterns {
            all.split(Find::Regex(Box::new(Regex::new(pattern)?)));
        }
        all.stages.push(PreTokenizer::Bytes);
        Ok(all)
    }

    fn split(&mut self, find: Find) {
        let behavior = SplitDelimiterBehavior::Isolated;
        self.stages.push(PreTokenizer::Split { find, behavior, invert: false });
    }

    fn stage(&mut self, fields: &Fields<'_>, work: &mut usize) -> Result<()> {
        let chars = |kind, behavior| PreTokenizer::Chars(kind, behavior);
        match fields.kind {
            "Split" => {
                fields.check(&["pattern", "behavior", "invert"])?;
                let (behavior, invert) = (fields.behavior("behavior")?, fields.flag("invert", false)?);
                self.shrinks |= behavior == SplitDelimiterBehavior::Removed;
                self.stages.push(PreTokenizer::Split { find: fields.pattern(work)?, behavior, invert });
            }
            "ByteLevel" => {
                fields.check(&["add_prefix_space", "trim_offsets", "use_regex?"])?;
                fields.flag("trim_offsets", true)?; // of places in the text, which nobody asks for
                if fields.flag("add_prefix_space", true)? {
                    self.stages.push(PreTokenizer::Prefix { text: ' ', only_first: false });
                }
                if fields.flag("use_regex", true)? {
                    self.split(Find::Regex(Box::new(Regex::within(GPT2, work)?)));
                }
                self.stages.push(PreTokenizer::Bytes);
                self.byte_level = true;
            }
            "Metaspace" => self.metaspace(fields)?,
            "Digits" => {
                fields.check(&["individual_digits"])?;
                let each = fields.flag("individual_digits", false)?;
                let behavior =
                    if each { SplitDelimiterBehavior::Isolated } else { SplitDelimiterBehavior::Contiguous };
                self.stages.push(chars(Kind::Numeric, behavior));
            }
            "WhitespaceSplit" => {
                fields.check(&[])?;
                self.shrinks = true;
                self.stages.push(chars(Kind::Space, SplitDelimiterBehavior::Removed));
            }
            "CharDelimiterSplit" => {
                fields.check(&["delimiter"])?;
                self.shrinks = true;
                let delimiter = fields.character("delimiter")?;
                self.stages.push(chars(Kind::Is(delimiter), SplitDelimiterBehavior::Removed));
            }
            "Punctuation" | "Whitespace" | "BertPreTokenizer" | "UnicodeScripts" => {
                let punctuation = fields.kind == "Punctuation";
                fields.check(if punctuation { &["behavior?"] } else { &[] })?;
                if punctuation && fields.value.get("behavior").is_some() {
                    fields.behavior("behavior")?;
                }
                self.shrinks |= fields.kind != "UnicodeScripts";
                let read = || serde_json::from_value(fields.value.clone()).map_err(Into::into);
                self.stages.push(PreTokenizer::Library(Box::new(guarded("pre_tokenizer", read)?)));
            }
            kind => return refuse(format!("pre_tokenizer: unknown type `{kind}`")),
        }
        Ok(())
    }

    fn metaspace(&mut self, fields: &Fields<'_>) -> Result<()> {
        fields.check(&["replacement", "prepend_scheme?", "split?", "add_prefix_space?", "str_rep?"])?;
        let replacement = fields.character("replacement")?;
        let scheme = match &fields.value["prepend_scheme"] {
            Value::Null => "always",
            _ => fields.text("prepend_scheme")?,
        };
        // The older spelling; beside the newer one it must agree.
        let scheme = match (fields.flag("add_prefix_space", true)?, scheme) {
            (false, "never") => "never",
            (false, _) => return fields.wrong("add_prefix_space", "what `prepend_scheme` says"),
            (true, scheme) => scheme,
        };
        let prefix = |only_first| PreTokenizer::Prefix { text: replacement, only_first };
        self.stages.push(PreTokenizer::Spaces(replacement));
        match scheme {
            "always" => self.stages.push(prefix(false)),
            "first" => self.stages.push(prefix(true)),
            "never" => {}
            _ => return fields.wrong("prepend_scheme", "always, first or never"),
        }
        self.knows_first = true;
        if fields.flag("split", true)? {
            let behavior = SplitDelimiterBehavior::MergedWithNext;
            self.stages.push(PreTokenizer::Chars(Kind::Is(replacement), behavior));
        }
        Ok(())
    }

    /// Cuts a text into words and gives each to `model`.
    pub(super) fn run(
        &self,
        word: Word<'_>,
        watch: &mut Watch<'_>,
        model: &mut dyn FnMut(Word<'_>, &mut Watch<'_>) -> std::result::Result<(), Halt>,
    ) -> std::result::Result<(), Halt> {
        self.run_from(0, word, watch, model)
    }

    fn run_from(
        &self,
        stage: usize,
        word: Word<'_>,
        watch: &mut Watch<'_>,
        model: &mut dyn FnMut(Word<'_>, &mut Watch<'_>) -> std::result::Result<(), Halt>,
    ) -> std::result::Result<(), Halt> {
        let Word { text, at, first } = word;
        if text.is_empty() {
            return Ok(());
        }
        let Some(this) = self.stages.get(stage) else { return model(word, watch) };
        let parts = match this {
            PreTokenizer::Split { find, behavior, invert } => {
                let matches = match find {
                    Find::Regex(regex) => regex.find_all(text, watch)?,
                    Find::Text(find) => {
                        text.match_indices(find.as_str()).map(|(at, m)| (at, at + m.len())).collect()
                    }
                };
                let mut parts = with_gaps(&matches, text.len());
                parts.iter_mut().for_each(|part| part.1 ^= invert);
                arrange(parts, *behavior)
            }
            PreTokenizer::Chars(kind, behavior) => {
                let matches: Vec<Offsets> = text
                    .char_indices()
                    .filter(|(_, c)| kind.has(*c))
                    .map(|(at, c)| (at, at + c.len_utf8()))
                    .collect();
                arrange(with_gaps(&matches, text.len()), *behavior)
            }
            PreTokenizer::Library(library) => guarded("pre_tokenizer", || {
                let mut pieces = PreTokenizedString::from(text);
                library.pre_tokenize(&mut pieces)?;
                let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
                Ok(splits.into_iter().map(|(_, offsets, _)| offsets).collect())
            })?,
            // The others leave one word, with another text.
            PreTokenizer::Prefix { text: prefix, only_first } => {
                if text.starts_with(*prefix) || *only_first && !first {
                    return self.run_from(stage + 1, word, watch, model);
                }
                let text = format!("{prefix}{text}");
                return self.run_from(stage + 1, Word { text: &text, at, first }, watch, model);
            }
            PreTokenizer::Spaces(replacement) => {
                let text = text.replace(' ', replacement.encode_utf8(&mut [0; 4]));
                return self.run_from(stage + 1, Word { text: &text, at, first }, watch, model);
            }
            PreTokenizer::Bytes => {
                let text: String = text.bytes().map(char_of).collect();
                return self.run_from(stage + 1, Word { text: &text, at, first }, watch, model);
            }
        };
        for (start, end) in parts {
            watch.work(end - start)?;
            let part = Word { text: &text[start..end], at: at + start, first: first && start == 0 };
            self.run_from(stage + 1, part, watch, model)?;
        }
        Ok(())
    }
}

/// The words that matches and what lies between them make.
fn arrange(parts: Vec<(Offsets, bool)>, behavior: SplitDelimiterBehavior) -> Vec<Offsets> {
    use SplitDelimiterBehavior as Behavior;
    let mut words: Vec<Offsets> = Vec::with_capacity(parts.len());
    // Whether the part before was a match; for the first one, whatever lets it begin a word.
    let mut before = false;
    match behavior {
        Behavior::Isolated => words.extend(parts.into_iter().map(|(part, _)| part)),
        Behavior::Removed => {
            words.extend(parts.into_iter().filter(|(_, is_match)| !is_match).map(|(part, _)| part))
        }
        Behavior::Contiguous | Behavior::MergedWithPrevious => {
            for (part, is_match) in parts {
                let joins = match behavior {
                    Behavior::Contiguous => is_match == before,
                    _ => is_match && !before,
                };
                match words.last_mut().filter(|_| joins) {
                    Some(last) => last.1 = part.1,
                    None => words.push(part),
                }
                before = is_match;
            }
        }
        Behavior::MergedWithNext => {
            for (part, is_match) in parts.into_iter().rev() {
                match words.last_mut().filter(|_| is_match && !before) {
                    Some(next) => next.0 = part.0,
                    None => words.push(part),
                }
                before = is_match;
            }
            words.reverse();
        }
    }
    words
}
