//! One sequence of one request, from the queue to its last token.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::block_manager::{BlockManager, Parent};
use super::constraint::Constraint;
use super::events::Event;
use super::request::{Request, Task};
use super::stats::Ticket;
use super::text::{TextStream, written};
use crate::batch::BLOCK_TOKENS;
use crate::error::Result;
use crate::output::{Finish, FinishReason, Piece, Token};
use crate::sampler::Logits;
use crate::tokenizer::Tokenizer;

/// What all sequences of a request share.
pub(crate) struct Shared {
    pub(crate) request: Request,
    pub(crate) ticket: Ticket,
    /// Number of sequences that are not finished, including those still to be forked.
    pub(crate) open: Cell<usize>,
    /// The logits computed so far for [`Task::Logits`].
    logits: RefCell<Vec<f32>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // If a sequence is lost, its caller waits for ever, or takes it for a fault of the engine.
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
    /// Which of the request's `n` sequences this is.
    pub(crate) index: usize,
    /// How many siblings are still to be forked from it: all others until the prompt is computed. If it ends before,
    /// they end with it.
    pub(crate) unforked: usize,
    /// Number in the order of arrival; a preempted sequence keeps it.
    pub(crate) arrival: u64,
    /// Prompt and generated tokens.
    pub(crate) tokens: Vec<u32>,
    /// How many of the first tokens have their keys and values in `blocks`.
    pub(crate) computed: usize,
    /// The first position whose logits are still needed.
    pub(crate) wanted: usize,
    /// The blocks that it holds, in order.
    pub(crate) blocks: Vec<u32>,
    /// The uids of those of its first blocks that are in the block manager's index.
    known: Vec<u64>,
    /// The last step in which it had rows, so that prompts take turns.
    pub(crate) served: u64,
    pub(crate) cached_tokens: usize,
    pub(crate) last_token_at: Option<Instant>,
    /// Set when a row of logits has ended the sequence, or, with an error, its whole request. The engine then sends the
    /// reason and removes the sequence.
    pub(crate) ended: Option<Result<FinishReason>>,
    /// The token that ended the sequence, if an end token or stop token did.
    end_token: Option<u32>,
    /// The constraint on its tokens, if it has one.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    text: TextStream,
    /// Tokens that were not sent yet.
    unsent: Vec<Token>,
    echoed: bool,
}

