//! Fields of a JSON object, read with their types checked, and accounted for.
//!
//! Every key that is asked for is remembered. What nobody asked for is looked up in a table at the end: it has no
//! effect on the arithmetic, or it has and must say that it is off, or nobody knows it, which the log tells.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::keys;
use crate::error::{Error, Result};

/// A JSON object. Null is absence where the model's authors leave a setting open so, and an error elsewhere.
pub(crate) struct Fields {
    object: Map<String, Json>,
    /// What stands before a key in an error: nothing, or the name of a section and a dot.
    prefix: String,
    read: RefCell<BTreeSet<String>>,
}

impl Fields {
    /// The object of a whole file.
    pub(crate) fn new(path: &Path, json: Json) -> Result<Self> {
        match json {
            Json::Object(object) => Ok(Fields { object, prefix: String::new(), read: RefCell::default() }),
            other => {
                Err(Error::file(path, format!("expected a JSON object, got {}", Self::shortened(&other))))
            }
        }
    }

    /// A key as an error names it.
    pub(crate) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The field, unless it is absent.
    fn given(&self, key: &str) -> Option<&Json> {
        self.read.borrow_mut().insert(key.to_string());
        self.object.get(key)
    }

    /// The field, unless it is absent or null.
    pub(crate) fn find(&self, key: &str) -> Option<&Json> {
        self.given(key).filter(|v| !v.is_null())
    }

    fn mismatch(path: &str, expected: &str, got: &Json) -> Error {
        Error::config(path, format!("expected {expected}, got {}", Self::shortened(got)))
    }

    fn shortened(value: &Json) -> String {
        let text = value.to_string();
        if text.len() > 80 { format!("{} ...", text.chars().take(80).collect::<String>()) } else { text }
    }

    /// The error of a field of another kind or value.
    pub(crate) fn wrong(&self, key: &str, expected: &str, got: &Json) -> Error {
        Self::mismatch(&self.path(key), expected, got)
    }

    fn missing(&self, key: &str) -> Error {
        Error::config(self.path(key), "missing from config.json")
    }

    pub(crate) fn opt_size(&self, key: &str) -> Result<Option<usize>> {
        let size = |v: &Json| v.as_u64().and_then(|x| usize::try_from(x).ok());
        self.find(key).map(|v| size(v).ok_or_else(|| self.wrong(key, "a whole number", v))).transpose()
    }

