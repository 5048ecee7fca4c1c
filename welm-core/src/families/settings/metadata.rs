//! The metadata of a GGUF file: keys that begin with the architecture's name, read with their types checked, and accounted
//! for.

use std::fmt::Display;

use super::{divide, keys};
use crate::config::ModelSizes;
use crate::error::{Error, Result};
use crate::weights::gguf::Gguf;
use crate::weights::tensor::StoredTensor;

/// The keys of an architecture, without its name and the dot.
pub(crate) struct Metadata<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

impl<'a> Metadata<'a> {
    /// That of the file's own architecture.
    pub(crate) fn new(file: &'a Gguf, architecture: &'a str) -> Self {
        Metadata { file, architecture }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// The error of a setting.
    pub(crate) fn error(&self, name: &str, reason: impl Display) -> Error {
        Error::config(self.key(name), reason)
    }

    fn size(&self, name: &str) -> Result<usize> {
        self.file.u64(&self.key(name)).map(size_of)
    }

    pub(crate) fn opt_size(&self, name: &str) -> Result<Option<usize>> {
        Ok(self.file.opt_u64(&self.key(name))?.map(size_of))
    }

    /// A size that may be stated for each layer; layers that differ are an error.
    fn equal_in_layers(&self, name: &str, n_layers: usize) -> Result<Option<usize>> {
        let key = self.key(name);
        match self.file.len_of(&key) {
            None => return self.opt_size(name),
            Some(n) => self.expect_one_a_layer(name, n, n_layers)?,
        }
        let sizes = self.file.opt_i64_array(&key)?.unwrap_or_default();
        match sizes.first() {
            Some(&first) if first > 0 && sizes.iter().all(|&size| size == first) => {
                Ok(Some(size_of(first as u64)))
            }
            _ => Err(self.error(name, "expected the same number in all layers, and none of them 0")),
        }
    }

    pub(crate) fn f32(&self, name: &str) -> Result<f32> {
        self.opt_f32(name)?.ok_or_else(|| self.error(name, "missing from the file"))
    }

    pub(crate) fn opt_f32(&self, name: &str) -> Result<Option<f32>> {
        self.file.opt_f32(&self.key(name))
    }

    pub(crate) fn opt_flag(&self, name: &str) -> Result<Option<bool>> {
        self.file.opt_bool(&self.key(name))
    }

    /// Flags of layers: as many of them as there are layers, if there are any.
    pub(crate) fn opt_flags(&self, name: &str, n_layers: usize) -> Result<Option<Vec<bool>>> {
        let key = self.key(name);
        match self.file.len_of(&key) {
            None => Ok(None),
            Some(n) => {
                self.expect_one_a_layer(name, n, n_layers)?;
                self.file.opt_flags(&key)
            }
        }
    }

    fn expect_one_a_layer(&self, name: &str, n: usize, n_layers: usize) -> Result<()> {
        let reason = || format!("expected one for each of {n_layers} layers, got {n}");
        if n == n_layers { Ok(()) } else { Err(self.error(name, reason())) }
    }

    pub(crate) fn opt_text(&self, name: &str) -> Result<Option<&str>> {
        self.file.opt_str(&self.key(name))
    }

    /// Notes that a setting has been dealt with.
    pub(crate) fn mark_read(&self, name: &str) {
        self.file.mark_read(&self.key(name));
    }

    /// A tensor that takes the place of a setting.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<&StoredTensor>> {
        self.file.tensors.find(name)
    }

    /// The sizes, whose keys are the same in every family.
    pub(crate) fn sizes(&self) -> Result<ModelSizes> {
        let (dim, n_heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let by_heads =
            || divide(&self.key("embedding_length"), dim, &self.key("attention.head_count"), n_heads);
        let width = |name: &str| self.opt_size(name)?.map_or_else(by_heads, Ok);
        let (head_dim, value_dim) = (width("attention.key_length")?, width("attention.value_length")?);
        if value_dim != head_dim {
            let reason = format!("expected that of keys, {head_dim}, got {value_dim}");
            return Err(self.error("attention.value_length", reason));
        }
        let vocab_size = self.file.tensors.get("token_embd.weight")?.rows();
        if let Some(other) = self.opt_size("vocab_size")?.filter(|&n| n != vocab_size) {
            // llama.cpp does not look at the key either.
            tracing::warn!(
                rows = vocab_size,
                key = other,
                "vocab_size is not the rows of token_embd.weight, which count"
            );
        }
        let n_layers = self.size("block_count")?;
        Ok(ModelSizes {
            vocab_size,
            dim,
            n_layers,
            n_heads,
            n_kv_heads: self.equal_in_layers("attention.head_count_kv", n_layers)?.unwrap_or(n_heads),
            head_dim,
            hidden_dim: self.size("feed_forward_length")?,
            max_context: self.size("context_length")?,
        })
    }

    /// Refuses a scale of `q k^T` that is not the family's.
    pub(crate) fn refuse_scale(&self, scale: f32) -> Result<()> {
        let other = self.opt_f32("attention.scale")?.filter(|x| *x != 0.0 && (x - scale).abs() > 1e-6);
        other.map_or(Ok(()), |other| {
            Err(self.error("attention.scale", format!("expected {scale}, got {other}")))
        })
    }

    /// Looks up what nobody has read of the architecture's own keys: refuses what changes the arithmetic, and tells the log
    /// what nobody knows.
    pub(crate) fn account_for_rest(&self) -> Result<()> {
        let mut unknown = Vec::new();
        for (key, value) in self.file.unread() {
            let name = key.strip_prefix(self.architecture).and_then(|rest| rest.strip_prefix('.'));
            let Some(name) = name else { continue };
            match keys::of_gguf(name) {
                keys::Effect::None => {}
                keys::Effect::Off(off) if self.file.to_json(value).is_some_and(|value| off.is(&value)) => {}
                keys::Effect::Off(off) => {
                    let why = keys::unsupported(name);
                    return Err(Error::config(key, format!("expected {off} ({why}), got {value}")));
                }
                keys::Effect::Unknown => unknown.push(key),
            }
        }
        if !unknown.is_empty() {
            unknown.sort_unstable();
            tracing::warn!(keys = unknown.join(", "), "the file has settings that nothing reads");
        }
        Ok(())
    }
}

/// A size that does not fit becomes one that no model has.
fn size_of(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
