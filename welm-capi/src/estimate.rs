//! The memory that a model takes.

use welm_core::Estimate;

use crate::sized::Growing;

/// Memory that a model takes. Set `struct_size` before the call that fills it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_estimate {
    /// `sizeof(welm_estimate)`.
    pub struct_size: usize,
    /// Weights that are used directly from the mapped file; the system can drop them from memory and read them again.
    pub mapped_bytes: u64,
    /// Weights that are converted or quantised into memory.
    pub converted_bytes: u64,
    /// The KV cache.
    pub cache_bytes: u64,
    /// Activations, logits and all else that a step needs; on the CPU also the tokenizer and the queues of requests.
    pub scratch_bytes: u64,
    /// Everything together.
    pub total_bytes: u64,
    /// Most tokens of one sequence.
    pub context_tokens: usize,
    /// Tokens that the KV cache holds, over all sequences.
    pub cache_tokens: usize,
}

// SAFETY: `repr(C)`, size first; integers of the same size.
unsafe impl Growing for welm_estimate {}

impl From<Estimate> for welm_estimate {
    fn from(e: Estimate) -> Self {
        welm_estimate {
            struct_size: size_of::<Self>(),
            mapped_bytes: e.mapped_bytes,
            converted_bytes: e.converted_bytes,
            cache_bytes: e.cache_bytes,
            scratch_bytes: e.scratch_bytes,
            total_bytes: e.total_bytes(),
            context_tokens: e.context_tokens,
            cache_tokens: e.cache_tokens,
        }
    }
}
