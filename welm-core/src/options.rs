//! What a caller may ask for: [`LoadOptions`] once per model, [`GenerateOptions`] once per request.
//!
//! Both are validated once, on entry; after that the engine trusts them.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, Result, quoted};

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
    ///
    /// A Hopper device (compute capability 9.0, an H100 for instance) computes prompts with kernels that no other
    /// device has. Should they be at fault, the environment variable `WELM_NO_HOPPER=1` has it use those that the
    /// others have, which are slower there; the bits of prompts change with it. The log and
    /// [`Model::backend`](crate::Model::backend) say so. `0` and an empty value change nothing; any other is
    /// [`Error::InvalidOption`], with [`Device::Auto`], too.
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
    /// int8 with an f16 scale for every 128 weights of a row, each 64 of which were rotated by a Hadamard matrix; on
    /// CUDA, and for rows whose length is no multiple of 64, one for every 32 weights as they are.
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
    /// 8 bits, a scale for every group of values, as the weights are grouped: 32, or 128 that were rotated.
    ///
    /// On CUDA the sum of every 32 columns is converted from integers to floats and scaled by itself. On Hopper that is
    /// predicted to take longer than the products, and so longer than [`Activations::Int16`]; of the two forms of int8,
    /// [`Activations::Int8Rotated`] is the fast one. No GPU has measured either yet.
    Int8,
    /// CUDA only: 8 bits, one scale per token, after each 64 values were rotated by a Hadamard matrix; weights
    /// likewise, with one scale per row.
    ///
    /// A product is then one sum of integers, which is scaled once at its end, so that int8 tensor cores need not
    /// wait for scaling. Weights take 6 % less memory. A model that is stored as int8 is rounded twice: quantise
    /// from floats.
    Int8Rotated,
    /// 16 bits: int16 with a scale for every group on the CPU (half of the divergence or less, twice the arithmetic),
    /// bf16 on CUDA.
    Int16,
}

impl FromStr for Device {
    type Err = Error;

    /// `auto`, `cpu`, `cuda` (the first device) or `cuda:N`.
    fn from_str(text: &str) -> Result<Self> {
        let device = match text.split_once(':') {
            None if text == "auto" => Some(Device::Auto),
            None if text == "cpu" => Some(Device::Cpu),
            None if text == "cuda" => Some(Device::Cuda(0)),
            // Digits only: the integer's own parser takes a plus sign.
            Some(("cuda", ordinal)) if ordinal.bytes().all(|b| b.is_ascii_digit()) => {
                ordinal.parse().ok().map(Device::Cuda)
            }
            _ => None,
        };
        device.ok_or_else(|| {
            Error::option("device", format!("expected auto, cpu, cuda or cuda:N, got {}", quoted(text)))
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.pad("auto"),
            Device::Cpu => f.pad("cpu"),
            Device::Cuda(ordinal) => f.pad(&format!("cuda:{ordinal}")),
        }
    }
}

/// Spellings of an option's values. A value is displayed as its first one.
type Names<T> = [(&'static str, T)];

fn value_of<T: Copy>(option: &'static str, expected: &str, names: &Names<T>, text: &str) -> Result<T> {
    let named = names.iter().find(|(name, _)| *name == text);
    named
        .map(|&(_, value)| value)
        .ok_or_else(|| Error::option(option, format!("expected {expected}, got {}", quoted(text))))
}

fn name_of<T: PartialEq>(names: &Names<T>, value: &T) -> &'static str {
    names.iter().find(|(_, named)| named == value).map_or("", |&(name, _)| name)
}

impl Dtype {
    const NAMES: &Names<Self> = &[
        ("auto", Dtype::Auto),
        ("f32", Dtype::F32),
        ("bf16", Dtype::Bf16),
        ("int8", Dtype::Int8),
        ("float32", Dtype::F32),
        ("bfloat16", Dtype::Bf16),
    ];
}

impl FromStr for Dtype {
    type Err = Error;

    /// `auto`, `f32` (or `float32`), `bf16` (or `bfloat16`) or `int8`.
    fn from_str(text: &str) -> Result<Self> {
        value_of("dtype", "auto, f32, bf16 or int8", Self::NAMES, text)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(Self::NAMES, self))
    }
}

impl CacheDtype {
    const NAMES: &Names<Self> = &[
        ("f32", CacheDtype::F32),
        ("bf16", CacheDtype::Bf16),
        ("float32", CacheDtype::F32),
        ("bfloat16", CacheDtype::Bf16),
    ];
}

impl FromStr for CacheDtype {
    type Err = Error;

