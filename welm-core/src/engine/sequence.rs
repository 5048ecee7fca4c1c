//! One sequence of one request, from the queue to its last token.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::block_manager::{BlockManager, Parent};
use super::stats::Ticket;
use super::text::TextStream;
use crate::backend::TOP;
use crate::batch::BLOCK_TOKENS;
use crate::error::Result;
use crate::options::CancelToken;
use crate::output::{Finish, FinishReason, Piece, Token};
use crate::sampler::SamplerParams;

/// What the engine sends back.
pub(crate) enum Event {
    /// Something a stream may show.
    Piece(Piece),
    /// Logits of all rows, `(rows, vocab_size)`, for [`Task::Logits`].
    Logits(Vec<f32>),
}

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
    pub(crate) logprobs: Option<usize>,
    pub(crate) stop: Arc<[String]>,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) seed: u64,
    pub(crate) ignore_eos: bool,
    /// Blocks of the cache are shared with requests of the same salt only, or of none.
    pub(crate) cache_salt: Option<Arc<str>>,
    pub(crate) submitted: Instant,
    pub(crate) deadline: Option<Instant>,
    /// The caller's token, if it gave one.
    pub(crate) cancel: Option<CancelToken>,
    /// Set when nobody listens any more.
    pub(crate) dropped: CancelToken,
    /// Empty, with room for all rows, for [`Task::Logits`].
    pub(crate) logits: Vec<f32>,
    pub(crate) events: Sender<Result<Event>>,
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
    /// Whether somebody asked for the end, or nobody listens any more.
    pub(crate) fn interrupted(&self, now: Instant) -> Option<FinishReason> {
        if self.dropped.is_cancelled() {
            return Some(FinishReason::Cancelled);
        }
        interruption(self.cancel.as_ref(), self.deadline, now)
    }

    /// Sends, or notes that nobody listens.
    pub(crate) fn send(&self, event: Result<Event>) {
        if self.events.send(event).is_err() {
            self.dropped.cancel();
        }
    }

    /// Whether log-probabilities of given tokens are asked for.
    pub(crate) fn scores(&self) -> bool {
        self.scored_from().is_some()
    }

    /// What precedes its first block.
    fn root(&self) -> Parent {
        Parent::Root(self.cache_salt.clone())
    }

    /// Why a token ends the sequence by itself, if it does.
    pub(crate) fn end_by(&self, id: u32, eos: &[u32]) -> Option<FinishReason> {
        if eos.contains(&id) && !self.ignore_eos {
            Some(FinishReason::EndOfText)
        } else {
            self.stop_token_ids.contains(&id).then_some(FinishReason::Stop)
        }
    }

    /// Whether its tokens are chosen from the largest logits alone.
    pub(crate) fn needs_few(&self) -> bool {
        let s = &self.sampling;
        let few = s.greedy || (1..TOP).contains(&s.top_k);
        self.task == Task::Generate && self.logprobs.is_none() && !s.changes_logits() && few
    }

    /// First position whose log-probability is reported, if any is.
    fn scored_from(&self) -> Option<usize> {
        match self.task {
            Task::Score { from } => Some(from),
            Task::Generate if self.echo.is_some() && self.logprobs.is_some() => Some(0),
            _ => None,
        }
    }
}

/// A request's part that its sequences share.
pub(crate) struct Shared {
    pub(crate) request: Request,
    pub(crate) ticket: Ticket,
    /// Sequences that are not finished, those counted that are still to be forked.
    pub(crate) open: Cell<usize>,
    /// What [`Task::Logits`] has so far.
    logits: RefCell<Vec<f32>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A sequence that is lost would leave its caller waiting for ever, and look like a fault of the engine.
        debug_assert!(
            self.open.get() == 0 || std::thread::panicking(),
            "{} of {} sequences were lost",
            self.open.get(),
            self.request.n
        );
    }
}

/// One sequence.
pub(crate) struct Sequence {
    pub(crate) shared: Rc<Shared>,
    /// Which of the request's `n`.
    pub(crate) index: usize,
    /// Siblings that are still to be forked from it: all, until the prompt is computed. Whoever ends it ends them.
    pub(crate) unforked: usize,
    /// Order of arrival; the preempted keep theirs.
    pub(crate) arrival: u64,
    /// Prompt and generated tokens.
    pub(crate) tokens: Vec<u32>,
    /// Leading tokens whose keys and values are in `blocks`.
    pub(crate) computed: usize,
    /// First row whose logits are still needed; a row is a position.
    pub(crate) wanted: usize,
    /// Blocks held, in order.
    pub(crate) blocks: Vec<u32>,
    /// Leading blocks that the block manager knows, and what precedes the next one.
    known: usize,
    parent: Parent,
    /// Step in which it last had rows; for taking turns.
    pub(crate) served: u64,
    pub(crate) cached_tokens: usize,
    pub(crate) last_token_at: Option<Instant>,
    /// Set when a row of logits has ended it, or its whole request with an error; the engine sends that and takes it
    /// out.
    pub(crate) ended: Option<Result<FinishReason>>,
    /// The token that ended it by itself.
    end_token: Option<u32>,
    text: TextStream,
    /// Tokens not sent yet.
    unsent: Vec<Token>,
    echoed: bool,
}

