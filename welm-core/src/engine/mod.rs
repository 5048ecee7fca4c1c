//! The engine: one thread that computes the requests of all threads together.
//!
//! This thread owns weights, KV cache and scratch. Requests reach it through one channel, and results leave it through
//! one channel for each request. So calls from many threads share each forward pass without knowing of each other
//! (continuous batching), and the engine needs no lock.
//!
//! If a step fails on the device, the requests of that step end with the error, and all others go on. If the device is
//! lost or a step panics, all open and all later requests end with the error; the process goes on.
//!
//! [`handle`] takes requests in, [`step`] is the loop of the thread, [`choose`] turns logits into tokens, and
//! [`events`] sends results out. [`scheduler`] decides which sequences are computed next, [`block_manager`] in which
//! cache blocks.

mod block_manager;
mod choose;
mod constraint;
mod events;
mod handle;
pub(crate) mod request;
mod scheduler;
mod sequence;
pub(crate) mod stats;
mod step;
pub(crate) mod text;

use std::sync::Arc;

use crate::backend::{Backend, Limits};
use crate::checkpoint::load::Source;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::kv_cache::KvCache;
use crate::options::{LoadOptions, LoadProgress};
use crate::tokenizer::Tokenizer;
use crate::transformer::{Scratch, Weights};
use crate::weights::map::Files;

pub(crate) use self::events::{Event, EventReceiver};
pub(crate) use self::handle::{BLOCK_BYTES, Handle, queue_bytes};

/// Everything that the engine's thread owns.
pub(crate) struct Engine<B: Backend> {
    pub(crate) backend: B,
    weights: Weights<B>,
    kv: KvCache<B::KvLayer>,
    scratch: Scratch<B>,
    limits: Limits,
    tokenizer: Option<Arc<Tokenizer>>,
    eos: Vec<u32>,
    vocab_size: usize,
    /// The files from which weights are read.
    files: Files,
}

impl<B: Backend> Engine<B> {
    /// Hands the weights to a backend, and allocates everything that a step needs.
    pub(crate) fn load(
        mut backend: B,
        source: &Source,
        config: &ModelConfig,
        tokenizer: Option<Arc<Tokenizer>>,
        limits: Limits,
        options: &LoadOptions,
    ) -> Result<Self> {
        let total_bytes = source.stored_bytes()?;
        let mut done_bytes = 0;
        let weights = Weights::load(&mut backend, source, |bytes| {
            done_bytes += bytes;
            let go_on = options.progress.as_ref().is_none_or(|f| f(LoadProgress { done_bytes, total_bytes }));
            if go_on { Ok(()) } else { Err(Error::LoadCancelled) }
        })?;
        let kv = KvCache::new(config.n_layers, || backend.kv_layer(limits.n_blocks))?;
        let scratch = Scratch::new(&mut backend, config, limits)?;
        let mut files = source.files();
        files.check()?;
        let (eos, vocab_size) = (config.eos_token_ids.clone(), config.vocab_size);
        Ok(Engine { backend, weights, kv, scratch, limits, tokenizer, eos, vocab_size, files })
    }
}
