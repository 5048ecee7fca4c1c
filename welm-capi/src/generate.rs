//! Answers that are returned as a whole, or piece by piece through a callback.

use std::ffi::{c_char, c_void};
use std::ptr;

use welm_core::{Choice, Generation, Model, Prompt};

use crate::error::{Failure, welm_error, welm_status};
use crate::guard::{free, status, value};
use crate::list::{TokenList, welm_finish_reason, welm_token};
use crate::model::welm_model;
use crate::request::{welm_generate_options, welm_prompt};
use crate::sized;
use crate::stream::{PieceBox, welm_piece};
use crate::text::Text;

/// One generated sequence.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_choice {
    /// The text, in UTF-8, with a NUL after it; with `echo`, the prompt is in front of it.
    pub text: *const c_char,
    /// Bytes of the text.
    pub text_len: usize,
    /// Its tokens; with `echo`, those of the prompt are in front of them.
    pub tokens: *const welm_token,
    /// Number of them.
    pub n_tokens: usize,
    /// Why it ended.
    pub finish_reason: welm_finish_reason,
    /// The token that ended the sequence, if `has_end_token`: an end token of the model, or one of `stop_token_ids`. It
    /// is not part of text and tokens.
    pub end_token: u32,
    /// Whether such a token ended it.
    pub has_end_token: bool,
}

/// Tokens that a request used.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, over all sequences.
    pub completion_tokens: usize,
    /// Prompt tokens whose keys and values came from the prefix cache.
    pub cached_tokens: usize,
}

/// The answer to a request. It never changes, so that any number of threads may read it at once. What its functions
/// return is valid until it is freed.
pub struct welm_generation {
    choices: Vec<ChoiceBox>,
    usage: welm_usage,
    seed: u64,
}

/// A choice with what it points to.
struct ChoiceBox {
    choice: welm_choice,
    _text: Text,
    _tokens: TokenList,
}

impl ChoiceBox {
    fn new(choice: Choice) -> Self {
        let (text, tokens) = (Text::new(choice.text), TokenList::new(choice.tokens));
        let choice = welm_choice {
            text: text.as_ptr(),
            text_len: text.len(),
            tokens: tokens.as_ptr(),
            n_tokens: tokens.len(),
            finish_reason: choice.finish_reason.into(),
            end_token: choice.end_token.unwrap_or(0),
            has_end_token: choice.end_token.is_some(),
        };
        ChoiceBox { choice, _text: text, _tokens: tokens }
    }
}

impl welm_generation {
    pub(crate) fn new(generation: Generation) -> *mut Self {
        let usage = welm_usage {
            prompt_tokens: generation.usage.prompt_tokens,
            completion_tokens: generation.usage.completion_tokens,
            cached_tokens: generation.usage.cached_tokens,
        };
        let choices = generation.choices.into_iter().map(ChoiceBox::new).collect();
        Box::into_raw(Box::new(welm_generation { choices, usage, seed: generation.seed }))
    }
}

/// Continues a prompt; returns when all `n` sequences have ended.
///
/// Cancelling and deadlines are no errors: the sequences end with that reason and with the text so far.
///
/// - ownership: `*generation` is the caller's, to be freed with `welm_generation_free`. Nothing of prompt and
///   options is kept.
/// - threads: any number at once on one model; their requests are computed together.
/// - NULL: not allowed for `model` and `generation`; allowed for `options`, for the defaults; allowed for `error`.
/// - encoding: prompt and stop strings are UTF-8.
/// - errors: `WELM_INVALID_OPTION`, `WELM_TOO_LONG`, `WELM_EMPTY_PROMPT`, `WELM_TOKENIZER`; `WELM_QUEUE_FULL` if
///   too many wait; `WELM_FORKED` in a forked child; `WELM_NOT_FINITE`, `WELM_DEVICE` for faults of this request;
///   `WELM_DEVICE_LOST`, `WELM_INVALID_FILE` (a mapped file was cut short), `WELM_ENGINE_STOPPED` for faults after which no
///   request has an answer; the general errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_generate(
    model: *const welm_model,
    prompt: welm_prompt,
    options: *const welm_generate_options,
    generation: *mut *mut welm_generation,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, prompt, options and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        generate(model, || prompt.to_core(), options, generation)
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// Writes the answer to a prompt. The prompt is read after the options.
///
/// # Safety
/// `options` and `generation` are NULL or the caller's.
pub(crate) unsafe fn generate<'p, P: Into<Prompt<'p>>>(
    model: &Model,
    prompt: impl FnOnce() -> Result<P, Failure>,
    options: *const welm_generate_options,
    generation: *mut *mut welm_generation,
) -> Result<(), Failure> {
    // SAFETY: by this function's contract.
    let options = unsafe { sized::read("options", options, Default::default())?.to_core()? };
    Failure::unless_null("generation", generation)?;
    let answer = model.generate(prompt()?, &options)?;
    // SAFETY: not NULL; the caller's.
    unsafe { generation.write(welm_generation::new(answer)) };
    Ok(())
}

