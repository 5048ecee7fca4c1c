//! Added tokens, which are found in a text before it is normalized and cut into words.
//!
//! `tokenizer.json` lists them with their ids. Other files of the folder can list more, and transformers reads these
//! too:
//!
//! ```text
//! tokenizer_config.json     added_tokens_decoder: id -> token; without it, the older files count:
//! special_tokens_map.json   bos_token and its like
//! added_tokens.json         token -> id
//! tokenizer_config.json     bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token, other
//!                           *_token; extra_special_tokens, additional_special_tokens: these are control tokens
//! ```
//!
//! It is an error if two files give a token different ids, or give two tokens the same id. If they disagree on a
//! token's flags, `tokenizer_config.json` is right, as in transformers, and there is a warning. But a token that any
//! of them calls a control token is one, because the crate `tokenizers` does not forget it either. Transformers gives
//! a control token without an id in any file a new id, which the model never saw. Here such a token is not added, and
//! there is a warning.
//!
//! Tokens are found in the same way as by the crate: the leftmost first, and of several at one place the longest. But
//! they keep the ids of the files. The crate numbers added tokens anew where the files leave holes.

use std::collections::HashMap;
use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};
use regex_syntax::hir::ClassUnicode;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::NormalizedString;

use super::dfa::has;
use super::onig::rust_word;
use super::size::of_texts;
use super::stages::{Normalizers, shown};
use super::watch::{Halt, Watch};
use crate::error::{Error, Result};

/// The most added tokens; real files have up to some thousands.
const MAX_ADDED: usize = 1 << 17;
/// The most bytes of one token; real ones have up to a hundred.
const MAX_LEN: usize = 512;
/// The most bytes of all tokens together.
const MAX_TOTAL: usize = 1 << 21;

/// One added token.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddedToken {
    /// The id. In `tokenizer.json` it is a field of the token, elsewhere the key.
    #[serde(default = "no_id")]
    pub(super) id: u32,
    pub(super) content: String,
    /// The token is found only where no letter or digit is next to it.
    #[serde(default)]
    single_word: bool,
    /// The token includes the spaces before it.
    #[serde(default)]
    lstrip: bool,
    /// The token includes the spaces after it.
    #[serde(default)]
    pub(super) rstrip: bool,
    /// The token is looked for in the normalized text.
    #[serde(default = "yes")]
    pub(super) normalized: bool,
    /// A control token.
    #[serde(default)]
    pub(super) special: bool,
    /// The name of the Python type, which transformers writes.
    #[serde(default, rename = "__type")]
    _type: Option<String>,
}

/// More than any id, so that a token that gets no other one is refused.
fn no_id() -> u32 {
    u32::MAX - 1
}

fn yes() -> bool {
    true
}

impl AddedToken {
    /// A token without any of the flags.
    pub(super) fn plain(id: u32, content: &str, special: bool) -> Self {
        let content = content.to_string();
        let flag = false;
        AddedToken {
            id,
            content,
            single_word: flag,
            lstrip: flag,
            rstrip: flag,
            normalized: flag,
            special,
            _type: None,
        }
    }
}

fn refuse<T>(reason: String) -> Result<T> {
    Err(Error::Tokenizer(reason))
}

/// The other files of a folder that describe tokens; those that do not exist are `None`.
#[derive(Default)]
pub(super) struct SideFiles {
    pub(super) tokenizer_config: Value,
    pub(super) special_tokens_map: Value,
    pub(super) added_tokens: Value,
}

/// Names in tokenizer_config.json that end like those of tokens, and are not.
const NOT_TOKENS: &[&str] = &["add_bos_token", "add_eos_token"];

impl SideFiles {
    fn has_decoder(&self) -> bool {
        self.tokenizer_config.get("added_tokens_decoder").is_some()
    }

