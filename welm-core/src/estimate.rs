//! How much memory a model will take, from the headers of its files and, on the CPU, its tokenizer.

use welm_cpu::int8::Grouping;

#[cfg(feature = "kernels")]
use crate::backend::LEAST_CHUNK_TOKENS;
use crate::backend::cpu::{Cpu, Matrix};
use crate::backend::{Backend, Limits};
use crate::batch::BLOCK_TOKENS;
use crate::checkpoint::load::Source;
use crate::config::ModelConfig;
use crate::config::part::{PartKind, PartSpec};
use crate::error::{Error, Result};
use crate::host::memory::Available;
use crate::options::LoadOptions;
use crate::transformer::Scratch;
use crate::weights::computed::Computed;
use crate::weights::formats::StoredType;

/// Bytes that a loaded model takes; see [`crate::Model::estimate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Estimate {
    /// Weights that are used in place, in the mapped file. The system can drop them from memory and read them again.
    pub mapped_bytes: u64,
    /// Weights that are converted or quantised into memory. Norms and biases always are.
    pub converted_bytes: u64,
    /// The KV cache.
    pub cache_bytes: u64,
    /// Activations, logits and whatever else a step needs. On the CPU also the tokenizer and the engine's queues.
    pub scratch_bytes: u64,
    /// Most tokens of one sequence.
    pub context_tokens: usize,
    /// Tokens that the KV cache holds, over all sequences.
    pub cache_tokens: usize,
}

/// One of so many parts of a device's free memory stays free: the driver gives memory in pages of two megabytes, and takes some
/// for code and recordings. For a model of 10 billion parameters in int8 these pages lose some 230 MB.
#[cfg(feature = "kernels")]
const RESERVED: u64 = 64;

impl Estimate {
    /// Everything together.
    pub fn total_bytes(&self) -> u64 {
        self.mapped_bytes + self.converted_bytes + self.cache_bytes + self.scratch_bytes
    }

    /// The memory that a model of this shape would take on the CPU if all its weights were converted while loading. If
    /// [`LoadOptions::dtype`] is auto, they are counted as f32. Tokenizer and queues are not counted.
    ///
    /// ```
    /// use welm_core::{Dtype, Estimate, LoadOptions, ModelConfig};
    /// let options = LoadOptions { dtype: Dtype::Int8, ..LoadOptions::default() };
    /// let xl = Estimate::of_config(&ModelConfig::welm_xl(), &options)?;
    /// assert_eq!(xl.converted_bytes >> 30, 10); // 8.1 bits a weight
    /// # Ok::<(), welm_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::InvalidOption`] if shape or options are impossible.
    pub fn of_config(config: &ModelConfig, options: &LoadOptions) -> Result<Self> {
        config.validate()?;
        options.validate()?;
        let stored = std::iter::once(StoredType::F32);
        let computed = Computed::of(stored, options.dtype, &Cpu::KERNELS).unwrap_or(Computed::F32);
        let matrices = config.parts().filter(|part| part.kind != PartKind::Norm);
        let bytes =
            |part: PartSpec| Matrix::bytes_of(computed, part.rows(), part.cols, Grouping::of_cols(part.cols));
        let mut estimate = Self::without_matrices::<Cpu>(config, options)?;
        estimate.converted_bytes += matrices.map(bytes).sum::<u64>();
        Ok(estimate)
    }

    /// Cache, scratch, and the weights that are f32 whatever the options say: norms and biases.
    fn without_matrices<B: Backend>(config: &ModelConfig, options: &LoadOptions) -> Result<Self> {
        let limits = Limits::of::<B>(config, options)?;
        let layer = B::kv_layer_bytes(config, options, limits.n_blocks);
        Ok(Estimate {
            mapped_bytes: 0,
            converted_bytes: config.parts().map(|part| vector_bytes(&part)).sum(),
            cache_bytes: layer * config.n_layers as u64,
            scratch_bytes: Scratch::<B>::bytes(config, limits) + B::scratch_bytes(config, options, limits),
            context_tokens: limits.max_context,
            cache_tokens: limits.n_blocks * BLOCK_TOKENS,
        })
    }

    pub(crate) fn of_source<B: Backend>(source: &Source, options: &LoadOptions) -> Result<Self> {
        let mut estimate = Self::without_matrices::<B>(&source.config, options)?;
        for spec in source.matrices() {
            let (bytes, mapped) = B::linear_bytes(&source.linear(&spec)?, options)?;
            *if mapped { &mut estimate.mapped_bytes } else { &mut estimate.converted_bytes } += bytes;
        }
        Ok(estimate)
    }

    /// The estimate for a device that has so much memory left, or what does not fit; with the options, in which the
    /// tokens of a step are no longer left open: as many as the device computes best, or as there is room for.
    #[cfg(feature = "kernels")]
    pub(crate) fn on_device<B: Backend>(
        source: &Source,
        options: &LoadOptions,
        free: u64,
    ) -> Result<(Self, LoadOptions)> {
        let free = free - free / RESERVED;
        let memory = Some(options.memory_limit.map_or(free, |limit| limit.min(free)));
        let usual = Limits::of::<B>(&source.config, options)?.chunk_tokens;
        let least = options.chunk_tokens.unwrap_or(LEAST_CHUNK_TOKENS);
        let mut chunk = usual;
        loop {
            let options = LoadOptions { chunk_tokens: Some(chunk), ..options.clone() };
            let estimate = Self::of_source::<B>(source, &options)?;
            match estimate.check(Available { memory, ..Available::default() }, 0) {
                Err(Error::OutOfMemory { .. }) if chunk > least => chunk = (chunk / 2).max(least),
                checked => {
                    checked?;
                    if chunk < usual {
                        tracing::warn!(
                            chunk,
                            usual,
                            "prompts go in steps of fewer tokens: memory has no room"
                        );
                    }
                    return Ok((estimate, options));
                }
            }
        }
    }

    /// Refuses what cannot fit, with the numbers. The files are mapped already. So many bytes of the scratch are for each
    /// block of the cache.
    pub(crate) fn check(&self, available: Available, scratch_of_block: u64) -> Result<()> {
        let beside_files = |left: Option<u64>| left.map(|left| left.saturating_add(self.mapped_bytes));
        let Available { memory, address_space, data } = available;
        let least = [memory, beside_files(address_space), beside_files(data)].into_iter().flatten().min();
        let Some(available) = least else { return Ok(()) };
        if self.total_bytes() <= available {
            return Ok(());
        }
        let blocks = (self.cache_tokens / BLOCK_TOKENS) as u64;
        let block_bytes = self.cache_bytes / blocks.max(1) + scratch_of_block;
        let left = available.saturating_sub(self.total_bytes() - blocks * block_bytes);
        let fitting = (left / block_bytes.max(1)) as usize * BLOCK_TOKENS;
        Err(Error::OutOfMemory {
            required: self.total_bytes(),
            weights: self.mapped_bytes + self.converted_bytes,
            cache: self.cache_bytes,
            scratch: self.scratch_bytes,
            available,
            fitting_cache_tokens: Some(fitting).filter(|&tokens| tokens > 0),
        })
    }
}

/// Bytes of a norm, or of a matrix's bias.
fn vector_bytes(part: &PartSpec) -> u64 {
    let vectors = u64::from(part.kind == PartKind::Norm) + u64::from(part.bias);
    4 * vectors * part.rows() as u64
}

#[cfg(test)]
mod tests;
