//! The one error type of the crate.
//!
//! Every variant says which file, tensor, setting or option is at fault, what was expected and what came.
//! Errors are `Clone`, because one fault of the engine is told to every request it hits.

use std::path::{Path, PathBuf};

use crate::finish_reason::FinishReason;

/// What can go wrong; nothing in this crate panics on bad input.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read, mapped or written.
    #[error("{path}: {reason}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// A file was read but its content is damaged or not of the format it should be.
    #[error("{path}: {reason}")]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, with expected and got.
        reason: String,
    },
    /// The model's configuration asks for something that is unknown or not supported.
    #[error("config setting `{setting}`: {reason}")]
    Config {
        /// The key as the file spells it.
        setting: String,
        /// What is supported, and what came.
        reason: String,
    },
    /// A tensor is absent, or has another shape or element type than the configuration asks for.
    #[error("tensor `{name}`: {reason}")]
    Tensor {
        /// The tensor's name in the file.
        name: String,
        /// Expected and got.
        reason: String,
    },
    /// The tokenizer cannot be built, or failed on a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The model has no chat template, or it cannot be read, is not valid, or ended with an error of its own.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// An option is outside its domain.
    #[error("option `{option}`: {reason}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// Its domain, and what came.
        reason: String,
    },
    /// Prompt and `max_tokens` together do not fit the model's context or the KV cache.
    #[error("request of {requested} tokens (prompt {prompt}) does not fit: the {what} holds {limit}")]
    TooLong {
        /// Tokens of the prompt; at least so many, if it is so much too long that not all were counted.
        prompt: usize,
        /// Tokens of prompt and `max_tokens`.
        requested: usize,
        /// The most that fits.
        limit: usize,
        /// `context` or `KV cache`.
        what: &'static str,
    },
    /// The prompt has no token, and the model has no token to start an empty text with.
    #[error("the prompt is empty, and this model has no token that starts a text")]
    EmptyPrompt,
    /// The request was turned away because too many are waiting.
    #[error("queue full: {waiting} sequences wait, the limit is {limit}")]
    QueueFull {
        /// Sequences that were waiting.
        waiting: usize,
        /// `LoadOptions::queue_limit`.
        limit: usize,
    },
    /// The model would not fit in memory.
    #[error(
        "model needs {required} bytes ({weights} weights, {cache} cache, {scratch} scratch), {available} are \
         available; {}",
        fitting(fitting_cache_tokens)
    )]
    OutOfMemory {
        /// Sum of the three parts, in bytes.
        required: u64,
        /// Weights, in bytes.
        weights: u64,
        /// KV cache, in bytes.
        cache: u64,
        /// Scratch, in bytes.
        scratch: u64,
        /// What the machine, the device, or `LoadOptions::memory_limit` allows, in bytes.
        available: u64,
        /// The largest `LoadOptions::cache_tokens` with which it would fit, if any.
        fitting_cache_tokens: Option<usize>,
    },
    /// Memory that was needed beside the model's own, or in spite of its estimate, could not be taken.
    #[error("no memory for {what}, {bytes} bytes: {reason}")]
    Allocation {
        /// What it was for.
        what: String,
        /// How much, in bytes.
        bytes: u64,
        /// What the operating system said, or how much there is.
        reason: String,
    },
    /// The device, instruction set or thread that was asked for is not there.
    #[error("{what} is not available: {reason}")]
    Unavailable {
        /// Device, instruction set or thread.
        what: String,
        /// Why not.
        reason: String,
    },
    /// The model gave logits that are not finite numbers. Its weights, or the device, are at fault; or a key or value is
    /// above 65,504, which is the most that a KV cache of f16 holds. The request ends with this, and no other does.
    #[error("logits at position {position}: expected finite numbers, got {got}; it began {began}")]
    NotFinite {
        /// The token after which it was, counted from 0 at the start of the prompt.
        position: usize,
        /// What came, and for which token.
        got: String,
        /// The first layer whose output is not finite, with its position: `in layer 3, at position 0`, and what the cache
        /// holds if that is f16; or `in the embedding`, or `after the last layer`.
        began: String,
    },
    /// A scoring was cancelled, or its deadline passed, before all scores were there.
    #[error("scoring ended before all scores were there: {}", interrupted(*reason))]
    Interrupted {
        /// [`FinishReason::Cancelled`] or [`FinishReason::Deadline`].
        reason: FinishReason,
    },
    /// The device failed in a step; the requests of that step end with this, later ones are served.
    #[error("device: {0}")]
    Device(String),
    /// The device's context is lost; this model handle cannot serve any more.
    #[error("device lost: {0}")]
    DeviceLost(String),
    /// The engine stopped after an internal fault; this model handle cannot serve any more.
    #[error("engine stopped: {0}")]
    EngineStopped(String),
    /// The process was forked after the model was loaded: a child has no thread that could compute.
    #[error(
        "the process was forked after the model was loaded, and its engine is in the parent only; load the model in \
         the process that uses it"
    )]
    Forked,
    /// The caller's progress callback asked to stop the loading.
    #[error("loading was cancelled")]
    LoadCancelled,
}

/// What ended it.
fn interrupted(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Deadline => "the deadline passed",
        _ => "it was cancelled",
    }
}

/// What would fit.
fn fitting(cache_tokens: &Option<usize>) -> String {
    match cache_tokens {
        Some(tokens) => format!("it would fit with cache_tokens {tokens}"),
        None => "it would not fit with any cache".into(),
    }
}

#[cfg(feature = "kernels")]
impl From<welm_kernels::Error> for Error {
    fn from(error: welm_kernels::Error) -> Self {
        use welm_kernels::Error as E;
        match error {
            E::NoCode | E::NoDevice(_) => {
                Error::Unavailable { what: "cuda device".into(), reason: error.to_string() }
            }
            E::Variable { name, expected, got } => {
                Error::option(name, format!("expected {expected} in the environment, got {}", quoted(&got)))
            }
            E::ContextLost(reason) => Error::DeviceLost(reason),
            other => Error::Device(other.to_string()),
        }
    }
}

/// A text in a message: as Rust and Python write it, without the end of a long one.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 40; // characters
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{:?}…", &text[..at]),
        None => format!("{text:?}"),
    }
}

/// `std::result::Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>, reason: impl ToString) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), reason: reason.to_string() }
    }

    pub(crate) fn file(path: impl AsRef<Path>, reason: impl ToString) -> Self {
        Error::InvalidFile { path: path.as_ref().to_path_buf(), reason: reason.to_string() }
    }

    pub(crate) fn config(setting: impl ToString, reason: impl ToString) -> Self {
        Error::Config { setting: setting.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn tensor(name: impl ToString, reason: impl ToString) -> Self {
        Error::Tensor { name: name.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn allocation(what: impl ToString, bytes: usize, reason: impl ToString) -> Self {
        Error::Allocation { what: what.to_string(), bytes: bytes as u64, reason: reason.to_string() }
    }

    pub(crate) fn option(option: &'static str, reason: impl ToString) -> Self {
        Error::InvalidOption { option, reason: reason.to_string() }
    }
}