    /// The tokens to which the files give ids. What cannot be read is left out, because [`collect`] refuses it.
    pub(super) fn names_of_ids(&self) -> HashMap<u32, &str> {
        let decoder = self.tokenizer_config["added_tokens_decoder"].as_object();
        let flagged = decoder.into_iter().flatten();
        let flagged = flagged.filter_map(|(id, token)| Some((id.parse().ok()?, token["content"].as_str()?)));
        let bare = self.added_tokens.as_object().into_iter().flatten();
        let bare = bare.filter_map(|(token, id)| Some((u32::try_from(id.as_u64()?).ok()?, token.as_str())));
        bare.chain(flagged).collect()
    }

    /// The token with this name, such as `bos_token`: `None` if no file has the name, `Some(None)` if a file says that
    /// there is no such token.
    pub(super) fn token(&self, key: &str) -> Option<Option<&str>> {
        let files = [&self.tokenizer_config, &self.special_tokens_map];
        files.into_iter().find_map(|file| file.get(key)).map(spelled)
    }

    /// The control tokens that the files name, each a text or an object with flags.
    fn named(&self) -> impl Iterator<Item = (&str, &Value)> {
        let map = (!self.has_decoder()).then_some(&self.special_tokens_map);
        let objects = [Some(&self.tokenizer_config), map];
        objects.into_iter().flatten().filter_map(Value::as_object).flatten().flat_map(|(key, value)| {
            let lists = ["extra_special_tokens", "additional_special_tokens"];
            let inside: Vec<(&str, &Value)> = match value {
                Value::Array(list) if lists.contains(&key.as_str()) => {
                    list.iter().map(|token| (key.as_str(), token)).collect()
                }
                Value::Object(names) if lists.contains(&key.as_str()) => {
                    names.iter().map(|(_, token)| (key.as_str(), token)).collect()
                }
                Value::String(_) | Value::Object(_)
                    if key.ends_with("_token") && !NOT_TOKENS.contains(&key.as_str()) =>
                {
                    vec![(key.as_str(), value)]
                }
                _ => Vec::new(),
            };
            inside
        })
    }
}

/// The text of a token, which is a string or in an object.
fn spelled(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// The tokens that all files of a folder add to the vocabulary, in the order in which the crate `tokenizers` gets them.
/// `file` is the name of the file that `declared` is from, for messages.
pub(super) fn collect(
    declared: Vec<AddedToken>,
    file: &str,
    files: &SideFiles,
    vocab: &HashMap<String, u32>,
) -> Result<Vec<AddedToken>> {
    let mut tokens = Collected { tokens: Vec::new(), of_content: HashMap::new(), of_id: HashMap::new() };
    for token in declared {
        tokens.add(token, vocab, file)?;
    }
    let file = "tokenizer_config.json";
    if let Some(decoder) = files.tokenizer_config.get("added_tokens_decoder").filter(|d| !d.is_null()) {
        let Some(decoder) = decoder.as_object() else {
            return refuse(format!(
                "{file}: added_tokens_decoder: expected an object, got {}",
                shown(decoder)
            ));
        };
        let mut more = Vec::new();
        for (id, token) in decoder {
            let read = serde_json::from_value::<AddedToken>(token.clone());
            match (id.parse(), read) {
                (Ok(id), Ok(token)) => more.push(AddedToken { id, ..token }),
                (_, Err(reason)) => return refuse(format!("{file}: added_tokens_decoder: {id}: {reason}")),
                (Err(_), _) => {
                    return refuse(format!("{file}: added_tokens_decoder: expected an id, got {id:?}"));
                }
            }
        }
        more.sort_by_key(|token| token.id);
        for token in more {
            tokens.add(token, vocab, file)?;
        }
    }
    let file = "added_tokens.json";
    if let Some(added) = files.added_tokens.as_object() {
        let mut more = Vec::new();
        for (content, id) in added {
            let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                return refuse(format!("{file}: {content:?}: expected an id, got {}", shown(id)));
            };
            let special = files.named().any(|(_, value)| spelled(value) == Some(content));
            more.push(AddedToken { normalized: !special, ..AddedToken::plain(id, content, special) });
        }
        more.sort_by_key(|token| token.id);
        for token in more {
            // This file has no flags. If another file has the token too, only the ids must be equal.
            let known = tokens.of_content.get(&token.content).map(|&at| &tokens.tokens[at]);
            let token = known.cloned().map_or(token.clone(), |known| AddedToken { id: token.id, ..known });
            tokens.add(token, vocab, file)?;
        }
    } else if !files.added_tokens.is_null() {
        return refuse(format!("{file}: expected an object, got {}", shown(&files.added_tokens)));
    }
    for (key, value) in files.named() {
        let Some(content) = spelled(value).filter(|content| !content.is_empty()) else { continue };
        if tokens.of_content.contains_key(content) {
            continue;
        }
        let Some(&id) = vocab.get(content) else {
            tracing::warn!(
                key,
                token = content,
                "a control token that no file gives an id: it is text in a prompt"
            );
            continue;
        };
        let mut token = AddedToken::plain(id, content, true);
        if value.is_object() {
            let read = serde_json::from_value::<AddedToken>(value.clone());
            let read = read.map_err(|reason| Error::Tokenizer(format!("{key}: {reason}")))?;
            token = AddedToken { id, special: true, ..read };
        }
        tokens.add(token, vocab, key)?;
    }
    Ok(tokens.tokens)
}

