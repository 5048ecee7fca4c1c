//! [`Request`]: what one call asks of the engine, and the events that answer it.

use std::sync::Arc;
use std::time::Instant;

use super::block_manager::{CacheRoot, Parent};
use super::constraint::Constraint;
use super::events::{Event, EventReceiver, EventSender, channel};
use crate::backend::TOP;
use crate::error::Result;
use crate::options::{CancelToken, GenerateOptions};
use crate::output::FinishReason;
use crate::sampler::{LogitsProcessor, SamplerParams, processors};

/// What a request wants computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// New tokens.
    Generate,
    /// Log-probabilities of the given tokens from this position on.
    Score { from: usize },
    /// The logits after each token from this position on.
    Logits { from: usize },
}

/// A validated request, as it travels to the engine.
pub(crate) struct Request {
    pub(crate) task: Task,
    pub(crate) prompt: Vec<u32>,
    /// Shown before the generated text.
    pub(crate) echo: Option<String>,
    pub(crate) max_tokens: usize,
    pub(crate) n: usize,
    pub(crate) sampling: SamplerParams,
    /// What changes logits before a token is chosen from them, in this order.
    pub(crate) processors: Vec<Box<dyn LogitsProcessor>>,
    /// At the beginning of each sequence; the first one takes it.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) stop: Arc<[String]>,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) seed: u64,
    pub(crate) ignore_eos: bool,
    /// Blocks of the cache are shared with requests of the same root only.
    pub(crate) cache_root: CacheRoot,
    pub(crate) submitted: Instant,
    pub(crate) deadline: Option<Instant>,
    /// The caller's token, if it gave one.
    pub(crate) cancel: Option<CancelToken>,
    /// Set when nobody listens any more.
    pub(crate) dropped: CancelToken,
    /// Empty, with room for all rows, for [`Task::Logits`].
    pub(crate) logits: Vec<f32>,
    events: EventSender,
}

/// Whether the caller's token or deadline ends a request; the token counts first.
pub(crate) fn interruption(
    cancel: Option<&CancelToken>,
    deadline: Option<Instant>,
    now: Instant,
) -> Option<FinishReason> {
    if cancel.is_some_and(CancelToken::is_cancelled) {
        Some(FinishReason::Cancelled)
    } else if deadline.is_some_and(|d| now >= d) {
        Some(FinishReason::Deadline)
    } else {
        None
    }
}

impl Request {
    /// With everything off, and the receiving end of its events.
    pub(crate) fn new(task: Task, prompt: Vec<u32>) -> (Self, EventReceiver) {
        let (events, receiver) = channel();
        let request = Request {
            task,
            prompt,
            echo: None,
            max_tokens: 0,
            n: 1,
            sampling: SamplerParams::from(&GenerateOptions::greedy(0)),
            processors: Vec::new(),
            constraint: None,
            logprobs: None,
            stop: Vec::new().into(),
            stop_token_ids: Vec::new(),
            seed: 0,
            ignore_eos: false,
            cache_root: CacheRoot::default(),
            submitted: Instant::now(),
            deadline: None,
            cancel: None,
            dropped: CancelToken::new(),
            logits: Vec::new(),
            events,
        };
        (request, receiver)
    }

    /// New tokens after a prompt, as the options ask; echo, seed and deadline are the caller's to set.
    pub(crate) fn generate(prompt: Vec<u32>, options: &GenerateOptions) -> (Self, EventReceiver) {
        let (request, receiver) = Request::new(Task::Generate, prompt);
        let request = Request {
            max_tokens: options.max_tokens,
            n: options.n,
            sampling: SamplerParams::from(options),
            processors: processors(options),
            logprobs: options.logprobs,
            stop: options.stop.clone().into(),
            stop_token_ids: options.stop_token_ids.clone(),
            ignore_eos: options.ignore_eos,
            cache_root: CacheRoot::of_salt(options.cache_salt.as_deref()),
            cancel: options.cancel.clone(),
            ..request
        };
        (request, receiver)
    }

    /// Whether somebody asked for the end, or nobody listens any more.
    pub(crate) fn interrupted(&self, now: Instant) -> Option<FinishReason> {
        if self.dropped.is_cancelled() {
            return Some(FinishReason::Cancelled);
        }
        interruption(self.cancel.as_ref(), self.deadline, now)
    }

    /// Sends, or notes that nobody listens.
    pub(crate) fn send(&self, event: Result<Event>) {
        if !self.events.send(event) {
            self.dropped.cancel();
        }
    }

    /// Whether log-probabilities of given tokens are asked for.
    pub(crate) fn scores(&self) -> bool {
        self.scored_from().is_some()
    }

    /// What precedes its first block.
    pub(super) fn root(&self) -> Parent {
        Parent::Root(self.cache_root.clone())
    }

    /// Why a token ends the sequence by itself, if it does.
    pub(crate) fn end_by(&self, id: u32, eos: &[u32]) -> Option<FinishReason> {
        if eos.contains(&id) && !self.ignore_eos {
            Some(FinishReason::EndOfText)
        } else {
            self.stop_token_ids.contains(&id).then_some(FinishReason::Stop)
        }
    }

    /// Whether its tokens are chosen from the largest logits alone, unless a constraint rules those out.
    pub(super) fn needs_only_top(&self) -> bool {
        let s = &self.sampling;
        let only_top = s.greedy || (1..TOP).contains(&s.top_k);
        self.task == Task::Generate && self.logprobs.is_none() && self.processors.is_empty() && only_top
    }

    /// First position whose log-probability is reported, if any is.
    pub(super) fn scored_from(&self) -> Option<usize> {
        match self.task {
            Task::Score { from } => Some(from),
            Task::Generate if self.echo.is_some() && self.logprobs.is_some() => Some(0),
            _ => None,
        }
    }
}
