//! The dozen operations that `transformer::forward` calls, and the data they pass around.
//!
//! A backend owns the compute threads or the device, and whatever scratch its own arithmetic needs. Model
//! code is generic over it, so a backend is complete when this trait is implemented, and it cannot leak
//! into the engine. Every operation works row by row: the result of a row depends on that row (and on its
//! own sequence's cache) only, never on which other rows are in the batch. That is what makes a request's
//! text independent of its neighbours, of chunk boundaries and of prefix-cache hits.

pub(crate) mod cpu;
#[cfg(feature = "kernels")]
pub(crate) mod cuda;

use std::ops::Range;

use crate::batch::{BLOCK_TOKENS, Batch};
use crate::checkpoint::load::{LinearSource, NormSource};
use crate::config::{Activation, LayerConfig, ModelConfig};
use crate::error::{Error, Result};
use crate::options::LoadOptions;
use crate::weights::computed::Kernels;

/// Logits of a row that a backend finds the largest of; a request that can choose from so many needs all.
pub(crate) const TOP: usize = 64;
/// As few prompt tokens as a step has without being asked for fewer.
pub(crate) const LEAST_CHUNK_TOKENS: usize = 256;

/// Sizes that scratch is allocated for, once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most prompt tokens of a step.
    pub(crate) chunk_tokens: usize,
    /// Most rows (tokens) of a step.
    pub(crate) max_rows: usize,
    /// Most rows that go through the output projection together.
    pub(crate) max_logit_rows: usize,
    /// Most tokens of a sequence.
    pub(crate) max_context: usize,
    /// Tokens that rotary embeddings are stretched for: the context that was asked for, however many the cache holds.
    pub(crate) rope_context: usize,
    /// Blocks of the KV cache, over all sequences.
    pub(crate) n_blocks: usize,
}

impl Limits {
    /// Those of a model that is loaded with these options.
    pub(crate) fn of<B: Backend>(config: &ModelConfig, options: &LoadOptions) -> Result<Self> {
        let context = options.context_tokens.unwrap_or(config.max_context);
        let longest = config.longest_context();
        if context > longest {
            let reason = format!("expected at most the model's {longest}, got {context}");
            return Err(Error::option("context_tokens", reason));
        }
        let cache = options.cache_tokens.unwrap_or_else(|| context.saturating_mul(8).min(32_768));
        let n_blocks = cache.div_ceil(BLOCK_TOKENS);
        let max_context = context.min(n_blocks * BLOCK_TOKENS);
        let usual_chunk = B::CHUNK_TOKENS.min(max_context.max(LEAST_CHUNK_TOKENS));
        let chunk_tokens = options.chunk_tokens.unwrap_or(usual_chunk);
        Ok(Limits {
            chunk_tokens,
            max_rows: chunk_tokens + options.max_running,
            max_logit_rows: options.max_running.min(32),
            max_context,
            rope_context: context,
            n_blocks,
        })
    }
}

/// What a buffer holds, from which a backend takes its element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The residual stream, which every layer adds to, and what is normalised before it is added.
    Residual,
    /// What a normalisation makes for the products after it.
    Normed,
    /// Anything else between two operations.
    Hidden,
    /// What an activation function reads, if it is not fused with the product before it.
    Gates,
    /// Logits.
    Logits,
}

/// The largest logits of some rows: `k` of each, descending, equal ones by token.
pub(crate) struct Top<'a> {
    pub(crate) k: usize,
    pub(crate) values: &'a [f32], // (rows, k)
    pub(crate) ids: &'a [u32],    // (rows, k); u32::MAX where a row has fewer
}