    /// A size that has a default; null is none.
    pub(crate) fn opt_size_or(&self, key: &str, default: usize) -> Result<Option<usize>> {
        if self.given(key).is_none() { Ok(Some(default)) } else { self.opt_size(key) }
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize> {
        self.opt_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A size that the family does not leave open: it may be absent, but nothing else than this.
    pub(crate) fn fixed_size(&self, key: &str, value: usize) -> Result<()> {
        match self.opt_size(key)? {
            Some(other) if other != value => {
                Err(Error::config(self.path(key), format!("expected {value} in this family, got {other}")))
            }
            _ => Ok(()),
        }
    }

    /// A number, not null.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.given(key).map(|v| v.as_f64().ok_or_else(|| self.wrong(key, "a number", v))).transpose()
    }

    /// A number; null is absence.
    pub(crate) fn opt_number(&self, key: &str) -> Result<Option<f64>> {
        self.find(key).map(|v| v.as_f64().ok_or_else(|| self.wrong(key, "a number", v))).transpose()
    }

    pub(crate) fn need_number(&self, key: &str) -> Result<f64> {
        self.opt_number(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn need_numbers(&self, key: &str) -> Result<Vec<f64>> {
        let value = self.find(key).ok_or_else(|| self.missing(key))?;
        let numbers = value.as_array().and_then(|list| list.iter().map(Json::as_f64).collect());
        numbers.ok_or_else(|| self.wrong(key, "a list of numbers", value))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.given(key).map(|v| v.as_bool().ok_or_else(|| self.wrong(key, "true or false", v))).transpose()
    }

    pub(crate) fn opt_text(&self, key: &str) -> Result<Option<&str>> {
        self.given(key).map(|v| v.as_str().ok_or_else(|| self.wrong(key, "a string", v))).transpose()
    }

    /// A text; null is absence.
    pub(crate) fn nullable_text(&self, key: &str) -> Result<Option<&str>> {
        if self.find(key).is_none() { Ok(None) } else { self.opt_text(key) }
    }

    pub(crate) fn text(&self, key: &str) -> Result<&str> {
        self.opt_text(key)?.ok_or_else(|| self.missing(key))
    }

    /// A text of which only these are known; one that is absent is fine.
    pub(crate) fn expect_text(&self, key: &str, known: &[&str]) -> Result<()> {
        match self.opt_text(key)? {
            Some(other) if !known.contains(&other) => {
                Err(Error::config(self.path(key), format!("expected {}, got `{other}`", known.join(" or "))))
            }
            _ => Ok(()),
        }
    }

    /// One id, a list of ids, or nothing.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.find(key) else { return Ok(Vec::new()) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let id = |v: &Json| v.as_u64().and_then(|x| u32::try_from(x).ok());
        list.iter().map(|v| id(v).ok_or_else(|| self.wrong(key, "token ids", value))).collect()
    }

    /// One id, or nothing.
    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>> {
        match self.token_ids(key)?[..] {
            [] => Ok(None),
            [id] => Ok(Some(id)),
            _ => Err(Error::config(self.path(key), "expected one token id, got several")),
        }
    }

    /// An object inside; one that is absent, null or empty is none.
    pub(crate) fn section(&self, key: &str) -> Result<Option<Fields>> {
        let Some(value) = self.find(key) else { return Ok(None) };
        let object = value.as_object().ok_or_else(|| self.wrong(key, "an object", value))?.clone();
        let prefix = format!("{}{key}.", self.prefix);
        Ok(Some(Fields { object, prefix, read: RefCell::default() }).filter(|f| !f.object.is_empty()))
    }

    /// Passes over all keys that begin so: settings of parts that the model does not have.
    pub(crate) fn skip(&self, beginnings: &[&str]) {
        let keys = self.object.keys().filter(|key| beginnings.iter().any(|begin| key.starts_with(begin)));
        self.read.borrow_mut().extend(keys.cloned());
    }

    /// A setting whose presence changes the arithmetic in ways that are not computed here.
    pub(crate) fn refuse(&self, key: &str) -> Result<()> {
        match self.find(key) {
            Some(value) => Err(self.wrong(key, "nothing (not supported)", value)),
            None => Ok(()),
        }
    }

    fn unread(&self) -> impl Iterator<Item = (&String, &Json)> {
        let read = self.read.borrow();
        let unread: Vec<_> = self.object.iter().filter(|(key, _)| !read.contains(*key)).collect();
        unread.into_iter()
    }

    /// Refuses whatever nobody read and is not null, for sections of which every key matters.
    pub(crate) fn all_read(&self, expected: &str) -> Result<()> {
        match self.unread().find(|(_, value)| !value.is_null()) {
            Some((key, value)) => Err(self.wrong(key, expected, value)),
            None => Ok(()),
        }
    }

    /// Looks up whatever nobody read: refuses what changes the arithmetic, and tells the log what nobody knows.
    pub(crate) fn account_for_rest(&self) -> Result<()> {
        let unknown = self.unknown()?;
        if !unknown.is_empty() {
            tracing::warn!(keys = unknown.join(", "), "config.json has settings that nothing reads");
        }
        Ok(())
    }

    /// What nobody read and nobody knows.
    fn unknown(&self) -> Result<Vec<&str>> {
        let mut unknown = Vec::new();
        for (key, value) in self.unread() {
            match keys::of_config(key) {
                keys::Effect::None => {}
                // As if it were absent.
                keys::Effect::Unknown if value.is_null() => {}
                keys::Effect::Off(off) if off.is(value) => {}
                keys::Effect::Off(off) => {
                    return Err(self.wrong(key, &format!("{off} ({})", keys::unsupported(key)), value));
                }
                keys::Effect::Unknown => unknown.push(key.as_str()),
            }
        }
        Ok(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_settings_that_may_matter_are_told() {
        let fields = |json: Json| Fields::new(Path::new("config.json"), json).unwrap();
        // Of Hunyuan's dense models and of Phi-4-mini.
        let known = json!({
            "cla_share_factor": 2, "class_num": 0, "eod_token_id": 127_967, "full_attn_mod": 1, "im_end_id": 5,
            "interpolate_factor": 1, "kv_lora_rank": null, "moe_topk": 1, "num_shared_expert": 1,
            "org_vocab_size": 128_167, "pool_type": "last", "position_embedding_xdrope": false,
            "qk_rope_head_dim": null, "v_head_dim": null, "vit_token": 64, "xdrope_section": null
        });
        assert_eq!(fields(known).unknown().unwrap(), Vec::<&str>::new());
        let other =
            fields(json!({"v_head_dim": 64, "mamba_expand": 2, "favourite": null, "_note": 1, "x": false}));
        assert_eq!(other.unknown().unwrap(), ["mamba_expand", "v_head_dim", "x"]);
        other.skip(&["mamba_"]);
        assert_eq!(other.unknown().unwrap(), ["v_head_dim", "x"]);
    }
}
