//! The stages before the model: normalizers change a text, pre-tokenizers cut it into words.
//!
//! A hostile `tokenizer.json` could ask for far more than any model needs: many stages that each double the text, or
//! tables that claim eight gigabytes. So each stage is read here, field by field, and only known stages and fields are
//! passed to the library. Any other is an error that names it. How much the normalizers can expand a text is known, and
//! bounded, before any text comes.
//!
//! Normalizers run in the library, which keeps for each byte its place in the original text. (Whether a text gets a `▁`
//! in front depends on that.) The other stages (splitting by expressions, characters and spaces, and the byte alphabet)
//! run here. Each word goes through the remaining stages and the model before the next one is cut off. So memory stays
//! small, and a deadline is kept.

mod normalizers;
mod pre_tokenizers;

use serde_json::Value;
use tokenizers::SplitDelimiterBehavior;

use super::dfa::Regex;
use crate::error::{Error, Result};

pub(super) use normalizers::Normalizers;
pub(super) use pre_tokenizers::{GPT2, PreTokenizers, Word};

/// Most stages of one kind. Real files have up to ten.
const MAX_STAGES: usize = 64;
/// Most bytes that normalizers and pre-tokenizers may put in front of a text.
const MAX_PREFIX: usize = 64;

fn refuse<T>(reason: String) -> Result<T> {
    Err(Error::Tokenizer(reason))
}

/// The JSON object of a stage.
pub(super) struct Fields<'a> {
    /// What it is, such as `normalizer`, for messages.
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

    /// Refuses fields that are not in `known`, and missing fields that are in `known` without a `?` at the end.
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

    /// Reads the field `pattern`: `{"String": ..}` or `{"Regex": ..}`. Compiling an expression uses up some of `work`.
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

/// A JSON value as text for a message, at most 200 characters.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 200 { text } else { text.chars().take(200).chain("...".chars()).collect() }
}

/// Appends the stages that `value` consists of: those of a `Sequence`, nested at any depth, or itself.
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

/// The pattern of a `Split` or a `Replace`.
enum Find {
    Text(String),
    Regex(Box<Regex>),
}
