//! Paged storage of keys and values.
//!
//! A block holds [`BLOCK_TOKENS`] tokens of one sequence, at the same index in every layer. The block manager decides
//! which block belongs to which sequence. The backend decides how a layer's memory is laid out.

use crate::batch::BLOCK_TOKENS;
use crate::config::ModelConfig;
use crate::error::Result;

/// Number of elements of one block in one layer: of its keys, or of its values, which have as many.
pub(crate) fn block_values(config: &ModelConfig) -> usize {
    BLOCK_TOKENS * config.n_kv_heads * config.head_dim
}

/// The cache of all layers. `L` is the backend's type for the cache of one layer.
pub(crate) struct KvCache<L> {
    /// `(n_layers)`; each has keys and values, `(n_blocks, n_kv_heads, BLOCK_TOKENS * head_dim)`.
    pub(crate) layers: Vec<L>,
}

impl<L> KvCache<L> {
    /// Allocates `n_layers` layers, each by `layer`.
    pub(crate) fn new(n_layers: usize, layer: impl FnMut() -> Result<L>) -> Result<Self> {
        let layers = std::iter::repeat_with(layer).take(n_layers).collect::<Result<_>>()?;
        Ok(KvCache { layers })
    }

    /// Copies one block in every layer; `copy` copies it in one layer.
    pub(crate) fn copy_block(&mut self, copy: impl FnMut(&mut L) -> Result<()>) -> Result<()> {
        self.layers.iter_mut().try_for_each(copy)
    }
}