/// Takes the pieces of an answer as they come; returning `false` ends the request. `piece` and what it points to are
/// valid until the callback returns. It must not throw, and must not `longjmp` out.
pub type welm_piece_callback =
    Option<unsafe extern "C" fn(data: *mut c_void, piece: *const welm_piece) -> bool>;

/// As `welm_model_generate`, piece by piece, on the calling thread; returns when all sequences have ended, or when
/// `callback` returns `false`, which is no error. See `welm_stream_next` for what a piece is.
///
/// - ownership: nothing to free. Nothing of prompt and options is kept.
/// - threads: any number at once on one model. `callback` runs on the thread of this call, and may use the model.
/// - NULL: not allowed for `model` and `callback`; allowed for `options`, `data` and `error`.
/// - encoding: prompt and stop strings are UTF-8.
/// - errors: as `welm_model_generate`; `callback` may have got pieces before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_generate_with(
    model: *const welm_model,
    prompt: welm_prompt,
    options: *const welm_generate_options,
    callback: welm_piece_callback,
    data: *mut c_void,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, prompt, options and callback are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let options = sized::read("options", options, Default::default())?.to_core()?;
        let callback = callback.ok_or_else(|| Failure::null("callback"))?;
        for piece in model.stream(prompt.to_core()?, &options)? {
            if !callback(data, PieceBox::new(piece?).as_ptr()) {
                break;
            }
        }
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// How many sequences an answer has: the `n` of the request's options.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one answer.
/// - NULL: 0 for a NULL `generation`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_generation_n_choices(generation: *const welm_generation) -> usize {
    // SAFETY: NULL, or an answer that was not freed, by the function's contract.
    value(0, || unsafe { generation.as_ref() }.map_or(0, |g| g.choices.len()))
}

/// One of the sequences, counted from 0.
///
/// - ownership: belongs to `generation`; valid until `generation` is freed.
/// - threads: any number at once on one answer.
/// - NULL: returned for a NULL `generation`, and if there is no such sequence.
/// - encoding: its text is UTF-8: `text_len` bytes, then a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_generation_choice(
    generation: *const welm_generation,
    index: usize,
) -> *const welm_choice {
    value(ptr::null(), || {
        // SAFETY: NULL, or an answer that was not freed, by the function's contract.
        let generation = unsafe { generation.as_ref() };
        generation.and_then(|g| g.choices.get(index)).map_or(ptr::null(), |c| &c.choice)
    })
}

/// Why the first sequence ended.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one answer.
/// - NULL: `WELM_FINISH_NONE` for a NULL `generation`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_generation_finish_reason(
    generation: *const welm_generation,
) -> welm_finish_reason {
    value(welm_finish_reason::WELM_FINISH_NONE, || {
        // SAFETY: NULL, or an answer that was not freed, by the function's contract.
        let first = unsafe { generation.as_ref() }.and_then(|g| g.choices.first());
        first.map_or(welm_finish_reason::WELM_FINISH_NONE, |c| c.choice.finish_reason)
    })
}

/// The tokens that a request used.
///
/// - ownership: belongs to `generation`; valid until `generation` is freed.
/// - threads: any number at once on one answer.
/// - NULL: returned for a NULL `generation`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_generation_usage(generation: *const welm_generation) -> *const welm_usage {
    // SAFETY: NULL, or an answer that was not freed, by the function's contract.
    value(ptr::null(), || unsafe { generation.as_ref() }.map_or(ptr::null(), |g| &g.usage))
}

/// The seed that was used; the same request with this seed gives the same bits.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one answer.
/// - NULL: 0 for a NULL `generation`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_generation_seed(generation: *const welm_generation) -> u64 {
    // SAFETY: NULL, or an answer that was not freed, by the function's contract.
    value(0, || unsafe { generation.as_ref() }.map_or(0, |g| g.seed))
}

/// Frees an answer.
///
/// - ownership: takes `generation`, and frees all that its functions returned, too.
/// - threads: once, when nobody reads it any more.
/// - NULL: does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_generation_free(generation: *mut welm_generation) {
    // SAFETY: NULL, or a box of this library that the caller gives back.
    unsafe { free(generation) }
}