    /// `f32` (or `float32`) or `bf16` (or `bfloat16`).
    fn from_str(text: &str) -> Result<Self> {
        value_of("cache_dtype", "f32 or bf16", Self::NAMES, text)
    }
}

impl fmt::Display for CacheDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(Self::NAMES, self))
    }
}

impl Activations {
    const NAMES: &Names<Self> = &[
        ("auto", Activations::Auto),
        ("int8", Activations::Int8),
        ("int8_rotated", Activations::Int8Rotated),
        ("int16", Activations::Int16),
        ("int8-rotated", Activations::Int8Rotated),
    ];
}

impl FromStr for Activations {
    type Err = Error;

    /// `auto`, `int8`, `int8_rotated` (or `int8-rotated`) or `int16`.
    fn from_str(text: &str) -> Result<Self> {
        value_of("activations", "auto, int8, int8_rotated or int16", Self::NAMES, text)
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name_of(Self::NAMES, self))
    }
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
/// assert_eq!(options.max_running, 64);
/// ```
#[derive(Clone)]
pub struct LoadOptions {
    /// Where the model runs.
    pub device: Device,
    /// Element type of the weights. On CUDA bf16 or int8; what would take f32 there is an error that says so. The weights
    /// of an int8 folder stay int8 whatever is asked for, since the floats that they were made from are not in it; the log
    /// warns then.
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
    /// Prompt tokens computed in one step: what a long prompt delays the others by at most. `None` takes 256 on the CPU. On
    /// CUDA, where fewer would leave most of the device idle, it takes 2,048, or as many as a sequence has at most; if
    /// memory has no room for that, half as many again and again, down to 256, and the log warns. No result depends on it.
    pub chunk_tokens: Option<usize>,
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Most sequences that wait; a request beyond it is refused with [`Error::QueueFull`], and one that has more
    /// sequences by itself with [`Error::InvalidOption`].
    pub queue_limit: usize,
    /// Whether what was computed of a prompt's beginning is kept, and used by every later request that begins the same:
    /// by all who use this model. Who may send requests can tell by their time, and by [`Usage::cached_tokens`], whether
    /// another request began the same; where that must not be, give each tenant a
    /// [`GenerateOptions::cache_salt`] of its own, or switch this off.
    ///
    /// [`Usage::cached_tokens`]: crate::Usage::cached_tokens
    pub prefix_cache: bool,
    /// Whether weights that could be read where they lie in the mapped file are copied into memory of the process
    /// instead (on the CPU; a CUDA device has them in its own anyway). Loading takes as long as reading the file, and
    /// processes no longer share them; in return the file may be changed or deleted while the model lives, the system
    /// cannot drop them, and they lie in huge pages where there are any, which is faster for several sequences at once.
    pub copy_weights: bool,
    /// Most bytes that weights, cache and scratch may take; `None` takes what the machine has available.
    pub memory_limit: Option<u64>,
    /// Called while weights are read or quantised.
    pub progress: Option<ProgressFn>,
    /// Whether a model may have tensors that nothing reads, such as heads for other tasks; the log tells them. By default
    /// they are an error, because a norm, a bias or an adapter that is left out gives another model.
    pub allow_unread_tensors: bool,
    /// Whether a mapped file that is truncated while the model uses it is an [`Error::InvalidFile`] of the model's
    /// requests, instead of a SIGBUS that ends the process. For that a handler of the process is installed, once, at the
    /// first load that asks for it, in front of the one that is there: faults in welm's maps are its, all others go where
    /// they went before. It costs nothing until there is a fault. Without it, [`LoadOptions::copy_weights`] makes a
    /// loaded model independent of its file. Linux only; elsewhere this changes nothing.
    ///
    /// A file that is *changed* without being truncated cannot be told, nor one that ends within the same page.
    pub guard_mapped_files: bool,
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
            chunk_tokens: None,
            max_running: 64,
            queue_limit: 1024,
            prefix_cache: true,
            copy_weights: false,
            memory_limit: None,
            progress: None,
            allow_unread_tensors: false,
            guard_mapped_files: true,
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
            .field("copy_weights", &self.copy_weights)
            .field("memory_limit", &self.memory_limit)
            .field("allow_unread_tensors", &self.allow_unread_tensors)
            .field("guard_mapped_files", &self.guard_mapped_files)
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
        range("chunk_tokens", self.chunk_tokens.unwrap_or(1), 1, 65_536)?;
        range("max_running", self.max_running, 1, 4_096)?;
        range("queue_limit", self.queue_limit, 1, 1 << 20)?;
        range("threads", self.threads.unwrap_or(1), 1, 1_024)?;
        range("context_tokens", self.context_tokens.unwrap_or(1), 1, 1 << 24)?;
        range("cache_tokens", self.cache_tokens.unwrap_or(1), 1, 1 << 32)
    }
}

