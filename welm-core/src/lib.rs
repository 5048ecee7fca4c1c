//! An embeddable engine for decoder-only language models.
//!
//! One call, [`Model::generate`], from as many threads as you like: an engine thread computes all
//! open requests together (continuous batching over a paged KV cache, with prompts in chunks and equal
//! beginnings shared), on the CPU with f32, f16, bf16 or int8 weights or with a GGUF file's blocks of two to six bits,
//! or, with the feature `cuda`, on a GPU with bf16 or int8 ones.
//!
//! ```
//! # fn main() -> welm_core::Result<()> {
//! use welm_core::{GenerateOptions, LoadOptions, Model};
//!
//! let model = Model::load("../examples/welm-nano", &LoadOptions::default())?;
//! let options = GenerateOptions { max_tokens: 24, seed: Some(7), ..GenerateOptions::default() };
//! for piece in model.stream("床前明月光，", &options)? {
//!     print!("{}", piece?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What it promises:
//!
//! - **Reproducible.** The same request with the same seed gives the same bits, whatever else is computed
//!   at the time, with any number of threads, on any instruction set, with a prefix-cache hit or without. On CUDA,
//!   too, for one kind of device; its bits are not the CPU's.
//! - **Whole characters.** Pieces of a stream never end inside a character and never show a stop string.
//! - **No surprises for the host.** Every failure is an [`enum@Error`] that says what was expected and what
//!   came; no prompt is truncated, and precision and device are those of the options. Their defaults
//!   keep keys and values in f16 on the CPU, and round activations to int8 before int8 and four-bit weights.
//!
//! The path of a request, each file calling only to its right:
//!
//! ```text
//! model -> tokenizer -> engine (scheduler, block_manager) -> batch -> transformer::forward -> backend
//!       -> sampler -> engine::text (stop strings, UTF-8) -> stream
//! ```
//!
//! Modules lie on floors, the lowest first; each imports only from lower ones (`tests/floors.rs` reads this list):
//!
//! ```text
//! finish_reason                   why a text ended, which errors and answers tell
//! error                           the one error type
//! options, side_file, host        what is asked, what lies beside weights, what the machine gives
//! memory, batch                   large memory; the rows of one forward pass
//! weights                         files of tensors: formats, tiles, what is computed with
//! config                          what a model is like
//! families, tokenizer             how each family spells settings and tensors; text to ids and back, chat templates
//! checkpoint                      a model's files: opened, described, quantised
//! kv_cache                        paged storage of keys and values
//! backend                         the operations, on the CPU and on CUDA
//! transformer, sampler            forward; logits to ids
//! output, estimate                what comes back; what memory it takes
//! engine                          the thread that computes all requests
//! model, measured                 the handle; parts of the engine for benches
//! ```

mod backend;
mod batch;
mod checkpoint;
mod config;
mod engine;
mod error;
mod estimate;
mod families;
mod finish_reason;
mod host;
mod kv_cache;
#[doc(hidden)]
pub mod measured;
mod memory;
mod model;
mod options;
mod output;
mod sampler;
mod side_file;
mod tokenizer;
mod transformer;
mod weights;

pub use checkpoint::describe::{Description, TypeCount};
pub use checkpoint::quantize::quantize;
pub use config::{
    Activation, LayerConfig, ModelConfig, ModelSizes, NormKind, QkNorm, QueryScale, Rope, RopePairing,
    RopeScaling,
};
pub use engine::stats::{Histogram, Stats};
pub use error::{Error, Result};
pub use estimate::Estimate;
pub use finish_reason::FinishReason;
/// For the bindings: runs foreign code; a panic of it becomes its message, and is printed nowhere.
#[doc(hidden)]
pub use host::panics::catch as catch_quietly;
/// For the bindings: whether what this thread logs is to be dropped.
#[doc(hidden)]
pub use host::quiet::{is_quiet, set as set_quiet};
pub use model::{Model, Prompt, Stream};
pub use options::{
    Activations, CacheDtype, CancelToken, Device, Domain, Dtype, GenerateOptions, LoadOptions, LoadProgress,
    OptionInfo, ProgressFn, ScoreOptions,
};
pub use output::{Choice, Finish, Generation, Piece, Score, Token, Usage};
pub use tokenizer::{ChatRequest, Json, Message};
