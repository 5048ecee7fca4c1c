//! Tokens with their log-probabilities, as arrays that C can read.

use welm_core::{FinishReason, Token};

/// One of the likeliest tokens at a position.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct welm_alternative {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// A token of an answer.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct welm_token {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability under the model, before temperature and truncation, if `has_logprob`.
    pub logprob: f32,
    /// The likeliest tokens at this position, likeliest first; as many as were asked for.
    pub alternatives: *const welm_alternative,
    /// Number of them.
    pub n_alternatives: usize,
    /// False if none was asked for, and for the first token of an echoed prompt, which has no token before it.
    pub has_logprob: bool,
}

/// Why a sequence ended.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum welm_finish_reason {
    /// It has not ended.
    WELM_FINISH_NONE = 0,
    /// A stop string was generated, or one of `stop_token_ids`.
    WELM_FINISH_STOP = 1,
    /// The model ended the text.
    WELM_FINISH_END_OF_TEXT = 2,
    /// `max_tokens` were generated.
    WELM_FINISH_LENGTH = 3,
    /// The request was cancelled.
    WELM_FINISH_CANCELLED = 4,
    /// The deadline passed.
    WELM_FINISH_DEADLINE = 5,
    /// Any other reason.
    WELM_FINISH_OTHER = 6,
}

impl From<FinishReason> for welm_finish_reason {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => welm_finish_reason::WELM_FINISH_STOP,
            FinishReason::EndOfText => welm_finish_reason::WELM_FINISH_END_OF_TEXT,
            FinishReason::Length => welm_finish_reason::WELM_FINISH_LENGTH,
            FinishReason::Cancelled => welm_finish_reason::WELM_FINISH_CANCELLED,
            FinishReason::Deadline => welm_finish_reason::WELM_FINISH_DEADLINE,
            _ => welm_finish_reason::WELM_FINISH_OTHER,
        }
    }
}

/// Tokens, and the alternatives that they point to.
#[derive(Debug)]
pub(crate) struct TokenList {
    tokens: Vec<welm_token>,
    _alternatives: Vec<welm_alternative>,
}

impl TokenList {
    pub(crate) fn new(tokens: Vec<Token>) -> Self {
        let pairs = tokens.iter().flat_map(|t| &t.alternatives);
        let alternatives: Vec<_> = pairs.map(|&(id, logprob)| welm_alternative { id, logprob }).collect();
        let mut rest = &alternatives[..];
        let tokens = tokens.iter().map(|t| {
            let (own, after) = rest.split_at(t.alternatives.len());
            rest = after;
            welm_token {
                id: t.id,
                logprob: t.logprob.unwrap_or(0.0),
                alternatives: own.as_ptr(),
                n_alternatives: own.len(),
                has_logprob: t.logprob.is_some(),
            }
        });
        // The vector is moved, but its elements stay where they are, so that the pointers stay valid.
        TokenList { tokens: tokens.collect(), _alternatives: alternatives }
    }

    pub(crate) fn as_ptr(&self) -> *const welm_token {
        self.tokens.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_points_to_its_own_alternatives() {
        let token = |id, logprob, alternatives: &[(u32, f32)]| {
            let mut token = Token::default();
            (token.id, token.logprob, token.alternatives) = (id, logprob, alternatives.to_vec());
            token
        };
        let list = TokenList::new(vec![
            token(1, None, &[]),
            token(2, Some(-0.5), &[(2, -0.5), (3, -1.0)]),
            token(4, Some(-2.0), &[(5, -0.1)]),
        ]);
        // SAFETY: the list lives, and its lengths are its own.
        let read = unsafe { std::slice::from_raw_parts(list.as_ptr(), list.len()) };
        let ids = |t: &welm_token| {
            // SAFETY: as above.
            let own = unsafe { std::slice::from_raw_parts(t.alternatives, t.n_alternatives) };
            (t.id, t.has_logprob, own.iter().map(|a| a.id).collect::<Vec<_>>())
        };
        let got: Vec<_> = read.iter().map(ids).collect();
        assert_eq!(got, [(1, false, vec![]), (2, true, vec![2, 3]), (4, true, vec![5])]);
    }
}
