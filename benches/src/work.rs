//! The work of a model: operations of a prompt, bytes of a step.

use welm_core::{Estimate, ModelConfig};

/// Operations of the layers' matrix products for one token: a multiplication and an addition for each weight.
pub fn product_ops(c: &ModelConfig) -> u64 {
    let layer = c.dim * (c.qkv_dim() + c.n_heads * c.head_dim + c.up_dim() + c.hidden_dim);
    2 * (c.n_layers * layer) as u64
}

/// Operations of attention for a prompt of `n` tokens, of which row `i` sees `i + 1` keys and as many values.
pub fn attention_ops(c: &ModelConfig, n: usize) -> u64 {
    (c.n_layers * 2 * n * (n + 1) * c.n_heads * c.head_dim) as u64
}

/// Operations of the output projection for one token.
pub fn output_ops(c: &ModelConfig) -> u64 {
    2 * (c.vocab_size * c.dim) as u64
}

/// Bytes that a step with no context reads: all weights, except the embedding, unless it is also the output. Biases and
/// norms, less than a thousandth, are left out. All matrices have one element type here.
pub fn weight_bytes_read(c: &ModelConfig, memory: &Estimate) -> u64 {
    let all = memory.mapped_bytes + memory.converted_bytes;
    if c.tied_output {
        return all;
    }
    let table = (c.vocab_size * c.dim) as u64;
    let matrices = (product_ops(c) + output_ops(c)) / 2;
    (all as f64 * matrices as f64 / (matrices + table) as f64) as u64
}

/// Bytes of keys and values of one position.
pub fn cache_bytes_per_token(memory: &Estimate) -> u64 {
    memory.cache_bytes / memory.cache_tokens as u64
}