/// Stops a request from another thread. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct CancelToken {
    flag: Arc<AtomicBool>,
    /// Flags of the tokens that this one was made from.
    above: Vec<Arc<AtomicBool>>,
}

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that is cancelled with this one, and can be cancelled alone: for a caller that has a reason of its own to
    /// stop a request that was given a token.
    ///
    /// ```
    /// use welm_core::CancelToken;
    /// let all = CancelToken::new();
    /// let (one, other) = (all.child(), all.child());
    /// one.cancel();
    /// assert_eq!([&all, &one, &other].map(|token| token.is_cancelled()), [false, true, false]);
    /// all.cancel();
    /// assert!(other.is_cancelled());
    /// ```
    pub fn child(&self) -> Self {
        let above = self.above.iter().chain([&self.flag]).cloned().collect();
        CancelToken { flag: Arc::default(), above }
    }

    /// Asks every request that holds this token to stop; takes effect within one step.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Release);
    }

    /// Whether [`CancelToken::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.above.iter().chain([&self.flag]).any(|flag| flag.load(Ordering::Acquire))
    }
}

/// How texts are scored, by [`Model::score_pairs`](crate::Model::score_pairs).
#[derive(Debug, Clone, Default)]
pub struct ScoreOptions {
    /// Time after which the scoring ends with [`Error::Interrupted`], counted from the call.
    pub deadline: Option<Duration>,
    /// Ends the scoring from another thread, with [`Error::Interrupted`].
    pub cancel: Option<CancelToken>,
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
    /// Subtracted from a token's logit for each time that the generated text has it, from -100 to 100; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once from the logits of tokens that the generated text has, from -100 to 100; 0 is off.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens, before the penalties: from -100 to 100, or -infinity, which rules a token
    /// out. Those of a token that is here several times add up.
    pub logit_bias: Vec<(u32, f32)>,
    /// Strings that end a sequence; never part of the text. One may spell special tokens, which texts leave out:
    /// `<|im_end|>` ends a sequence at that token, and `\n<|im_end|>` at a line's end before it.
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
    /// Whether the model's end tokens are ignored, so that exactly `max_tokens` are generated, unless a stop string or
    /// one of [`GenerateOptions::stop_token_ids`] ends the text before.
    pub ignore_eos: bool,
    /// Tokens that end a sequence as the model's own end tokens do, with [`FinishReason::Stop`], and with `ignore_eos`,
    /// too. Like those they are part of neither text nor tokens; [`Finish::end_token`] tells which it was.
    ///
    /// [`FinishReason::Stop`]: crate::FinishReason::Stop
    /// [`Finish::end_token`]: crate::Finish::end_token
    pub stop_token_ids: Vec<u32>,
    /// Shares what was computed of prompts' beginnings only with requests of the same salt, of 1 to 256 bytes: a secret
    /// for each tenant keeps tenants from finding out each other's prompts by time or by
    /// [`Usage::cached_tokens`](crate::Usage::cached_tokens). `None` shares with all others that have none. It changes no
    /// text.
    pub cache_salt: Option<String>,
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
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            stop: Vec::new(),
            logprobs: None,
            seed: None,
            deadline: None,
            cancel: None,
            parse_special: false,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            cache_salt: None,
        }
    }
}

