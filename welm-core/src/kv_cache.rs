//! Paged storage of keys and values.
//!
//! A block holds [`BLOCK_TOKENS`] tokens of one sequence, in every layer at the same index. Which block belongs to whom is
//! the block manager's business, and what a layer's memory is, the backend's.

use crate::batch::BLOCK_TOKENS;
use crate::config::ModelConfig;
use crate::error::Result;

/// Values of one block, of keys or of values, in one layer.
pub(crate) fn block_values(config: &ModelConfig) -> usize {
    BLOCK_TOKENS * config.n_kv_heads * config.head_dim
}

/// The cache of all layers, in memory of the backend's kind `L`.
pub(crate) struct KvCache<L> {
    /// `(n_layers)` of `(n_blocks, n_kv_heads, BLOCK_TOKENS * head_dim)` keys and values.
    pub(crate) layers: Vec<L>,
}

impl<L> KvCache<L> {
    /// Allocates each of `n_layers` layers.
    pub(crate) fn new(n_layers: usize, layer: impl FnMut() -> Result<L>) -> Result<Self> {
        let layers = std::iter::repeat_with(layer).take(n_layers).collect::<Result<_>>()?;
        Ok(KvCache { layers })
    }

    /// Copies one block in every layer, as `copy` does it in one.
    pub(crate) fn copy_block(&mut self, copy: impl FnMut(&mut L) -> Result<()>) -> Result<()> {
        self.layers.iter_mut().try_for_each(copy)
    }
}