impl Sequence {
    /// The first sequence of a request; the others are forked from it when the prompt is computed.
    pub(crate) fn new(mut request: Request, ticket: Ticket, arrival: u64) -> Self {
        let from = request.scored_from();
        let wanted = match request.task {
            Task::Logits { from } => from,
            _ => from.map_or(request.prompt.len() - 1, |p| p.saturating_sub(1)),
        };
        // Nothing precedes the first token; without log-probabilities, the others have none either.
        let bare = |&id: &u32| Token { id, logprob: None, alternatives: Vec::new() };
        let unsent = match (from, &request.echo) {
            (Some(0), _) => request.prompt[..1].iter().map(bare).collect(),
            (None, Some(_)) => request.prompt.iter().map(bare).collect(),
            _ => Vec::new(),
        };
        let text = TextStream::new(Arc::clone(&request.stop));
        let (open, unforked) = (Cell::new(request.n), request.n - 1);
        let (tokens, parent) = (request.prompt.clone(), request.root());
        let logits = RefCell::new(std::mem::take(&mut request.logits));
        Sequence {
            shared: Rc::new(Shared { request, ticket, open, logits }),
            index: 0,
            unforked,
            arrival,
            tokens,
            computed: 0,
            wanted,
            blocks: Vec::new(),
            known: 0,
            parent,
            served: 0,
            cached_tokens: 0,
            last_token_at: None,
            ended: None,
            end_token: None,
            text,
            unsent,
            echoed: false,
        }
    }

    /// The next sibling, after the same prompt, if one is still to be forked; holds no blocks yet.
    pub(crate) fn fork(&mut self) -> Option<Self> {
        self.unforked = self.unforked.checked_sub(1)?;
        Some(Sequence {
            shared: Rc::clone(&self.shared),
            index: self.request().n - 1 - self.unforked,
            unforked: 0,
            arrival: self.arrival,
            tokens: self.tokens.clone(),
            computed: 0,
            wanted: self.wanted,
            blocks: Vec::new(),
            known: 0,
            parent: self.request().root(),
            served: self.served,
            cached_tokens: self.cached_tokens,
            last_token_at: None,
            ended: None,
            end_token: None,
            text: TextStream::new(Arc::clone(&self.shared.request.stop)),
            unsent: self.unsent.clone(),
            echoed: false,
        })
    }

    /// Takes over the beginning of the other's blocks, those that are full of computed tokens.
    pub(crate) fn share_blocks(&mut self, other: &Sequence, manager: &mut BlockManager) {
        let full = other.computed / BLOCK_TOKENS;
        self.blocks = other.blocks[..full].to_vec();
        self.blocks.iter().for_each(|&b| manager.retain(b));
        self.computed = full * BLOCK_TOKENS;
        (self.known, self.parent) = (other.known, other.parent.clone());
    }

    /// The request.
    pub(crate) fn request(&self) -> &Request {
        &self.shared.request
    }

    /// Tokens to compute until the next event; the last given token needs no row if nothing follows it.
    pub(crate) fn target(&self) -> usize {
        let nothing_follows = self.request().max_tokens == 0 && self.request().scores();
        self.tokens.len() - usize::from(nothing_follows)
    }

    /// Whether all that is asked for is known without computing a row.
    pub(crate) fn is_complete(&self) -> bool {
        let request = self.request();
        let asks_logits = matches!(request.task, Task::Logits { .. });
        request.max_tokens == 0 && !asks_logits && (!request.scores() || self.wanted >= self.target())
    }