impl GenerateOptions {
    /// The most alternatives that `logprobs` may ask for.
    pub const MAX_LOGPROBS: usize = 100;
    /// The most sequences of one request.
    pub const MAX_N: usize = 128;
    /// The most stop strings, the most bytes of each, and the most stop tokens.
    pub const MAX_STOP: usize = 256;
    /// The most bytes of a `cache_salt`.
    pub const MAX_CACHE_SALT: usize = 256;

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
        float("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        float("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        for &(token, bias) in &self.logit_bias {
            if bias != f32::NEG_INFINITY && !(-100.0..=100.0).contains(&bias) {
                let reason = format!("expected -100 to 100, or -inf, for token {token}, got {bias}");
                return Err(Error::option("logit_bias", reason));
            }
        }
        if self.n == 0 || self.n > Self::MAX_N {
            return Err(Error::option("n", format!("expected 1 to {}, got {}", Self::MAX_N, self.n)));
        }
        if let Some(k) = self.logprobs.filter(|&k| k > Self::MAX_LOGPROBS) {
            return Err(Error::option(
                "logprobs",
                format!("expected at most {}, got {k}", Self::MAX_LOGPROBS),
            ));
        }
        if self.stop.len() > Self::MAX_STOP {
            let reason = format!("expected at most {} strings, got {}", Self::MAX_STOP, self.stop.len());
            return Err(Error::option("stop", reason));
        }
        for stop in &self.stop {
            if stop.is_empty() || stop.len() > Self::MAX_STOP {
                let reason =
                    format!("expected strings of 1 to {} bytes, got one of {}", Self::MAX_STOP, stop.len());
                return Err(Error::option("stop", reason));
            }
        }
        if self.stop_token_ids.len() > Self::MAX_STOP {
            let reason =
                format!("expected at most {} tokens, got {}", Self::MAX_STOP, self.stop_token_ids.len());
            return Err(Error::option("stop_token_ids", reason));
        }
        match &self.cache_salt {
            Some(salt) if salt.is_empty() || salt.len() > Self::MAX_CACHE_SALT => {
                let reason = format!("expected 1 to {} bytes, got {}", Self::MAX_CACHE_SALT, salt.len());
                Err(Error::option("cache_salt", reason))
            }
            _ => Ok(()),
        }
    }

