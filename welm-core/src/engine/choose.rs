//! Chooses the next token of a sequence from its logits.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::sequence::Sequence;
use super::stats::Counters;
use super::text::written;
use crate::backend::Top;
use crate::error::Error;
use crate::output::Token;
use crate::sampler::{Logits, Sampler, uniform};
use crate::tokenizer::Tokenizer;

/// The largest logits of some rows, sorted by token id, as [`Logits::Top`] needs them.
#[derive(Default)]
pub(super) struct TopRows {
    values: Vec<f32>,
    ids: Vec<u32>,
    rows: Vec<Range<usize>>,
}

impl TopRows {
    /// Takes the largest logits that the backend has found. False if the backend does not find them.
    pub(super) fn take(&mut self, top: Option<Top>) -> bool {
        let Some(top) = top else { return false };
        self.values.clear();
        self.ids.clear();
        self.rows.clear();
        for (values, ids) in top.values.chunks(top.k).zip(top.ids.chunks(top.k)) {
            let mut row: Vec<(u32, f32)> = ids.iter().copied().zip(values.iter().copied()).collect();
            row.retain(|&(id, _)| id != u32::MAX);
            row.sort_unstable_by_key(|&(id, _)| id);
            let start = self.ids.len();
            self.ids.extend(row.iter().map(|&(id, _)| id));
            self.values.extend(row.iter().map(|&(_, value)| value));
            self.rows.push(start..self.ids.len());
        }
        true
    }

    pub(super) fn row(&mut self, i: usize) -> Logits<'_> {
        let range = self.rows[i].clone();
        Logits::Top { values: &mut self.values[range.clone()], ids: &self.ids[range] }
    }
}

/// Chooses the tokens of all sequences, one after the other.
pub(super) struct Chooser {
    sampler: Sampler,
    /// An unchanged copy of the row of logits, `(up to vocab_size)`; empty if it is not needed after the choice.
    raw: Vec<f32>,
    eos: Vec<u32>,
    tokenizer: Option<Arc<Tokenizer>>,
    counters: Arc<Counters>,
}

impl Chooser {
    pub(super) fn new(
        vocab_size: usize,
        eos: Vec<u32>,
        tokenizer: Option<Arc<Tokenizer>>,
        counters: Arc<Counters>,
    ) -> Self {
        let (sampler, raw) = (Sampler::new(vocab_size), Vec::with_capacity(vocab_size));
        Chooser { sampler, raw, eos, tokenizer, counters }
    }

    /// Begins with a new row of logits, from which `seq` and the siblings still to be forked from it choose. Choosing
    /// changes the row, so it is copied here if the original is needed later: for log-probabilities, or for siblings.
    pub(super) fn begin(&mut self, seq: &Sequence, logits: &Logits<'_>) {
        self.raw.clear();
        if seq.unforked > 0 || seq.request().logprobs.is_some() {
            self.raw.extend_from_slice(logits.values());
        }
    }

    /// How many logits were copied of the last row.
    #[cfg(test)]
    pub(super) fn copied(&self) -> usize {
        self.raw.len()
    }

    /// Restores the row for the next sibling.
    pub(super) fn restore(&self, logits: &mut Logits<'_>) {
        logits.values_mut().copy_from_slice(&self.raw);
    }

    /// Chooses the next token from the row, and changes the row. If no token may be chosen, the sequence ends with an
    /// error.
    pub(super) fn choose(&mut self, seq: &mut Sequence, logits: &mut Logits<'_>) {
        let request = &seq.shared.request;
        let position = seq.tokens.len();
        let (prompt, text) = seq.tokens.split_at(request.prompt.len());
        self.sampler.process(logits, &request.processors, prompt, text);
        if let Some(constraint) = &mut seq.constraint {
            constraint.mask(logits.all_mut());
        }
        let u = uniform(request.seed, seq.index as u32, position as u64);
        let Some(id) = self.sampler.sample(logits, &request.sampling, u) else {
            let processor = request.processors.first().map(|p| p.option());
            let option = if seq.constraint.is_some() { None } else { processor }.unwrap_or("constraint");
            let reason = format!("expected to leave a token to choose, got none at position {position}");
            seq.ended = Some(Err(Error::option(option, reason)));
            return;
        };
        let now = Instant::now();
        match seq.last_token_at {
            None => self.counters.first_token(now - request.submitted),
            Some(before) => self.counters.next_token(now - before),
        }
        self.counters.completion_tokens.fetch_add(1, Ordering::Relaxed);
        seq.last_token_at = Some(now);
        let (bytes, spelling) = written(self.tokenizer.as_deref(), id);
        match seq.request().end_by(id, &self.eos) {
            Some(reason) => seq.end_with(id, spelling, reason),
            None => {
                let token = Token::with_logprobs(id, seq.request().logprobs, &self.raw);
                seq.push(token, bytes, spelling);
            }
        }
    }
}
