//! Scoring: the log-likelihoods of given texts.
//!
//! Pairs of a prompt and a continuation are taken a window at a time, so that memory is bounded however many there are,
//! and all of a window are computed together. The prefix cache knows only what was computed, so of pairs that begin the
//! same one goes first: each pair waits for the one before it that shares most with it, in whole blocks. With four
//! answers to each of many questions that begin with the same examples, the first pair is computed alone, then one pair
//! of each question, then the other answers.

use std::collections::VecDeque;
use std::time::Instant;

use super::prompt::{Given, Written};
use super::{Model, Prompt, Stream};
use crate::batch::BLOCK_TOKENS;
use crate::engine::request::{Request, Task, interruption};
use crate::error::{Error, Result, quoted};
use crate::options::ScoreOptions;
use crate::output::{FinishReason, Score};
use crate::tokenizer::ChatRequest;

/// Pairs that are computed together.
const WINDOW: usize = 64;

/// Why scoring has to end, if it has to.
type Stop<'a> = &'a dyn Fn() -> Option<FinishReason>;

/// A pair's tokens, of which the first `from` are context.
struct Item {
    tokens: Vec<u32>,
    from: usize,
}

/// A prompt with its own tokens; kept for the pairs after it that have the same.
struct Own<'a> {
    prompt: Prompt<'a>,
    given: Given<'a>,
    tokens: Vec<u32>,
}

impl Own<'_> {
    fn is_of(&self, prompt: Prompt<'_>) -> bool {
        match (self.prompt, prompt) {
            (Prompt::Text(a), Prompt::Text(b)) => a == b,
            (Prompt::Tokens(a), Prompt::Tokens(b)) => a == b,
            (Prompt::Chat(a), Prompt::Chat(b)) => std::ptr::eq::<ChatRequest>(a, b),
            _ => false,
        }
    }
}