impl Sequence {
    /// The first sequence of a request. The others are forked from it when the prompt is computed.
    pub(crate) fn new(mut request: Request, ticket: Ticket, arrival: u64) -> Self {
        let from = request.scored_from();
        let wanted = match request.task {
            Task::Logits { from } => from,
            _ => from.map_or(request.prompt.len() - 1, |p| p.saturating_sub(1)),
        };
        // The first token has no log-probability, because nothing comes before it. The other tokens of an echoed prompt
        // have none if the request asks for none.
        let bare = |&id: &u32| Token { id, logprob: None, alternatives: Vec::new() };
        let unsent = match (from, &request.echo) {
            (Some(0), _) => request.prompt[..1].iter().map(bare).collect(),
            (None, Some(_)) => request.prompt.iter().map(bare).collect(),
            _ => Vec::new(),
        };
        let text = TextStream::new(Arc::clone(&request.stop));
        let (open, unforked) = (Cell::new(request.n), request.n - 1);
        let (tokens, constraint) = (request.prompt.clone(), request.constraint.take());
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
            known: Vec::new(),
            served: 0,
            cached_tokens: 0,
            last_token_at: None,
            ended: None,
            end_token: None,
            constraint,
            text,
            unsent,
            echoed: false,
        }
    }

    /// The next sibling, with the same prompt; `None` if no more are to be forked. It holds no blocks yet.
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
            known: Vec::new(),
            served: self.served,
            cached_tokens: self.cached_tokens,
            last_token_at: None,
            ended: None,
            end_token: None,
            constraint: self.constraint.as_ref().map(|constraint| constraint.fork()),
            text: TextStream::new(Arc::clone(&self.shared.request.stop)),
            unsent: self.unsent.clone(),
            echoed: false,
        })
    }

    /// Shares the first blocks of `other`: those that are full of computed tokens.
    pub(crate) fn share_blocks(&mut self, other: &Sequence, manager: &mut BlockManager) {
        let full = other.computed / BLOCK_TOKENS;
        self.blocks = other.blocks[..full].to_vec();
        self.blocks.iter().for_each(|&b| manager.retain(b));
        self.computed = full * BLOCK_TOKENS;
        self.known.clone_from(&other.known);
    }

    /// The request.
    pub(crate) fn request(&self) -> &Request {
        &self.shared.request
    }

    /// How many tokens must be computed until the next event. If the request only scores, the last token needs no row,
    /// because nothing follows it.
    pub(crate) fn target(&self) -> usize {
        let nothing_follows = self.request().max_tokens == 0 && self.request().scores();
        self.tokens.len() - usize::from(nothing_follows)
    }

    /// Whether the request is answered without computing a row.
    pub(crate) fn is_complete(&self) -> bool {
        let request = self.request();
        let asks_logits = matches!(request.task, Task::Logits { .. });
        request.max_tokens == 0 && !asks_logits && (!request.scores() || self.wanted >= self.target())
    }

    /// Tokens generated so far.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.request().prompt.len()
    }

    /// Takes blocks of the prefix cache for the first tokens, but not for rows whose logits are wanted.
    pub(crate) fn find_prefix(&mut self, manager: &mut BlockManager) {
        debug_assert!(self.blocks.is_empty());
        let limit = self.wanted.min(self.tokens.len() - 1).min(self.shared_len(manager));
        (self.blocks, self.known) = manager.lookup(self.request().root(), &self.tokens[..limit]);
        self.computed = self.blocks.len() * BLOCK_TOKENS;
    }

    /// How many of the first tokens may be in blocks that are shared with other sequences.
    fn shared_len(&self, manager: &BlockManager) -> usize {
        if manager.share_generated { usize::MAX } else { self.request().prompt.len() }
    }

    /// Gives all blocks back. Its tokens must then be found in the prefix cache or computed again.
    pub(crate) fn release(&mut self, manager: &mut BlockManager) {
        manager.release(&mut self.blocks);
        self.computed = 0;
        self.known.clear();
    }

    /// Notes `n` more computed tokens, and adds blocks that became full to the prefix cache.
    pub(crate) fn advance(&mut self, n: usize, manager: &mut BlockManager) {
        self.computed += n;
        let full = self.computed.min(self.shared_len(manager)) / BLOCK_TOKENS;
        while self.known.len() < full {
            let at = self.known.len();
            let tokens = &self.tokens[at * BLOCK_TOKENS..(at + 1) * BLOCK_TOKENS];
            let parent = self.known.last().map_or_else(|| self.request().root(), |&uid| Parent::Block(uid));
            let Some(uid) = manager.register(parent, tokens, self.blocks[at]) else { break };
            self.known.push(uid);
        }
    }

    /// Takes back the last `n` generated tokens, none of which was sent. Tokens, blocks, text and constraint are then
    /// as if they had never been chosen. If other sequences also hold the last block, it is left to them and computed
    /// again.
    #[cfg_attr(not(test), expect(dead_code, reason = "called by what drops drafted tokens"))]
    pub(crate) fn truncate(&mut self, n: usize, manager: &mut BlockManager, tokenizer: Option<&Tokenizer>) {
        debug_assert!(n <= self.generated() && n <= self.unsent.len() && self.unforked == 0);
        if n == 0 {
            return;
        }
        self.tokens.truncate(self.tokens.len() - n);
        self.unsent.truncate(self.unsent.len() - n);
        (self.ended, self.end_token) = (None, None);
        if let Some(constraint) = &mut self.constraint {
            constraint.roll_back(n);
        }
        let generated = &self.tokens[self.shared.request.prompt.len()..];
        self.text.rewind(generated.iter().map(|&id| written(tokenizer, id)));
        // The next token is chosen from the row of the last token that is left. That row is computed again.
        self.wanted = self.tokens.len() - 1;
        if self.computed <= self.wanted {
            return;
        }
        let full = self.wanted / BLOCK_TOKENS;
        let mut cut = self.blocks.split_off(full);
        self.computed = full * BLOCK_TOKENS;
        if manager.make_own(cut[0]) {
            self.blocks.push(cut.remove(0));
            self.computed = self.wanted;
        }
        manager.forget(&cut); // so that no request finds blocks of tokens that were taken back
        manager.release(&mut cut);
        self.known.truncate(full);
    }

    /// Whether its tokens can be chosen from the largest logits alone.
    pub(crate) fn needs_only_top(&self) -> bool {
        self.constraint.is_none() && self.request().needs_only_top()
    }

    /// Uses the logits at position `pos` for log-probabilities of given tokens, or keeps them if the request asks for
    /// logits. False if a new token must be chosen from them.
    pub(crate) fn use_logits(&mut self, pos: usize, logits: &Logits<'_>) -> bool {
        self.wanted = pos + 1;
        let last = pos + 1 == self.target();
        if let Task::Logits { .. } = self.request().task {
            self.shared.logits.borrow_mut().extend_from_slice(logits.all());
        } else if let Some(&given) = self.tokens.get(pos + 1) {
            self.unsent.push(Token::with_logprobs(given, self.request().logprobs, logits.all()));
        } else {
            return false;
        }
        if last && self.request().max_tokens == 0 {
            self.ended = Some(Ok(FinishReason::Length));
        }
        true
    }

    /// Adds a generated token, and notes whether it ends the sequence. `bytes` are what it adds to the text. If these
    /// are empty, `spelling` is its spelling in stop strings.
    pub(crate) fn push(&mut self, token: Token, bytes: &[u8], spelling: &str) {
        self.tokens.push(token.id);
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token.id);
        }
        self.wanted = self.tokens.len() - 1;
        self.unsent.push(token);
        if self.text.add(bytes, spelling) {
            self.ended = Some(Ok(FinishReason::Stop));
        } else if self.generated() >= self.request().max_tokens {
            self.ended = Some(Ok(FinishReason::Length));
        }
    }

    /// Ends the sequence by a token that becomes part of neither text nor tokens. A special token may still complete a
    /// stop string by its spelling.
    pub(crate) fn end_with(&mut self, token: u32, spelling: &str, reason: FinishReason) {
        self.text.note(spelling);
        self.end_token = Some(token);
        self.ended = Some(Ok(reason));
    }

    /// Sends the tokens that were chosen since the last piece, if there are any.
    pub(crate) fn emit_ready(&mut self) {
        // Until the first new token, the unsent tokens are the prompt's, which siblings still have to copy.
        if self.generated() > 0 && !self.unsent.is_empty() {
            self.emit(None);
        }
    }

    /// Sends a piece with the text that may be shown; with all text if the sequence ends.
    pub(crate) fn emit(&mut self, finish: Option<FinishReason>) {
        let mut text = String::new();
        if !self.echoed {
            text.push_str(self.request().echo.as_deref().unwrap_or(""));
            self.echoed = true;
        }
        let mut reason = finish;
        if let Some(asked) = finish {
            // An incomplete character at the end becomes U+FFFD, which may complete a stop string.
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
