//! What a caller may ask for: [`LoadOptions`] once per model, [`GenerateOptions`] once per request.
//!
//! Both are validated once, on entry; behind that the engine trusts them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The first CUDA device if there is one that can run this model as the other options ask; else the CPU. The
    /// log says which, and why not the other.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number, from 0. If it cannot be used, for whatever reason, that is an error.
    Cuda(usize),
}

/// Element type of the weights in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dtype {
    /// Never less exact than the file: f32, f16 and bf16 as stored; Q8_0 as int8, Q4_0 and Q4_1 as four bits,
    /// which hold them without loss (on CUDA Q4_0 as int8, and Q4_1 not).
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16: f32 arithmetic over weights rounded to 8 bits of mantissa.
    Bf16,
    /// int8 with one f16 scale per 32 weights of a row.
    Int8,
}

/// Element type of the cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheDtype {
    /// 32-bit floats.
    F32,
    /// bfloat16: half the memory.
    #[default]
    Bf16,
}

/// How many bits an activation has when it meets an int8 or four-bit weight.
///
/// Generated tokens on CUDA, and the output projection everywhere, take 16 bits whatever this says: there the
/// weights are what must be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// What the device does best and is at least as exact as llama.cpp's Q8_0: [`Activations::Int8`] on the CPU,
    /// [`Activations::Int16`] on CUDA.
    #[default]
    Auto,
    /// 8 bits, one scale per 32 values.
    Int8,
    /// CUDA only: 8 bits, one scale per token, after each 64 values were rotated by a Hadamard matrix; weights
    /// likewise, with one scale per row. Products need no scale inside, which is what holds int8 tensor cores up, and
    /// weights take 6 % less memory. A model that is stored as int8 is rounded twice:
    /// quantise from floats.
    Int8Rotated,
    /// 16 bits: int16 with one scale per 32 values on the CPU (a third of the divergence, twice the arithmetic),
    /// bf16 on CUDA.
    Int16,
}

/// One report while a model loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of weights that are ready.
    pub done_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// A callback for [`LoadProgress`]; returning `false` ends the loading with [`Error::LoadCancelled`].
pub type ProgressFn = Arc<dyn Fn(LoadProgress) -> bool + Send + Sync>;

/// How a model is loaded. `LoadOptions::default()` is right for most programs.
///
/// ```
/// use welm_core::{Dtype, LoadOptions};
/// let options = LoadOptions { dtype: Dtype::Int8, threads: Some(2), ..LoadOptions::default() };
/// assert_eq!(options.chunk_tokens, 256);
/// ```
#[derive(Clone)]
pub struct LoadOptions {
    /// Where the model runs.
    pub device: Device,
    /// Element type of the weights. On CUDA bf16 or int8; what would take f32 there is an error that says so.
    pub dtype: Dtype,
    /// Element type of the KV cache; bf16 on CUDA.
    pub cache_dtype: CacheDtype,
    /// Bits of an activation before an int8 or four-bit weight; without effect on float weights.
    pub activations: Activations,
    /// Compute threads; `None` takes as many as affinity and cgroup quota allow.
    pub threads: Option<usize>,
    /// Instruction set to use at most: `scalar`; on x86-64 `avx2`, `avxvnni` or `avx512vnni`; on AArch64 `neon` or
    /// `neondot`. `None` asks the environment variable `WELM_ISA`, then takes the best. One that the machine lacks is
    /// an error.
    pub isa: Option<String>,
    /// Most tokens of one sequence; `None` takes the model's own limit. A larger one is an error.
    pub context_tokens: Option<usize>,
    /// Tokens that the KV cache holds, over all sequences; `None` takes room for eight full contexts, but no
    /// more than 32,768 tokens. One sequence cannot be longer than that: a longer request is
    /// [`Error::TooLong`], which names the KV cache.
    pub cache_tokens: Option<usize>,
    /// Prompt tokens computed in one step: what a long prompt delays the others by at most.
    pub chunk_tokens: usize,
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Most sequences that wait; a request beyond it is refused with [`Error::QueueFull`].
    pub queue_limit: usize,
    /// Whether blocks of equal prompt beginnings are kept and shared between requests.
    pub prefix_cache: bool,
    /// Most bytes that weights, cache and scratch may take; `None` takes what the machine has available.
    pub memory_limit: Option<u64>,
    /// Called while weights are read or quantised.
    pub progress: Option<ProgressFn>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            device: Device::Auto,
            dtype: Dtype::Auto,
            cache_dtype: CacheDtype::default(),
            activations: Activations::default(),
            threads: None,
            isa: None,
            context_tokens: None,
            cache_tokens: None,
            chunk_tokens: 256,
            max_running: 64,
            queue_limit: 1024,
            prefix_cache: true,
            memory_limit: None,
            progress: None,
        }
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions")
            .field("device", &self.device)
            .field("dtype", &self.dtype)
            .field("cache_dtype", &self.cache_dtype)
            .field("activations", &self.activations)
            .field("threads", &self.threads)
            .field("isa", &self.isa)
            .field("context_tokens", &self.context_tokens)
            .field("cache_tokens", &self.cache_tokens)
            .field("chunk_tokens", &self.chunk_tokens)
            .field("max_running", &self.max_running)
            .field("queue_limit", &self.queue_limit)
            .field("prefix_cache", &self.prefix_cache)
            .field("memory_limit", &self.memory_limit)
            .finish_non_exhaustive()
    }
}

