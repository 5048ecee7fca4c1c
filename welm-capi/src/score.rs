//! Likelihoods of given texts, and logits.

use std::ffi::c_char;
use std::ptr;
use std::time::Duration;

use welm_core::{Score, ScoreOptions};

use crate::error::{Failure, welm_error, welm_status};
use crate::guard::{free, status, value};
use crate::list::{TokenList, welm_token};
use crate::model::welm_model;
use crate::request::{welm_cancel_token, welm_prompt};
use crate::sized::{self, Growing};
use crate::text::{WELM_NUL_TERMINATED, array, optional_text, put, text, texts};

/// The log-likelihood of a given continuation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_score {
    /// Sum of the tokens' log-probabilities, natural logarithm.
    pub logprob: f64,
    /// The continuation's tokens, each with its log-probability.
    pub tokens: *const welm_token,
    /// Number of them.
    pub n_tokens: usize,
}

/// The scores of several continuations, in their order. They never change, so that any number of threads may read
/// them at once.
pub struct welm_scores(Vec<(welm_score, TokenList)>);

impl welm_scores {
    fn new(scores: Vec<Score>) -> *mut Self {
        let one = |Score { logprob, tokens, .. }| {
            let tokens = TokenList::new(tokens);
            (welm_score { logprob, tokens: tokens.as_ptr(), n_tokens: tokens.len() }, tokens)
        };
        Box::into_raw(Box::new(welm_scores(scores.into_iter().map(one).collect())))
    }
}

/// Log-likelihoods of given continuations of a prompt.
///
/// Prompt and continuation are tokenized together. The longest beginning that these tokens have in common with those of
/// the prompt alone is the context; the tokens after it are scored. If there is no such beginning, because the prompt
/// is empty or its only token merged with the continuation, the context is the token that starts a text, or else the
/// first end token. An empty continuation has no tokens, and log-probability 0. Memory is bounded, however many
/// continuations there are.
///
/// - ownership: `*scores` is the caller's, to be freed with `welm_scores_free`. Nothing of the texts is kept.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model` and `scores`; allowed for `prompt` if `prompt_len` is 0, `continuations`, if `n`
///   is 0; `lens` may be, where all continuations are NUL-terminated; allowed for `error`.
/// - encoding: UTF-8; `prompt_len` and each of `lens` in bytes, or `WELM_NUL_TERMINATED`.
/// - errors: as `welm_model_generate`; `WELM_INVALID_OPTION` for a continuation that is not empty and has no tokens, or
///   for which there is no context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_score(
    model: *const welm_model,
    prompt: *const c_char,
    prompt_len: usize,
    continuations: *const *const c_char,
    lens: *const usize,
    n: usize,
    scores: *mut *mut welm_scores,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, texts and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let prompt = text("prompt", prompt, prompt_len)?;
        let continuations = texts("continuations", continuations, lens, n)?;
        Failure::unless_null("scores", scores)?;
        scores.write(welm_scores::new(model.score(prompt, &continuations)?));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// How pairs are scored. `welm_score_options_init` sets the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_score_options {
    /// `sizeof(welm_score_options)`.
    pub struct_size: usize,
    /// Time after which the scoring ends without a result, counted from the call (default: never).
    ///
    /// In milliseconds; 0 is never. The scoring ends with `WELM_INTERRUPTED`.
    pub deadline_ms: u64,
    /// Token that ends the scoring from another thread (default: none).
    ///
    /// The scoring ends with `WELM_INTERRUPTED`. The token has to live until the function returns.
    pub cancel: *const welm_cancel_token,
    /// How many of the likeliest tokens are reported at each place of a continuation, with log-probabilities (at most
    /// 100; default: 0).
    pub logprobs: usize,
    /// Prefix-cache entries are shared only between requests with the same salt (1 to 256 bytes; default: shared by
    /// all that have none).
    ///
    /// UTF-8; NULL is none. As the `cache_salt` of requests. It changes no score.
    pub cache_salt: *const c_char,
    /// Length of `cache_salt` in bytes, or `WELM_NUL_TERMINATED`, which is the default.
    pub cache_salt_len: usize,
}

// SAFETY: `repr(C)`, size first; numbers and pointers; ends with one of their size.
unsafe impl Growing for welm_score_options {}

impl Default for welm_score_options {
    fn default() -> Self {
        welm_score_options {
            struct_size: size_of::<Self>(),
            deadline_ms: 0,
            cancel: ptr::null(),
            logprobs: 0,
            cache_salt: ptr::null(),
            cache_salt_len: WELM_NUL_TERMINATED,
        }
    }
}

impl welm_score_options {
    /// # Safety
    /// `cancel` is NULL or a token that was not freed; `cache_salt` is NULL or a text of its length.
    unsafe fn to_core(self) -> Result<ScoreOptions, Failure> {
        // SAFETY: by this function's contract.
        let cache_salt = unsafe { optional_text("cache_salt", self.cache_salt, self.cache_salt_len) }?;
        Ok(ScoreOptions {
            deadline: Some(self.deadline_ms).filter(|&ms| ms != 0).map(Duration::from_millis),
            // SAFETY: by this function's contract.
            cancel: unsafe { self.cancel.as_ref() }.map(|c| c.0.clone()),
            logprobs: self.logprobs,
            cache_salt,
        })
    }
}