impl Model {
    /// Log-likelihoods of given continuations of a prompt, in their order.
    ///
    /// The text `prompt + continuation` is tokenized as a whole, and so is the prompt alone. The tokens at the beginning
    /// that are equal in both are the context. All tokens after them are scored. A token that covers the end of the prompt
    /// and the start of the continuation is scored, too: `Hel` and `lo` give the token `Hello`. If no token is equal, or the
    /// prompt is empty, the context is one token, as for [`Model::generate`] of an empty prompt: the beginning-of-text
    /// token, or else the first end token. A prompt of tokens is used as it is, and the continuation is tokenized alone.
    ///
    /// An empty continuation has no tokens; its log-probability is 0. The prompt is computed once if the prefix cache is
    /// on, which is shared with requests that have no [`GenerateOptions::cache_salt`]; [`Model::score_pairs`] has an
    /// option for it. Memory does not grow with the number
    /// of continuations, but for the results.
    ///
    /// [`GenerateOptions::cache_salt`]: crate::GenerateOptions::cache_salt
    ///
    /// # Errors
    /// As [`Model::generate`]; [`Error::InvalidOption`] for a continuation that is not empty and has no tokens, or for which
    /// there is no context, since the model has no token that starts a text.
    pub fn score<'p, S: AsRef<str>>(
        &self,
        prompt: impl Into<Prompt<'p>>,
        continuations: &[S],
    ) -> Result<Vec<Score>> {
        let prompt = prompt.into();
        let pairs: Vec<_> = continuations.iter().map(|c| (prompt, Prompt::Text(c.as_ref()))).collect();
        self.score_pairs(&pairs, &ScoreOptions::default())
    }

    /// Log-likelihoods of many continuations, each after its own prompt, in their order: the same bits as
    /// [`Model::score`] gives for each.
    ///
    /// Pairs are computed together, some dozens at a time. Equal beginnings are computed once if the prefix cache is on;
    /// give pairs of the same prompt one after another. A continuation may be text or tokens, which are taken as they are.
    ///
    /// ```
    /// # fn main() -> welm_core::Result<()> {
    /// use welm_core::{LoadOptions, Model, Prompt, ScoreOptions};
    /// let model = Model::load("../examples/welm-nano", &LoadOptions::default())?;
    /// let pairs = [("床前明月光，", "疑是地上霜。"), ("春眠不觉晓，", "处处闻啼鸟。")];
    /// let pairs = pairs.map(|(prompt, continuation)| (Prompt::Text(prompt), Prompt::Text(continuation)));
    /// let scores = model.score_pairs(&pairs, &ScoreOptions::default())?;
    /// assert_eq!(scores[1], model.score("春眠不觉晓，", &["处处闻啼鸟。"])?[0]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Model::score`]; [`Error::Interrupted`] if it was cancelled, or the deadline passed. What was computed until then
    /// is lost.
    pub fn score_pairs(
        &self,
        pairs: &[(Prompt<'_>, Prompt<'_>)],
        options: &ScoreOptions,
    ) -> Result<Vec<Score>> {
        self.inner.engine.check()?;
        options.validate()?;
        let deadline = options.deadline.and_then(|d| Instant::now().checked_add(d));
        let stop = || interruption(options.cancel.as_ref(), deadline, Instant::now());
        let mut scores = vec![Score { logprob: 0.0, tokens: Vec::new() }; pairs.len()];
        let (mut own, mut before) = (None, Vec::new());
        for (window, scores) in pairs.chunks(WINDOW).zip(scores.chunks_mut(WINDOW)) {
            let items = window.iter().map(|&(prompt, continuation)| {
                let own = self.own(&mut own, prompt, &stop)?;
                self.item(own, continuation, &stop)
            });
            let items = items.collect::<Result<Vec<_>>>()?;
            let levels = if self.inner.prefix_cache { levels(&items, &before) } else { vec![0; items.len()] };
            for level in 0..=levels.iter().copied().max().unwrap_or(0) {
                let mut open: VecDeque<(usize, Stream)> = VecDeque::new();
                for (at, item) in items.iter().enumerate().filter(|&(at, _)| levels[at] == level) {
                    let Some(item) = item else { continue };
                    let stream = loop {
                        match self.start_scoring(item, deadline, options) {
                            // Others may have filled the queue, or it is a short one.
                            Err(error @ Error::QueueFull { .. }) => match open.pop_front() {
                                Some((first, stream)) => scores[first] = collect(stream)?,
                                None => return Err(error),
                            },
                            started => break started?,
                        }
                    };
                    open.push_back((at, stream));
                }
                for (at, stream) in open {
                    scores[at] = collect(stream)?;
                }
            }
            before = items;
        }
        Ok(scores)
    }

    fn start_scoring(
        &self,
        item: &Item,
        deadline: Option<Instant>,
        options: &ScoreOptions,
    ) -> Result<Stream> {
        let (mut request, events) = Request::new(Task::Score { from: item.from }, item.tokens.clone());
        request.logprobs = Some(options.logprobs);
        request.deadline = deadline;
        request.cancel = options.cancel.clone();
        request.set_salt(options.cache_salt.as_deref());
        Stream::submit(self, (request, events))
    }

    /// The tokens of a text that is to be scored.
    fn encode_scored(&self, text: &Written<'_>, stop: Stop<'_>) -> Result<Vec<u32>> {
        if let Some(reason) = stop() {
            return Err(Error::Interrupted { reason });
        }
        self.encode_text(text, 0, stop)?.map_err(|reason| Error::Interrupted { reason })
    }

    /// A prompt's own tokens, if they are not those of the pair before.
    fn own<'o, 'p>(
        &self,
        last: &'o mut Option<Own<'p>>,
        prompt: Prompt<'p>,
        stop: Stop<'_>,
    ) -> Result<&'o Own<'p>> {
        if let Some(own) = last.take_if(|own| own.is_of(prompt)) {
            return Ok(last.insert(own));
        }
        let given = self.given(prompt, false)?;
        let tokens = match &given {
            Given::Text(written) => self.encode_scored(written, stop)?,
            Given::Tokens(ids) => ids.to_vec(),
        };
        self.check_tokens("prompt", tokens.iter().copied())?;
        self.check_length(tokens.len(), 0)?;
        Ok(last.insert(Own { prompt, given, tokens }))
    }

    /// All tokens of a pair; none if its continuation is empty.
    fn item(&self, own: &Own<'_>, continuation: Prompt<'_>, stop: Stop<'_>) -> Result<Option<Item>> {
        let is_empty = match continuation {
            Prompt::Text(text) => text.is_empty(),
            Prompt::Tokens(ids) => ids.is_empty(),
            Prompt::Chat(_) => {
                return Err(Error::option("continuations", "expected text or tokens, got a conversation"));
            }
        };
        if is_empty {
            return Ok(None);
        }
        let refuse = |expected: &str| {
            let got = match continuation {
                Prompt::Text(text) => quoted(text),
                _ => "tokens".into(),
            };
            Error::option("continuations", format!("expected {expected}, got {got}"))
        };
        let (mut tokens, mut from) = match (&own.given, continuation) {
            (Given::Text(prompt), Prompt::Text(text)) => {
                let text = format!("{}{text}", prompt.text).into();
                let all = self.encode_scored(&Written { text, ..*prompt }, stop)?;
                let from = own.tokens.iter().zip(&all).take_while(|(a, b)| a == b).count();
                (all, from)
            }
            (_, Prompt::Tokens(ids)) => ([&own.tokens, ids].concat(), own.tokens.len()),
            (_, Prompt::Text(text)) => {
                let alone = Written { text: text.into(), add_special: false, parse_special: false };
                ([own.tokens.clone(), self.encode_scored(&alone, stop)?].concat(), own.tokens.len())
            }
            (_, Prompt::Chat(_)) => unreachable!("refused above"),
        };
        if from == tokens.len() {
            return Err(refuse("texts that have tokens after this prompt"));
        }
        if from == 0 {
            let needed = "texts that leave the prompt a token, since this model has none that starts a text";
            tokens.insert(0, self.start_token().ok_or_else(|| refuse(needed))?);
            from = 1;
        }
        self.check_tokens("continuations", tokens.iter().copied())?;
        self.check_length(tokens.len(), 0)?;
        Ok(Some(Item { tokens, from }))
    }
}