/// What `forward` is written against.
///
/// `(n, d)` below means `n` rows of the current batch, `d` columns, f32 in the caller's eyes; a backend may
/// keep another type inside.
pub(crate) trait Backend: Sized + Send + 'static {
    /// Whether a token's row has the same bits as part of a prompt and as a generated token. If not, a token is
    /// computed the same way each time (see [`Batch`]), and only what prompts have computed is shared by the prefix
    /// cache.
    const ONE_ARITHMETIC: bool;
    /// What it can compute with.
    const KERNELS: Kernels;
    /// Prompt tokens of a step, if the options leave it open, and a sequence may have so many.
    const CHUNK_TOKENS: usize = LEAST_CHUNK_TOKENS;
    /// Whether [`Backend::keep`] drops rows.
    const KEEPS: bool = false;
    /// Activations, `(up to max_rows, cols)`.
    type Buffer: Send;
    /// Weight and bias of a normalisation, `(dim)`.
    type Norm: Send;
    /// A weight matrix `(rows, cols)` with its bias `(rows)`; also an embedding table.
    type Linear: Send;
    /// Keys and values of one layer: `n_blocks` of `n_kv_heads` of `BLOCK_TOKENS` times `head_dim` each, a block
    /// in one piece, in an order of the backend's own.
    type KvLayer: Send;

    /// Bytes that the backend allocates beside weights, cache and buffers.
    fn scratch_bytes(config: &ModelConfig, options: &LoadOptions, limits: Limits) -> u64;
    /// Bytes of a buffer.
    fn buffer_bytes(max_rows: usize, cols: usize, role: Role) -> u64;
    /// Bytes of a matrix in memory, and whether they are the mapped file's own.
    ///
    /// # Errors
    /// If the backend cannot compute with it as the options ask.
    fn linear_bytes(source: &LinearSource, options: &LoadOptions) -> Result<(u64, bool)>;
    /// Bytes of one layer's cache.
    fn kv_layer_bytes(config: &ModelConfig, options: &LoadOptions, n_blocks: usize) -> u64;
    /// Takes a normalisation's weights.
    fn load_norm(&mut self, source: NormSource) -> Result<Self::Norm>;
    /// Takes a matrix, in the element type of the options.
    fn load_linear(&mut self, source: LinearSource) -> Result<Self::Linear>;
    /// Allocates one layer's cache.
    fn kv_layer(&mut self, n_blocks: usize) -> Result<Self::KvLayer>;
    /// Allocates activations.
    fn buffer(&mut self, max_rows: usize, cols: usize, role: Role) -> Result<Self::Buffer>;
    /// The largest key or value that its cache holds, if that is less than the largest f32.
    fn largest_cached(&self) -> Option<f32> {
        None
    }
    /// One line for the log: threads, instruction set.
    fn describe(&self) -> String;

    /// Called once a step, before everything else: rotary angles of the batch's positions.
    fn begin(&mut self, batch: &Batch) -> Result<()>;
    /// Runs `body`, which is the same for every batch of so many rows: a backend may record it once and repeat that.
    fn repeat(&mut self, mut body: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        body(self)
    }
    /// `x = table[token_id] * scale`, `(n, dim)`.
    fn embed(&mut self, x: &mut Self::Buffer, table: &Self::Linear, scale: f32, batch: &Batch) -> Result<()>;
    /// `out = norm(x)`, `(n, dim)`.
    fn norm(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, norm: &Self::Norm) -> Result<()>;
    /// `x += norm(y)`, `(n, dim)`, both as for [`Role::Residual`]; `y` is used up.
    fn norm_add(&mut self, x: &mut Self::Buffer, y: &mut Self::Buffer, norm: &Self::Norm) -> Result<()>;
    /// `out[i] = norm(x[row])` of the wanted rows `some` of the batch that has begun, `(some.len(), dim)`.
    fn norm_rows(
        &mut self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        some: Range<usize>,
        norm: &Self::Norm,
    ) -> Result<()>;
    /// `out = x W^T + b`, `(n, rows)`.
    fn linear(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, w: &Self::Linear) -> Result<()>;
    /// `out += x W^T + b`, `(n, rows)`.
    fn linear_add(&mut self, out: &mut Self::Buffer, x: &Self::Buffer, w: &Self::Linear) -> Result<()>;
    /// `out = f(x W^T + b)`, `(n, hidden_dim)`; `gates` is a buffer for what is between. The matrix of a gated function
    /// has gates and ups, `(2 hidden_dim, dim)`.
    fn linear_activate(
        &mut self,
        out: &mut Self::Buffer,
        gates: &mut Self::Buffer,
        x: &Self::Buffer,
        w: &Self::Linear,
        f: Activation,
    ) -> Result<()>;
    /// `out = x W^T`, `(n, vocab_size)`: as `linear`, with the most exact activations there are. With a soft cap `c`,
    /// `c tanh(out / c)`.
    fn logits(
        &mut self,
        out: &mut Self::Buffer,
        x: &Self::Buffer,
        w: &Self::Linear,
        soft_cap: Option<f32>,
    ) -> Result<()>;
    /// Turns q and k of `qkv`, `(n, qkv_dim)`, in place, by the layer's rotary embedding, if it has one, and writes k and v
    /// to the batch's slots. Where there are norms of q and of k, they are applied as the layer says, before or after. Last,
    /// q is multiplied by the layer's query scale, if there is one.
    fn rope_and_cache(
        &mut self,
        qkv: &mut Self::Buffer,
        kv: &mut Self::KvLayer,
        batch: &Batch,
        layer: &LayerConfig,
        norms: Option<&[Self::Norm; 2]>,
    ) -> Result<()>;
    /// `softmax(scale q k^T) v` of each row over its own sequence, itself included: `(n, n_heads * head_dim)`. The scale,
    /// the soft cap of the scores and how many keys a row sees are the layer's.
    fn attention(
        &mut self,
        out: &mut Self::Buffer,
        qkv: &Self::Buffer,
        kv: &Self::KvLayer,
        batch: &Batch,
        layer: &LayerConfig,
    ) -> Result<()>;
    /// Drops all rows of a buffer but some, given ascending; only where [`Backend::KEEPS`].
    fn keep(&mut self, _buffer: &mut Self::Buffer, _rows: &[u32]) -> Result<()> {
        Ok(())
    }
    /// Copies one block of one layer's cache.
    fn copy_block(&mut self, kv: &mut Self::KvLayer, from: u32, to: u32) -> Result<()>;
    /// The largest logits of the buffer's rows, where that is cheaper than [`Backend::read`]; else none.
    fn top(&mut self, _logits: &Self::Buffer) -> Result<Option<Top<'_>>> {
        Ok(None)
    }
    /// The buffer's rows on the host, row-major `(n, cols)`; mutable, because sampling works in place.
    fn read<'a>(&mut self, buffer: &'a mut Self::Buffer) -> Result<&'a mut [f32]>;
}