struct Collected {
    tokens: Vec<AddedToken>,
    of_content: HashMap<String, usize>,
    of_id: HashMap<u32, String>,
}

impl Collected {
    fn add(&mut self, token: AddedToken, vocab: &HashMap<String, u32>, file: &str) -> Result<()> {
        let AddedToken { id, content, .. } = &token;
        if content.is_empty() {
            return Ok(()); // as in the library: it is found nowhere
        }
        let start: String = content.chars().take(60).collect();
        let refuse = |expected: String| {
            Err(Error::Tokenizer(format!("added token {start:?} of {file}: expected {expected}")))
        };
        if content.len() > MAX_LEN {
            return refuse(format!("at most {MAX_LEN} bytes, got {}", content.len()));
        }
        if let Some(&known) = self.of_content.get(content) {
            let before = &mut self.tokens[known];
            if before.id != *id {
                return refuse(format!("the id {} that another place gives it, got {id}", before.id));
            }
            if *before != token {
                tracing::warn!(
                    token = content,
                    file,
                    "flags of an added token differ; those of this file are taken"
                );
                *before = AddedToken { special: before.special || token.special, ..token };
            }
            return Ok(());
        }
        if let Some(other) = vocab.get(content).filter(|other| *other != id) {
            return refuse(format!("the id {other} that the vocabulary gives it, got {id}"));
        }
        if let Some(other) = self.of_id.insert(*id, content.clone()) {
            return refuse(format!("an id of its own, got {id}, which {other:?} has, too"));
        }
        if self.tokens.len() == MAX_ADDED {
            return refuse(format!("at most {MAX_ADDED} added tokens, got more"));
        }
        self.of_content.insert(content.clone(), self.tokens.len());
        self.tokens.push(token);
        Ok(())
    }
}

/// A part of a text: an added token, or the text between two of them.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    Token(u32),
    Text(usize, usize),
}

/// Finds added tokens in texts.
pub(super) struct AddedTokens {
    raw: Finder,
    /// Tokens that are looked for in the normalized text. They are normalized themselves.
    pub(super) normalized: Finder,
    ids: HashMap<String, u32>,
}

pub(super) struct Finder {
    find: Option<AhoCorasick>,
    tokens: Vec<AddedToken>,
}

impl AddedTokens {
    pub(super) fn new(tokens: &[AddedToken], normalizers: &Normalizers) -> Result<Self> {
        let total: usize = tokens.iter().map(|token| token.content.len()).sum();
        if total > MAX_TOTAL {
            return refuse(format!("added tokens: expected at most {MAX_TOTAL} bytes, got {total}"));
        }
        let ids = tokens.iter().map(|token| (token.content.clone(), token.id)).collect();
        // If two have the same normalized content, the first is found; control tokens come first.
        let order = || tokens.iter().filter(|t| t.special).chain(tokens.iter().filter(|t| !t.special));
        let (normalized, raw): (Vec<_>, Vec<_>) = order().cloned().partition(|token| token.normalized);
        let mut watch = Watch::none();
        let mut contents = Vec::with_capacity(normalized.len());
        for token in &normalized {
            let mut content = NormalizedString::from(token.content.as_str());
            normalizers.run(&mut content, &mut watch).map_err(Halt::into_error)?;
            contents.push(content.get().to_string());
        }
        let as_they_are = raw.iter().map(|token| token.content.clone()).collect();
        Ok(AddedTokens {
            raw: Finder::new(as_they_are, raw)?,
            normalized: Finder::new(contents, normalized)?,
            ids,
        })
    }