/// Who goes when: each item comes after the one before it that shares most blocks with it, unless one of the last window,
/// `before`, shares as many, which is in the cache already.
fn levels(items: &[Option<Item>], before: &[Option<Item>]) -> Vec<usize> {
    let mut levels = vec![0; items.len()];
    for (at, item) in items.iter().enumerate() {
        let Some(item) = item else { continue };
        let mut most = before.iter().flatten().map(|other| common_blocks(item, other)).max().unwrap_or(0);
        for (other_at, other) in items[..at].iter().enumerate() {
            let common = other.as_ref().map_or(0, |other| common_blocks(item, other));
            if common > most {
                most = common;
                levels[at] = levels[other_at] + 1;
            }
        }
    }
    levels
}

/// Whole blocks at the beginning of both.
fn common_blocks(a: &Item, b: &Item) -> usize {
    let (a, b) = (a.tokens.chunks_exact(BLOCK_TOKENS), b.tokens.chunks_exact(BLOCK_TOKENS));
    a.zip(b).take_while(|(a, b)| a == b).count()
}

/// Waits for a score.
fn collect(stream: Stream) -> Result<Score> {
    let mut tokens = Vec::new();
    for piece in stream {
        let piece = piece?;
        tokens.extend(piece.tokens);
        let reason = piece.finish.map(|finish| finish.reason);
        if let Some(reason @ (FinishReason::Cancelled | FinishReason::Deadline)) = reason {
            return Err(Error::Interrupted { reason });
        }
    }
    let logprob = tokens.iter().filter_map(|t| t.logprob).map(f64::from).sum();
    Ok(Score { logprob, tokens })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::options::{CancelToken, LoadOptions};

    fn item(tokens: &[u32]) -> Option<Item> {
        Some(Item { tokens: tokens.to_vec(), from: 1 })
    }

    #[test]
    fn equal_beginnings_are_computed_before_they_are_shared() {
        let tokens = |parts: &[u32]| parts.iter().flat_map(|&part| [part; BLOCK_TOKENS]).collect::<Vec<_>>();
        // Two questions after the same examples, with two answers each; a text of its own; a part of a block in common.
        let items = [
            item(&tokens(&[1, 2, 3])),
            item(&tokens(&[1, 2, 4])),
            None,
            item(&tokens(&[1, 5, 6])),
            item(&tokens(&[1, 5, 7])),
            item(&tokens(&[8])),
            item(&tokens(&[8])[..BLOCK_TOKENS - 1]),
        ];
        assert_eq!(levels(&items, &[]), [0, 1, 0, 1, 2, 0, 0]);
        // The cache has what the window before has computed.
        assert_eq!(levels(&items, &[item(&tokens(&[1, 9])), None]), [0, 1, 0, 0, 1, 0, 0]);
        assert_eq!(levels(&[], &items), [0; 0]);
    }

    #[test]
    fn the_likeliest_tokens_are_those_of_the_logits() {
        let model = Model::load("../examples/welm-nano", &LoadOptions::default()).unwrap();
        let (prompt, vocab) = (model.tokenize("床前明月光，", false).unwrap(), model.config().vocab_size);
        // What greedy decoding gives, and the same with another token in the middle.
        let greedy = model.generate(&prompt, &crate::GenerateOptions::greedy(5)).unwrap();
        let likeliest: Vec<u32> = greedy.choices[0].tokens.iter().map(|token| token.id).collect();
        let mut other = likeliest.clone();
        other[2] += 1;
        let pairs = [&likeliest, &other].map(|ids| (Prompt::Tokens(&prompt), Prompt::Tokens(ids)));
        let options = ScoreOptions { logprobs: 3, ..ScoreOptions::default() };
        let scores = model.score_pairs(&pairs, &options).unwrap();
        let plain = model.score_pairs(&pairs, &ScoreOptions::default()).unwrap();
        for ((score, plain), ids) in scores.iter().zip(&plain).zip([&likeliest, &other]) {
            assert_eq!(score.logprob, plain.logprob);
            let all = [&prompt[..], ids].concat();
            let logits = model.logits(&all, prompt.len() - 1).unwrap();
            for (token, row) in score.tokens.iter().zip(logits.chunks(vocab)) {
                let mut best: Vec<u32> = (0..vocab as u32).collect();
                best.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
                let found: Vec<u32> = token.alternatives.iter().map(|&(id, _)| id).collect();
                assert_eq!(found, best[..3]);
            }
        }
        let is_greedy = |score: &Score| score.tokens.iter().all(|t| t.alternatives[0].0 == t.id);
        assert_eq!((is_greedy(&scores[0]), is_greedy(&scores[1])), (true, false));
        let too_many = ScoreOptions { logprobs: 101, ..ScoreOptions::default() };
        let error = model.score_pairs(&pairs, &too_many).unwrap_err();
        assert!(matches!(&error, Error::InvalidOption { option, .. } if *option == "logprobs"), "{error}");
    }

    #[test]
    fn scoring_can_be_cancelled_and_can_be_late() {
        let model = Model::load("../examples/welm-nano", &LoadOptions::default()).unwrap();
        let pairs = vec![(Prompt::Text("春"), Prompt::Text("眠不觉晓")); 3];
        let cancel = CancelToken::new();
        let later = ScoreOptions { cancel: Some(cancel.clone()), ..ScoreOptions::default() };
        assert_eq!(model.score_pairs(&pairs, &later).unwrap().len(), 3);
        cancel.cancel();
        let late = ScoreOptions { deadline: Some(Duration::ZERO), ..ScoreOptions::default() };
        for (options, reason, text) in [
            (later, FinishReason::Cancelled, "scoring ended before all scores were there: it was cancelled"),
            (late, FinishReason::Deadline, "scoring ended before all scores were there: the deadline passed"),
        ] {
            let error = model.score_pairs(&pairs, &options).unwrap_err();
            assert_eq!((&error, error.to_string().as_str()), (&Error::Interrupted { reason }, text));
            assert_eq!(model.score_pairs(&[], &options), Ok(Vec::new()), "there is nothing to end");
        }
        // While it is computed: what was sent ends, too.
        let cancel = CancelToken::new();
        let options = ScoreOptions { cancel: Some(cancel.clone()), ..ScoreOptions::default() };
        let text = "春眠不觉晓".repeat(20);
        let many = vec![(Prompt::Text(&text), Prompt::Text("，")); 5_000];
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            cancel.cancel();
        });
        let error = model.score_pairs(&many, &options).unwrap_err();
        canceller.join().unwrap();
        assert_eq!(error, Error::Interrupted { reason: FinishReason::Cancelled });
        let until = Instant::now() + Duration::from_secs(10);
        while model.stats().open > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!((model.stats().open, model.stats().blocks_used), (0, 0));
    }
}
