//! [`Request`]: what one call asks of the engine, and where the answer goes.

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

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// New tokens.
    Generate,
    /// Log-probabilities of the given tokens, from position `from` on.
    Score { from: usize },
    /// The logits after each given token, from position `from` on.
    Logits { from: usize },
}

/// A validated request, as it is sent to the engine's thread.
pub(crate) struct Request {
    pub(crate) task: Task,
    pub(crate) prompt: Vec<u32>,
    /// Text to show before the generated text: the prompt.
    pub(crate) echo: Option<String>,
    pub(crate) max_tokens: usize,
    pub(crate) n: usize,
    pub(crate) sampling: SamplerParams,
    /// They change logits before a token is chosen from them, in this order.
    pub(crate) processors: Vec<Box<dyn LogitsProcessor>>,
    /// The constraint, as it is at the beginning of each sequence. The first sequence takes it, the others fork it.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) stop: Arc<[String]>,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) seed: u64,
    pub(crate) ignore_eos: bool,
    /// Cache blocks are shared only with requests that have the same root.
    pub(crate) cache_root: CacheRoot,
    pub(crate) submitted: Instant,
    pub(crate) deadline: Option<Instant>,
    /// The token by which the caller can cancel, if it gave one.
    pub(crate) cancel: Option<CancelToken>,
    /// Set when the receiver of the events is gone.
    pub(crate) dropped: CancelToken,
    /// For [`Task::Logits`]: empty, with capacity for all rows.
    pub(crate) logits: Vec<f32>,
    events: EventSender,
}

/// Whether the cancel token or the deadline ends a request at time `now`. If both do, the token is the reason.
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
    /// A request with all options off, and the receiver of its events.
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

    /// A request for new tokens after a prompt, with these options. The caller sets echo, seed and deadline.
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

    /// Prefix-cache entries are shared only between requests with the same salt.
    pub(crate) fn set_salt(&mut self, salt: Option<&str>) {
        self.cache_root = CacheRoot::of_salt(salt);
    }

    /// Why the request must end at time `now`, if it must: it was cancelled, is late, or its receiver is gone.
    pub(crate) fn interrupted(&self, now: Instant) -> Option<FinishReason> {
        if self.dropped.is_cancelled() {
            return Some(FinishReason::Cancelled);
        }
        interruption(self.cancel.as_ref(), self.deadline, now)
    }

    /// Sends an event. If the receiver is gone, sets `dropped`.
    pub(crate) fn send(&self, event: Result<Event>) {
        if !self.events.send(event) {
            self.dropped.cancel();
        }
    }

    /// Whether the request asks for log-probabilities of given tokens.
    pub(crate) fn scores(&self) -> bool {
        self.scored_from().is_some()
    }

    /// The parent of its first cache block.
    pub(super) fn root(&self) -> Parent {
        Parent::Root(self.cache_root.clone())
    }

    /// Whether token `id` ends a sequence, and with which reason.
    pub(crate) fn end_by(&self, id: u32, eos: &[u32]) -> Option<FinishReason> {
        if eos.contains(&id) && !self.ignore_eos {
            Some(FinishReason::EndOfText)
        } else {
            self.stop_token_ids.contains(&id).then_some(FinishReason::Stop)
        }
    }

    /// Whether its tokens can be chosen from the largest logits alone, if there is no constraint.
    pub(super) fn needs_only_top(&self) -> bool {
        let s = &self.sampling;
        let only_top = s.greedy || (1..TOP).contains(&s.top_k);
        self.task == Task::Generate && self.logprobs.is_none() && self.processors.is_empty() && only_top
    }

    /// The first position whose log-probability is reported; `None` if the request asks for none of given tokens.
    pub(super) fn scored_from(&self) -> Option<usize> {
        match self.task {
            Task::Score { from } => Some(from),
            Task::Generate if self.echo.is_some() && self.logprobs.is_some() => Some(0),
            _ => None,
        }
    }
}