/// Sets every option to its default, and `struct_size` to the argument, which is `sizeof(welm_score_options)`.
///
/// - ownership: nothing to free.
/// - threads: any, each with a struct of its own.
/// - NULL: not allowed for `options`.
/// - errors: `WELM_NULL_POINTER`; `WELM_INVALID_ARGUMENT` for an impossible size, then nothing is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_score_options_init(
    options: *mut welm_score_options,
    struct_size: usize,
) -> welm_status {
    // SAFETY: the caller's struct has the size that it says.
    let body = || unsafe { sized::init("options", options, struct_size, &welm_score_options::default()) };
    // SAFETY: NULL is allowed.
    unsafe { status(ptr::null_mut(), body) }
}

/// Log-likelihoods of many continuations, each after its own prompt: the same bits as `welm_model_score` gives for each.
///
/// Pairs are computed together, some dozens at a time. Equal beginnings are computed once if the prefix cache is on, so
/// give pairs of the same prompt one after another. If prompt or continuation is given as tokens, the two are not
/// tokenized together. Memory is bounded, however many pairs there are.
///
/// - ownership: `*scores` is the caller's, to be freed with `welm_scores_free`. Nothing of prompts, continuations and
///   options is kept.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model` and `scores`; allowed for `prompts` and `continuations` if `n` is 0; allowed for
///   `options`, for the defaults; allowed for `error`.
/// - encoding: texts are UTF-8.
/// - errors: as `welm_model_score`; `WELM_INTERRUPTED` if it was cancelled, or the deadline passed. What was computed until
///   then is lost.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_score_pairs(
    model: *const welm_model,
    prompts: *const welm_prompt,
    continuations: *const welm_prompt,
    n: usize,
    options: *const welm_score_options,
    scores: *mut *mut welm_scores,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, texts, options and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let prompts = array("prompts", prompts, n)?;
        let continuations = array("continuations", continuations, n)?;
        let options = sized::read("options", options, Default::default())?.to_core()?;
        Failure::unless_null("scores", scores)?;
        let one = |(i, (prompt, continuation)): (usize, (&welm_prompt, &welm_prompt))| {
            let prompt = prompt.named(&format!("prompts[{i}]"))?;
            Ok((prompt, continuation.named(&format!("continuations[{i}]"))?))
        };
        let pairs = prompts.iter().zip(continuations).enumerate().map(one);
        let pairs = pairs.collect::<Result<Vec<_>, Failure>>()?;
        scores.write(welm_scores::new(model.score_pairs(&pairs, &options)?));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// How many scores there are.
///
/// - ownership: nothing to free.
/// - threads: any number at once on the same scores.
/// - NULL: 0 for NULL `scores`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_scores_len(scores: *const welm_scores) -> usize {
    // SAFETY: NULL, or scores that were not freed, by the function's contract.
    value(0, || unsafe { scores.as_ref() }.map_or(0, |s| s.0.len()))
}

/// The score of a continuation, counted from 0.
///
/// - ownership: belongs to `scores`; valid until `scores` is freed.
/// - threads: any number at once on the same scores.
/// - NULL: returned for NULL `scores`, and if there is no such continuation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_scores_get(scores: *const welm_scores, index: usize) -> *const welm_score {
    value(ptr::null(), || {
        // SAFETY: NULL, or scores that were not freed, by the function's contract.
        let scores = unsafe { scores.as_ref() };
        scores.and_then(|s| s.0.get(index)).map_or(ptr::null(), |(score, _)| score)
    })
}

/// Frees scores.
///
/// - ownership: takes `scores`, and frees all that its functions returned, too.
/// - threads: once, when nobody reads them any more.
/// - NULL: does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_scores_free(scores: *mut welm_scores) {
    // SAFETY: NULL, or a box of this library that the caller gives back.
    unsafe { free(scores) }
}

/// Logits after some tokens of a prompt. They never change, so that any number of threads may read them at once.
pub struct welm_logits {
    values: Vec<f32>, // (rows, cols)
    cols: usize,
}

/// Logits after each token of a prompt, from position `from` on. The result has `vocab_size` floats for each of these
/// positions, so ask for no more of them than you need.
///
/// - ownership: `*logits` is the caller's, to be freed with `welm_logits_free`. Nothing of the prompt is kept.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model` and `logits`; allowed for `error`.
/// - encoding: the prompt is UTF-8.
/// - errors: as `welm_model_generate`; `WELM_INVALID_OPTION` if `from` is after the prompt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_logits(
    model: *const welm_model,
    prompt: welm_prompt,
    from: usize,
    logits: *mut *mut welm_logits,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, prompt and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        Failure::unless_null("logits", logits)?;
        let values = model.logits(prompt.to_core()?, from)?;
        logits.write(Box::into_raw(Box::new(welm_logits { values, cols: model.config().vocab_size })));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// The values, one row after another: `*rows` rows, one for each token, of `*cols` values, the model's `vocab_size`.
///
/// - ownership: belongs to `logits`; valid until `logits` is freed.
/// - threads: any number at once on the same logits.
/// - NULL: returned for NULL `logits`, with 0 rows and columns; allowed for `rows` and `cols`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_logits_data(
    logits: *const welm_logits,
    rows: *mut usize,
    cols: *mut usize,
) -> *const f32 {
    value(ptr::null(), || {
        // SAFETY: NULL, or logits that were not freed; outputs are the caller's.
        unsafe {
            let logits = logits.as_ref();
            put(rows, logits.map_or(0, |l| l.values.len() / l.cols));
            put(cols, logits.map_or(0, |l| l.cols));
            logits.map_or(ptr::null(), |l| l.values.as_ptr())
        }
    })
}

/// Frees logits.
///
/// - ownership: takes `logits`, and frees their values, too.
/// - threads: once, when nobody reads them any more.
/// - NULL: does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_logits_free(logits: *mut welm_logits) {
    // SAFETY: NULL, or a box of this library that the caller gives back.
    unsafe { free(logits) }
}