    pub(super) fn raw(&self) -> &Finder {
        &self.raw
    }

    pub(super) fn id(&self, content: &str) -> Option<u32> {
        self.ids.get(content).copied()
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        [&self.raw, &self.normalized].map(Finder::size).iter().sum::<usize>() + of_texts(&self.ids)
    }

    /// The text of an added token, as the file has it.
    pub(super) fn content(&self, id: u32) -> Option<&str> {
        let mut tokens = self.raw.tokens.iter().chain(&self.normalized.tokens);
        tokens.find(|token| token.id == id).map(|token| token.content.as_str())
    }
}

impl Finder {
    fn new(contents: Vec<String>, tokens: Vec<AddedToken>) -> Result<Self> {
        if let Some(empty) = contents.iter().position(String::is_empty) {
            let token = &tokens[empty].content;
            return refuse(format!("added token {token:?}: expected a text after normalizing, got none"));
        }
        if contents.is_empty() {
            return Ok(Finder { find: None, tokens });
        }
        let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&contents);
        let find = built.map_err(|reason| Error::Tokenizer(format!("added tokens: {reason}")))?;
        Ok(Finder { find: Some(find), tokens })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    fn size(&self) -> usize {
        let texts: usize = self.tokens.iter().map(|token| token.content.len()).sum();
        self.find.as_ref().map_or(0, AhoCorasick::memory_usage) + size_of_val(&self.tokens[..]) + texts
    }

    /// Cuts a text at its added tokens. Without `parse_special` control tokens are text. No other token is looked for
    /// within that text, as in the crate `tokenizers`.
    pub(super) fn split(
        &self,
        text: &str,
        parse_special: bool,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<Vec<Part>, Halt> {
        let whole = || Part::Text(0, text.len());
        let Some(find) = &self.find else { return Ok(vec![whole()]) };
        let (mut parts, mut done, mut looked_at) = (Vec::new(), 0, 0);
        // The end of the spaces that the last match took. Later matches may begin within them.
        let mut spaces = (0, 0);
        for found in find.find_iter(text) {
            watch.work(found.end() - looked_at)?;
            looked_at = found.end();
            let (mut start, mut stop) = (found.start(), found.end());
            let token = &self.tokens[found.pattern().as_usize()];
            if token.special && !parse_special {
                continue;
            }
            if token.single_word {
                let before = text[..start].chars().next_back();
                if before.is_some_and(is_word) || text[stop..].chars().next().is_some_and(is_word) {
                    continue;
                }
            }
            if token.lstrip && done < start {
                start = done + text[done..start].trim_end().len();
            }
            if token.rstrip {
                if !(spaces.0 <= stop && stop <= spaces.1) {
                    spaces = (stop, text.len() - text[stop..].trim_start().len());
                }
                stop = spaces.1;
            }
            if done < start {
                parts.push(Part::Text(done, start));
            }
            parts.push(Part::Token(token.id));
            done = stop;
        }
        watch.work(text.len() - looked_at)?;
        if done != text.len() {
            parts.push(Part::Text(done, text.len()));
        }
        Ok(parts)
    }
}

/// Whether a character belongs to a word: `\w` of regular expressions.
fn is_word(c: char) -> bool {
    static WORD: LazyLock<ClassUnicode> = LazyLock::new(rust_word);
    match c {
        c if c.is_ascii() => c.is_ascii_alphanumeric() || c == '_',
        c => has(&WORD, u32::from(c)),
    }
}