impl LoadOptions {
    /// Checks every option's domain.
    pub(crate) fn validate(&self) -> Result<()> {
        let range = |option, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(Error::option(option, format!("expected {low} to {high}, got {value}")))
            }
        };
        range("chunk_tokens", self.chunk_tokens, 1, 65_536)?;
        range("max_running", self.max_running, 1, 4_096)?;
        range("queue_limit", self.queue_limit, 1, 1 << 20)?;
        range("threads", self.threads.unwrap_or(1), 1, 1_024)?;
        range("context_tokens", self.context_tokens.unwrap_or(1), 1, 1 << 24)?;
        range("cache_tokens", self.cache_tokens.unwrap_or(1), 1, 1 << 32)
    }
}

/// Stops a request from another thread. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every request that holds this token to stop; takes effect within one step.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether [`CancelToken::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How a text is continued. The defaults of the first six are those of WeLM's public API.
///
/// ```
/// use welm_core::GenerateOptions;
/// let options = GenerateOptions { max_tokens: 64, temperature: 0.0, ..GenerateOptions::default() };
/// assert_eq!(options.top_k, 50);
/// ```
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most tokens generated for each sequence.
    pub max_tokens: usize,
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps the likeliest tokens whose probabilities reach this sum; 0 is greedy, 1 is off.
    pub top_p: f32,
    /// Keeps this many of the likeliest tokens; 0 is off.
    pub top_k: usize,
    /// Sequences returned; the prompt is computed once.
    pub n: usize,
    /// Whether the prompt is part of the text, and of the log-probabilities if those are asked for.
    pub echo: bool,
    /// Drops tokens less likely than this share of the likeliest one's probability; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that prompt or text contain; 1 is off.
    pub repetition_penalty: f32,
    /// Strings that end a sequence; never part of the text.
    pub stop: Vec<String>,
    /// How many likeliest alternatives are reported with each token's log-probability; `None` reports nothing.
    pub logprobs: Option<usize>,
    /// Seed of the random numbers; `None` draws one. The result reports it.
    pub seed: Option<u64>,
    /// Time after which the request ends with what it has, counted from submission.
    pub deadline: Option<Duration>,
    /// Ends the request from another thread.
    pub cancel: Option<CancelToken>,
    /// Whether special tokens written in the prompt (`<|endoftext|>`) are special; otherwise they are text.
    pub parse_special: bool,
    /// Whether the end-of-text token is ignored, so that exactly `max_tokens` are generated.
    pub ignore_eos: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 16,
            temperature: 0.85,
            top_p: 0.95,
            top_k: 50,
            n: 1,
            echo: false,
            min_p: 0.0,
            repetition_penalty: 1.0,
            stop: Vec::new(),
            logprobs: None,
            seed: None,
            deadline: None,
            cancel: None,
            parse_special: false,
            ignore_eos: false,
        }
    }
}

impl GenerateOptions {
    /// The most alternatives that `logprobs` may ask for.
    pub const MAX_LOGPROBS: usize = 100;
    /// The most sequences of one request.
    pub const MAX_N: usize = 128;
    /// The most stop strings, and the most bytes of each.
    pub const MAX_STOP: usize = 256;

    /// Greedy decoding of `max_tokens` tokens, the rest at their defaults.
    pub fn greedy(max_tokens: usize) -> Self {
        GenerateOptions { max_tokens, temperature: 0.0, ..Self::default() }
    }

    /// Whether the likeliest token is always taken.
    pub(crate) fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_p == 0.0 || self.top_k == 1
    }

    /// Checks every option's domain.
    pub(crate) fn validate(&self) -> Result<()> {
        let float = |option, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(Error::option(option, format!("expected {low} to {high}, got {value}")))
            }
        };
        float("temperature", self.temperature, 0.0, 100.0)?;
        float("top_p", self.top_p, 0.0, 1.0)?;
        float("min_p", self.min_p, 0.0, 1.0)?;
        float("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        if self.n == 0 || self.n > Self::MAX_N {
            return Err(Error::option("n", format!("expected 1 to {}, got {}", Self::MAX_N, self.n)));
        }
        if self.logprobs.is_some_and(|k| k > Self::MAX_LOGPROBS) {
            let reason = format!("expected at most {}, got {:?}", Self::MAX_LOGPROBS, self.logprobs);
            return Err(Error::option("logprobs", reason));
        }
        if self.stop.len() > Self::MAX_STOP {
            let reason = format!("expected at most {} strings, got {}", Self::MAX_STOP, self.stop.len());
            return Err(Error::option("stop", reason));
        }
        for stop in &self.stop {
            if stop.is_empty() || stop.len() > Self::MAX_STOP {
                let reason = format!("expected 1 to {} bytes, got {}", Self::MAX_STOP, stop.len());
                return Err(Error::option("stop", reason));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_outside_their_domain_are_named() {
        let bad = [
            GenerateOptions { temperature: -1.0, ..Default::default() },
            GenerateOptions { temperature: f32::NAN, ..Default::default() },
            GenerateOptions { top_p: 1.5, ..Default::default() },
            GenerateOptions { min_p: -0.1, ..Default::default() },
            GenerateOptions { repetition_penalty: 0.0, ..Default::default() },
            GenerateOptions { n: 0, ..Default::default() },
            GenerateOptions { n: 1000, ..Default::default() },
            GenerateOptions { logprobs: Some(101), ..Default::default() },
            GenerateOptions { stop: vec![String::new()], ..Default::default() },
        ];
        let names = [
            "temperature",
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "n",
            "n",
            "logprobs",
            "stop",
        ];
        for (options, name) in bad.iter().zip(names) {
            match options.validate() {
                Err(Error::InvalidOption { option, .. }) => assert_eq!(option, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(GenerateOptions::default().validate().is_ok());
        assert!(LoadOptions::default().validate().is_ok());
        assert!(LoadOptions { chunk_tokens: 0, ..Default::default() }.validate().is_err());
        assert!(LoadOptions { threads: Some(0), ..Default::default() }.validate().is_err());
    }
}
