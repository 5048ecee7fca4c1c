//! Paged storage of keys and values.
//!
//! A block holds [`BLOCK_TOKENS`](crate::engine::batch::BLOCK_TOKENS) tokens of one sequence, in every layer
//! at the same index. Which block belongs to whom is the block manager's business; this is only the memory.

use crate::backend::Backend;
use crate::config::ModelConfig;
use crate::engine::batch::BLOCK_TOKENS;
use crate::error::Result;

/// Values of one block, of keys or of values, in one layer.
pub(crate) fn block_values(config: &ModelConfig) -> usize {
    BLOCK_TOKENS * config.n_kv_heads * config.head_dim
}

/// The cache of all layers.
pub(crate) struct KvCache<B: Backend> {
    /// `(n_layers)` of `(n_blocks, n_kv_heads, BLOCK_TOKENS * head_dim)` keys and values.
    pub(crate) layers: Vec<B::KvLayer>,
}

impl<B: Backend> KvCache<B> {
    /// Allocates `n_blocks` blocks in each of `n_layers` layers.
    pub(crate) fn new(backend: &mut B, n_layers: usize, n_blocks: usize) -> Result<Self> {
        let layers = (0..n_layers).map(|_| backend.kv_layer(n_blocks)).collect::<Result<_>>()?;
        Ok(KvCache { layers })
    }

    /// Copies one block in every layer.
    pub(crate) fn copy_block(&mut self, backend: &mut B, from: u32, to: u32) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| backend.copy_block(layer, from, to))
    }
}
