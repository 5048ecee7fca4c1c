//! What comes back: the mirror of `options`. Later versions may add fields, so a program that makes such values itself
//! begins with `default()` or `new`.

pub(crate) use crate::finish_reason::FinishReason;

/// One token with its log-probability, if those were asked for.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Token {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability under the model, before temperature and truncation. `None` if
    /// not asked for, and for the first token of an echoed prompt, which nothing precedes.
    pub logprob: Option<f32>,
    /// The likeliest tokens at this place with their log-probabilities, likeliest first; as many as were asked for.
    pub alternatives: Vec<(u32, f32)>,
}

impl Token {
    /// The token with what was asked for, from the row of logits, `(vocab_size)`, that it was chosen from.
    pub(crate) fn with_logprobs(id: u32, asked: Option<usize>, logits: &[f32]) -> Self {
        match asked {
            None => Token { id, logprob: None, alternatives: Vec::new() },
            Some(k) => {
                let (logprob, alternatives) = crate::sampler::logprobs(logits, id, k);
                Token { id, logprob: Some(logprob), alternatives }
            }
        }
    }
}

/// A piece of a stream.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Piece {
    /// Which of the `n` sequences it belongs to.
    pub index: usize,
    /// Text that follows that of the piece before. It may be empty, for example while a character is incomplete, or while
    /// the text may be the beginning of a stop string.
    pub text: String,
    /// Tokens generated since the last piece; with `echo`, the first piece has the prompt's.
    pub tokens: Vec<Token>,
    /// Set on the last piece of a sequence.
    pub finish: Option<Finish>,
}

/// How a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Tokens generated, the end token not counted.
    pub completion_tokens: usize,
    /// Prompt tokens that were found in the prefix cache.
    pub cached_tokens: usize,
    /// The token that ended the sequence: an end token of the model, or one of `stop_token_ids`. It is in neither `text`
    /// nor `tokens`. `None` if something else ended the sequence.
    pub end_token: Option<u32>,
}

impl Finish {
    /// An end for this reason, with no token: for programs that make results of their own, as tests do.
    pub fn new(reason: FinishReason) -> Self {
        Finish { reason, completion_tokens: 0, cached_tokens: 0, end_token: None }
    }
}

/// One generated sequence.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Choice {
    /// The text; with `echo`, after the prompt.
    pub text: String,
    /// Its tokens; with `echo`, after the prompt's.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The token that ended it by itself; see [`Finish::end_token`].
    pub end_token: Option<u32>,
}

impl Choice {
    /// An empty sequence that ended for this reason: for programs that make results of their own, as tests do.
    pub fn new(finish_reason: FinishReason) -> Self {
        Choice { text: String::new(), tokens: Vec::new(), finish_reason, end_token: None }
    }
}

/// Tokens that a request used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, over all sequences.
    pub completion_tokens: usize,
    /// Prompt tokens whose keys and values came from the prefix cache.
    pub cached_tokens: usize,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Generation {
    /// The `n` sequences.
    pub choices: Vec<Choice>,
    /// The seed that was used; the same request with this seed gives the same bits.
    pub seed: u64,
    /// Tokens used.
    pub usage: Usage,
}

impl Generation {
    /// The text of the first sequence.
    pub fn text(&self) -> &str {
        self.choices.first().map_or("", |c| &c.text)
    }

    /// Why the first sequence ended; `None` only where there is no sequence, as in a value made by hand.
    ///
    /// ```
    /// # fn main() -> welm_core::Result<()> {
    /// use welm_core::{FinishReason, GenerateOptions, LoadOptions, Model};
    /// let model = Model::load("../examples/welm-nano", &LoadOptions::default())?;
    /// let answer = model.generate("床前明月光，", &GenerateOptions::greedy(2))?;
    /// assert_eq!(answer.finish_reason(), Some(FinishReason::Length)); // cut off: more tokens would give more text
    /// # Ok(())
    /// # }
    /// ```
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.choices.first().map(|c| c.finish_reason)
    }

    /// Adds a piece of the stream that [`crate::Stream::generation`] was asked of.
    ///
    /// # Panics
    /// If there is no sequence of the piece's index.
    pub fn push(&mut self, piece: Piece) {
        let Piece { index, text, tokens, finish } = piece;
        let choice = &mut self.choices[index];
        choice.text.push_str(&text);
        choice.tokens.extend(tokens);
        if let Some(finish) = finish {
            choice.finish_reason = finish.reason;
            choice.end_token = finish.end_token;
            self.usage.completion_tokens += finish.completion_tokens;
            self.usage.cached_tokens = self.usage.cached_tokens.max(finish.cached_tokens);
        }
    }
}

/// The log-likelihood of a given continuation.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Score {
    /// Sum of the tokens' log-probabilities, natural logarithm.
    pub logprob: f64,
    /// The continuation's tokens, each with its log-probability.
    pub tokens: Vec<Token>,
}
