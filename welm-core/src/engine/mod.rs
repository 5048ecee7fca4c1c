//! The engine: requests of many threads, computed together by one.
//!
//! One thread owns weights, cache and scratch; requests reach it through a channel, and pieces leave it
//! through one channel per request. Calls from many threads therefore share each forward pass without
//! knowing of each other (continuous batching), and nothing in here needs a lock.
//!
//! If a step fails on the device, its requests are told why, and the others go on. If the device is lost or a step
//! panics, every open request and every later one is told why; the host goes on.
//!
//! [`handle`] is how requests get in, [`step`] what the thread does again and again, [`choose`] how logits become tokens,
//! [`events`] how pieces get out. [`scheduler`] and [`block_manager`] decide who is computed, and where.

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
pub(crate) use self::handle::{Handle, queue_bytes};

/// Everything the engine thread owns.
pub(crate) struct Engine<B: Backend> {
    pub(crate) backend: B,
    weights: Weights<B>,
    kv: KvCache<B::KvLayer>,
    scratch: Scratch<B>,
    limits: Limits,
    tokenizer: Option<Arc<Tokenizer>>,
    eos: Vec<u32>,
    vocab_size: usize,
    /// What weights are read from.
    files: Files,
}

impl<B: Backend> Engine<B> {
    /// Hands the weights to a backend, and allocates all that a step needs.
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
