//! What the readers of families share: settings with their types checked, each of them accounted for.
//!
//! A checkpoint may have been trained with settings that this engine does not compute (another activation,
//! a mixture of experts, ...). Running it anyway would give plausible nonsense, so every setting that
//! changes the arithmetic is read, and one that is unknown is an error that names it, or a warning ([`keys`]).

mod fields;
mod keys;
mod metadata;
pub(crate) mod rope;
pub(crate) mod windows;

pub(crate) use fields::Fields;
pub(crate) use metadata::Metadata;

use crate::config::ModelSizes;
use crate::error::{Error, Result};

impl Fields {
    /// The sizes, whose keys are the same in every family.
    pub(crate) fn sizes(&self) -> Result<ModelSizes> {
        self.sizes_with(None)
    }

    /// The sizes, where the family has a width of heads for configurations that state none.
    pub(crate) fn sizes_with(&self, default_head_dim: Option<usize>) -> Result<ModelSizes> {
        let (dim, n_heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let head_dim = match self.opt_size("head_dim")?.or(default_head_dim) {
            Some(head_dim) => head_dim,
            None => divide("hidden_size", dim, "num_attention_heads", n_heads)?,
        };
        Ok(ModelSizes {
            vocab_size: self.size("vocab_size")?,
            dim,
            n_layers: self.size("num_hidden_layers")?,
            n_heads,
            n_kv_heads: self.opt_size("num_key_value_heads")?.unwrap_or(n_heads),
            head_dim,
            hidden_dim: self.size("intermediate_size")?,
            max_context: self.size("max_position_embeddings")?,
        })
    }

    /// Refuses a model that says it is stored or computed in another way than its family, whose classes begin with one of
    /// these names.
    pub(crate) fn refuse_foreign(&self, classes: &[&str]) -> Result<()> {
        self.refuse("quantization_config")?;
        if let Some(value) = self.find("architectures") {
            let expected = format!("names that begin with {}", classes.join(" or "));
            let wrong = || self.wrong("architectures", &expected, value);
            let list = value.as_array().ok_or_else(wrong)?;
            let own = |name: &str| classes.iter().any(|class| name.to_lowercase().starts_with(class));
            if !list.iter().all(|name| name.as_str().is_some_and(own)) {
                return Err(wrong());
            }
        }
        if self.find("auto_map").is_some() {
            tracing::warn!("config.json names Python code of its own (auto_map), which is not run");
        }
        Ok(())
    }

    /// Refuses a window of positions that is narrower than the context, unless it is switched off.
    pub(crate) fn refuse_window(&self, max_context: usize) -> Result<()> {
        let used = self.flag("use_sliding_window")?;
        match self.opt_size("sliding_window")? {
            Some(window) if window < max_context && used != Some(false) => {
                let reason =
                    format!("expected nothing, or at least {max_context} (not supported), got {window}");
                Err(Error::config("sliding_window", reason))
            }
            None if used == Some(true) => Err(Error::config("use_sliding_window", "is not supported")),
            _ => Ok(()),
        }
    }
}

/// `a / b`, which must be whole.
pub(crate) fn divide(what: &str, a: usize, by: &str, b: usize) -> Result<usize> {
    if b == 0 || !a.is_multiple_of(b) {
        return Err(Error::config(what, format!("{a} is not a multiple of {by}, {b}")));
    }
    Ok(a / b)
}