    /// Checks what depends on the model: that tokens are its own, and that some are left to choose from.
    pub(crate) fn validate_tokens(&self, vocab_size: usize, has_tokenizer: bool) -> Result<()> {
        let biased = self.logit_bias.iter().map(|(id, _)| id);
        for (option, id) in biased
            .map(|id| ("logit_bias", id))
            .chain(self.stop_token_ids.iter().map(|id| ("stop_token_ids", id)))
        {
            if *id as usize >= vocab_size {
                return Err(Error::option(option, format!("expected tokens below {vocab_size}, got {id}")));
            }
        }
        let out = self.logit_bias.iter().filter(|(_, bias)| *bias == f32::NEG_INFINITY).map(|(id, _)| *id);
        // Fewer entries than tokens cannot rule out all.
        if self.logit_bias.len() >= vocab_size && out.collect::<HashSet<u32>>().len() == vocab_size {
            let reason = format!("expected to leave a token to choose, got -inf for all {vocab_size}");
            return Err(Error::option("logit_bias", reason));
        }
        if !self.stop.is_empty() && !has_tokenizer {
            let reason = format!(
                "expected none, got {}: the model has no tokenizer, and so no text that could match; use stop_token_ids",
                self.stop.len()
            );
            return Err(Error::option("stop", reason));
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
            GenerateOptions { frequency_penalty: 100.1, ..Default::default() },
            GenerateOptions { presence_penalty: f32::NAN, ..Default::default() },
            GenerateOptions { logit_bias: vec![(1, -100.0), (2, f32::INFINITY)], ..Default::default() },
            GenerateOptions { n: 0, ..Default::default() },
            GenerateOptions { n: 1000, ..Default::default() },
            GenerateOptions { logprobs: Some(101), ..Default::default() },
            GenerateOptions { stop: vec![String::new()], ..Default::default() },
            GenerateOptions { stop_token_ids: vec![0; 257], ..Default::default() },
            GenerateOptions { cache_salt: Some(String::new()), ..Default::default() },
            GenerateOptions { cache_salt: Some("é".repeat(129)), ..Default::default() },
        ];
        let names = [
            "temperature",
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "frequency_penalty",
            "presence_penalty",
            "logit_bias",
            "n",
            "n",
            "logprobs",
            "stop",
            "stop_token_ids",
            "cache_salt",
            "cache_salt",
        ];
        for (options, name) in bad.iter().zip(names) {
            match options.validate() {
                Err(Error::InvalidOption { option, .. }) => assert_eq!(option, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        let many = GenerateOptions { logprobs: Some(101), ..Default::default() }.validate().unwrap_err();
        assert_eq!(many.to_string(), "option `logprobs`: expected at most 100, got 101");
        assert!(GenerateOptions::default().validate().is_ok());
        assert!(LoadOptions::default().validate().is_ok());
        assert!(LoadOptions { chunk_tokens: Some(0), ..Default::default() }.validate().is_err());
        assert!(LoadOptions { threads: Some(0), ..Default::default() }.validate().is_err());
    }

    /// Each spelling gives its value, and what a value is displayed as gives it back.
    fn spelled<T: FromStr<Err = Error> + fmt::Display + fmt::Debug + PartialEq>(
        option: &str,
        right: &[(&str, T)],
        wrong: &[&str],
        expected: &str,
    ) {
        for (text, value) in right {
            assert_eq!(text.parse().as_ref(), Ok(value));
            assert_eq!(value.to_string().parse().as_ref(), Ok(value));
        }
        for text in wrong {
            let want = format!("option `{option}`: expected {expected}, got {text:?}");
            assert_eq!(text.parse::<T>().unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn names_of_values_are_read_as_they_are_written() {
        let devices = [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:12", Device::Cuda(12)),
        ];
        let wrong = ["", "CPU", "gpu", "cuda:", "cuda:+1", "cuda:-1", "cuda:x", "cpu:0", "cuda:0:1", " cpu"];
        spelled("device", &devices, &wrong, "auto, cpu, cuda or cuda:N");
        let more_than_usize = "cuda:99999999999999999999999";
        spelled("device", &devices, &[more_than_usize], "auto, cpu, cuda or cuda:N");

        let wrong = ["", "F32", "f16", "int4"];
        spelled("dtype", Dtype::NAMES, &wrong, "auto, f32, bf16 or int8");
        spelled("cache_dtype", CacheDtype::NAMES, &["auto", "int8", ""], "f32 or bf16");
        let wrong = ["", "bf16", "int8 rotated"];
        spelled("activations", Activations::NAMES, &wrong, "auto, int8, int8_rotated or int16");

        let shown = [Dtype::Auto, Dtype::F32, Dtype::Bf16, Dtype::Int8].map(|x| x.to_string());
        assert_eq!(shown, ["auto", "f32", "bf16", "int8"]);
        assert_eq!([CacheDtype::F32, CacheDtype::Bf16].map(|x| x.to_string()), ["f32", "bf16"]);
        let all = [Activations::Auto, Activations::Int8, Activations::Int8Rotated, Activations::Int16];
        assert_eq!(all.map(|x| x.to_string()), ["auto", "int8", "int8_rotated", "int16"]);
        assert_eq!(Device::Cuda(0).to_string(), "cuda:0");
    }
}