    /// Tokens generated so far.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.request().prompt.len()
    }

    /// Takes known blocks for the beginning, as far as no wanted row is skipped.
    pub(crate) fn find_prefix(&mut self, manager: &mut BlockManager) {
        debug_assert!(self.blocks.is_empty());
        let limit = self.wanted.min(self.tokens.len() - 1).min(self.shared_len(manager));
        let (blocks, parent) = manager.lookup(self.request().root(), &self.tokens[..limit]);
        self.known = blocks.len();
        self.parent = parent;
        self.computed = blocks.len() * BLOCK_TOKENS;
        self.blocks = blocks;
        if self.shared.ticket.is_queued() {
            self.cached_tokens = self.computed;
        }
    }

    /// Leading tokens whose blocks may be shared with other sequences.
    fn shared_len(&self, manager: &BlockManager) -> usize {
        if manager.share_generated { usize::MAX } else { self.request().prompt.len() }
    }

    /// Gives all blocks back; what was computed must be found or computed again.
    pub(crate) fn release(&mut self, manager: &mut BlockManager) {
        manager.release(&mut self.blocks);
        (self.computed, self.known, self.parent) = (0, 0, self.request().root());
    }

    /// Notes `n` more computed tokens and makes full blocks known.
    pub(crate) fn advance(&mut self, n: usize, manager: &mut BlockManager) {
        self.computed += n;
        while (self.known + 1) * BLOCK_TOKENS <= self.computed.min(self.shared_len(manager)) {
            let at = self.known * BLOCK_TOKENS;
            let tokens = &self.tokens[at..at + BLOCK_TOKENS];
            self.parent = manager.register(self.parent.clone(), tokens, self.blocks[self.known]);
            self.known += 1;
        }
    }

    /// Uses the logits of row `pos`, `(vocab_size)`, for what the request asks beside new tokens. False if
    /// a new token is to be chosen from them.
    pub(crate) fn use_logits(&mut self, pos: usize, logits: &[f32]) -> bool {
        self.wanted = pos + 1;
        let last = pos + 1 == self.target();
        if let Task::Logits { .. } = self.request().task {
            self.shared.logits.borrow_mut().extend_from_slice(logits);
        } else if let Some(&given) = self.tokens.get(pos + 1) {
            self.unsent.push(Token::with_logprobs(given, self.request().logprobs, logits));
        } else {
            return false;
        }
        if last && self.request().max_tokens == 0 {
            self.ended = Some(Ok(FinishReason::Length));
        }
        true
    }

    /// Adds a generated token, and notes if it ends the sequence. `bytes` are what it adds to the text, `spelling` is how
    /// stop strings spell it if that is nothing.
    pub(crate) fn push(&mut self, token: Token, bytes: &[u8], spelling: &str) {
        self.tokens.push(token.id);
        self.wanted = self.tokens.len() - 1;
        self.unsent.push(token);
        let stopped = if bytes.is_empty() { self.text.note(spelling) } else { self.text.push(bytes) };
        if stopped {
            self.ended = Some(Ok(FinishReason::Stop));
        } else if self.generated() >= self.request().max_tokens {
            self.ended = Some(Ok(FinishReason::Length));
        }
    }

    /// Ends with a token that is part of neither text nor tokens. One that would add nothing to the text, and is spelled,
    /// may complete a stop string all the same.
    pub(crate) fn end_with(&mut self, token: u32, spelling: &str, reason: FinishReason) {
        self.text.note(spelling);
        self.end_token = Some(token);
        self.ended = Some(Ok(reason));
    }

    /// Sends the tokens chosen since the last time, if there are any.
    pub(crate) fn emit_ready(&mut self) {
        // Until the first new token, what is unsent belongs to the siblings too.
        if self.generated() > 0 && !self.unsent.is_empty() {
            self.emit(None);
        }
    }

    /// Sends what may be shown; everything, if the sequence ends.
    pub(crate) fn emit(&mut self, finish: Option<FinishReason>) {
        let mut text = String::new();
        if !self.echoed {
            text.push_str(self.request().echo.as_deref().unwrap_or(""));
            self.echoed = true;
        }
        let mut reason = finish;
        if let Some(asked) = finish {
            // The last bytes may complete a stop string after all.
            let (rest, stopped) = self.text.finish();
            text.push_str(&rest);
            reason = Some(if stopped { FinishReason::Stop } else { asked });
        } else {
            text.push_str(&self.text.take());
        }
        let finish = reason.map(|reason| Finish {
            reason,
            completion_tokens: self.generated(),
            cached_tokens: self.cached_tokens,
            end_token: self.end_token,
        });
        if finish.is_some() && matches!(self.request().task, Task::Logits { .. }) {
            self.request().send(Ok(Event::Logits(self.shared.logits.take())));
        }
        let tokens = std::mem::take(&mut self.unsent);
        self.request().send(Ok(Event::Piece(Piece { index: self.index, text, tokens, finish })));
    }
}
