//! The parts of a request: prompt, options, and the token that cancels it.

use std::ffi::c_char;
use std::ptr;
use std::time::Duration;

use welm_core::{CancelToken, GenerateOptions, Prompt};

use crate::error::welm_status::WELM_INVALID_ARGUMENT;
use crate::error::{Failure, welm_status};
use crate::guard::{free, status, value};
use crate::sized::{self, Growing, flag};
use crate::text::{WELM_NUL_TERMINATED, array, optional_text, text, texts};

/// A prompt, as text or as tokens; see `welm_prompt_text` and `welm_prompt_tokens`. It is passed by value. What it
/// points to needs to live only until the function that takes it returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_prompt {
    /// The text, in UTF-8, if `tokens` is NULL.
    pub text: *const c_char,
    /// The tokens.
    pub tokens: *const u32,
    /// Bytes of the text, or `WELM_NUL_TERMINATED`; for tokens their number.
    pub len: usize,
}

impl welm_prompt {
    /// # Safety
    /// What it points to is as long as it says and does not change during `'a`.
    pub(crate) unsafe fn to_core<'a>(self) -> Result<Prompt<'a>, Failure> {
        // SAFETY: by this function's contract.
        unsafe { self.named("prompt") }
    }

    /// # Safety
    /// As for `to_core`.
    pub(crate) unsafe fn named<'a>(self, argument: &str) -> Result<Prompt<'a>, Failure> {
        if self.tokens.is_null() {
            // SAFETY: by this function's contract.
            return Ok(Prompt::Text(unsafe { text(argument, self.text, self.len) }?));
        }
        if !self.text.is_null() || self.len == WELM_NUL_TERMINATED {
            let reason = format!("`{argument}`: expected a text, or tokens and their number; got both");
            return Err(Failure::new(WELM_INVALID_ARGUMENT, reason));
        }
        // SAFETY: by this function's contract.
        Ok(Prompt::Tokens(unsafe { array(argument, self.tokens, self.len) }?))
    }
}

/// A prompt of text. The model tokenizes it, and adds the token that starts a text if its tokenizer does so.
///
/// - ownership: only points to `text`.
/// - threads: any, at any time.
/// - NULL: allowed for `text` if `len` is 0.
/// - encoding: UTF-8, of `len` bytes or, with `WELM_NUL_TERMINATED`, up to its NUL; checked by the function that takes
///   the prompt.
#[unsafe(no_mangle)]
pub extern "C" fn welm_prompt_text(text: *const c_char, len: usize) -> welm_prompt {
    welm_prompt { text, tokens: ptr::null(), len }
}

/// A prompt of tokens; nothing is added to them.
///
/// - ownership: only points to `tokens`.
/// - threads: any, at any time.
/// - NULL: allowed for `tokens` if `n_tokens` is 0.
#[unsafe(no_mangle)]
pub extern "C" fn welm_prompt_tokens(tokens: *const u32, n_tokens: usize) -> welm_prompt {
    // A NULL `tokens` would mean a text, so an empty prompt of tokens needs a pointer, too.
    static NONE: u32 = 0;
    let tokens = if tokens.is_null() && n_tokens == 0 { &raw const NONE } else { tokens };
    welm_prompt { text: ptr::null(), tokens, len: n_tokens }
}

/// A number that is added to the logit of one token.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_logit_bias {
    /// The token.
    pub token: u32,
    /// From -100 to 100, or `-INFINITY`, which rules the token out.
    pub bias: f32,
}

/// How a prompt is continued. `welm_generate_options_init` sets the defaults.
///
/// What it points to needs to live only until the function that takes it returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_generate_options {
    /// `sizeof(welm_generate_options)`.
    pub struct_size: usize,
    /// Most tokens generated for each sequence (default: 16).
    pub max_tokens: usize,
    /// Keeps this many of the likeliest tokens; 0 is off (default: 50).
    pub top_k: usize,
    /// Sequences returned; the prompt is computed once (1 to 128; default: 1).
    pub n: usize,
    /// Divides the logits; 0 is greedy: the likeliest token is always taken (0 to 100; default: 0.85).
    pub temperature: f32,
    /// Keeps the likeliest tokens whose probabilities add up to this; 0 is greedy, 1 is off (0 to 1; default: 0.95).
    pub top_p: f32,
    /// Drops tokens less likely than this share of the likeliest token's probability; 0 is off (0 to 1; default:
    /// 0.0).
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that prompt or text contain; 1 is off (0.01 to 100;
    /// default: 1.0).
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit for each time that the generated text has it; 0 is off (-100 to 100; default:
    /// 0.0).
    pub frequency_penalty: f32,
    /// Subtracted once from the logits of tokens that the generated text has; 0 is off (-100 to 100; default: 0.0).
    pub presence_penalty: f32,
    /// Added to the logits of these tokens; -infinity rules a token out (-100 to 100, or -infinity; default: none).
    ///
    /// There are `n_logit_bias` of them. They are added before the penalties. If a token is here several times, its
    /// biases add up.
    pub logit_bias: *const welm_logit_bias,
    /// Number of biases.
    pub n_logit_bias: usize,
    /// Strings that end a sequence; they are never part of the text (at most 256, each of 1 to 256 bytes; default:
    /// none).
    ///
    /// There are `n_stop` of them, in UTF-8. A stop string may also name a special token, although texts do not contain
    /// these: `<|im_end|>` ends a sequence at that token.
    pub stop: *const *const c_char,
    /// Bytes of each stop string; NULL if all are NUL-terminated.
    pub stop_lens: *const usize,
    /// Number of stop strings.
    pub n_stop: usize,
    /// Seed of the random numbers; the same request with the same seed gives the same text (default: drawn, and
    /// reported with the result).
    ///
    /// It is used only if `has_seed` is set.
    pub seed: u64,
    /// How many of the likeliest tokens are reported at each place, with log-probabilities (at most 100; default:
    /// none is reported).
    ///
    /// -1 reports nothing, 0 only the log-probability of the chosen token.
    pub logprobs: i32,
    /// Whether `seed` is used.
    pub has_seed: flag,
    /// Whether the prompt is part of the text, and of the log-probabilities if those are asked for (default: false).
    pub echo: flag,
    /// Whether spellings of special tokens in the prompt become these tokens; otherwise they are ordinary text
    /// (default: false).
    pub parse_special: flag,
    /// Whether the model's end tokens are ignored, so that the text goes on up to max_tokens (default: false).
    pub ignore_eos: flag,
    /// Time after which the request ends with what it has, counted from the call (default: never).
    ///
    /// In milliseconds; 0 is never.
    pub deadline_ms: u64,
    /// Token that ends the request from another thread (default: none).
    ///
    /// The request keeps a reference: you may free the token while the request runs.
    pub cancel: *const welm_cancel_token,
    /// Tokens that end a sequence as the model's own end tokens do (at most 256; default: none).
    ///
    /// There are `n_stop_token_ids` of them. The sequence ends with `WELM_FINISH_STOP`, even with `ignore_eos`. They
    /// are part of neither text nor tokens.
    pub stop_token_ids: *const u32,
    /// Number of these tokens.
    pub n_stop_token_ids: usize,
    /// Prefix-cache entries are shared only between requests with the same salt (1 to 256 bytes; default: shared by
    /// all that have none).
    ///
    /// In UTF-8. Give each tenant a secret of its own. Then tenants cannot find out each other's prompts from response
    /// times or from `cached_tokens`.
    pub cache_salt: *const c_char,
    /// Bytes of the salt, or `WELM_NUL_TERMINATED`, the default.
    pub cache_salt_len: usize,
}

// SAFETY: `repr(C)`, size first; pointers, numbers and flags; ends with a number as large as a pointer.
unsafe impl Growing for welm_generate_options {}

impl Default for welm_generate_options {
    fn default() -> Self {
        let d = GenerateOptions::default();
        welm_generate_options {
            struct_size: size_of::<Self>(),
            max_tokens: d.max_tokens,
            top_k: d.top_k,
            n: d.n,
            temperature: d.temperature,
            top_p: d.top_p,
            min_p: d.min_p,
            repetition_penalty: d.repetition_penalty,
            frequency_penalty: d.frequency_penalty,
            presence_penalty: d.presence_penalty,
            logit_bias: ptr::null(),
            n_logit_bias: 0,
            stop: ptr::null(),
            stop_lens: ptr::null(),
            n_stop: 0,
            seed: 0,
            logprobs: -1,
            has_seed: false.into(),
            echo: d.echo.into(),
            parse_special: d.parse_special.into(),
            ignore_eos: d.ignore_eos.into(),
            deadline_ms: 0,
            cancel: ptr::null(),
            stop_token_ids: ptr::null(),
            n_stop_token_ids: 0,
            cache_salt: ptr::null(),
            cache_salt_len: WELM_NUL_TERMINATED,
        }
    }
}

impl welm_generate_options {
    /// # Safety
    /// What it points to is as long as it says; `cancel` is NULL or a token that was not freed.
    pub(crate) unsafe fn to_core(self) -> Result<GenerateOptions, Failure> {
        let logprobs = match self.logprobs {
            -1 => None,
            k if k >= 0 => Some(k as usize),
            k => {
                let reason = format!("`options->logprobs`: expected -1 or more, got {k}");
                return Err(Failure::new(WELM_INVALID_ARGUMENT, reason));
            }
        };
        // SAFETY: by this function's contract.
        let stop = unsafe { texts("stop", self.stop, self.stop_lens, self.n_stop) }?;
        // SAFETY: by this function's contract.
        let logit_bias = unsafe { array("logit_bias", self.logit_bias, self.n_logit_bias) }?;
        // SAFETY: by this function's contract.
        let stop_token_ids = unsafe { array("stop_token_ids", self.stop_token_ids, self.n_stop_token_ids) }?;
        // SAFETY: by this function's contract.
        let cache_salt = unsafe { optional_text("cache_salt", self.cache_salt, self.cache_salt_len) }?;
        Ok(GenerateOptions {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            n: self.n,
            echo: self.echo.get(),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: logit_bias.iter().map(|b| (b.token, b.bias)).collect(),
            stop: stop.into_iter().map(str::to_string).collect(),
            logprobs,
            seed: self.has_seed.get().then_some(self.seed),
            deadline: Some(self.deadline_ms).filter(|&ms| ms != 0).map(Duration::from_millis),
            // SAFETY: by this function's contract.
            cancel: unsafe { self.cancel.as_ref() }.map(|c| c.0.clone()),
            parse_special: self.parse_special.get(),
            ignore_eos: self.ignore_eos.get(),
            stop_token_ids: stop_token_ids.to_vec(),
            cache_salt,
        })
    }
}

/// Sets every option to its default, and `struct_size` to the argument, which is `sizeof(welm_generate_options)`.
///
/// - ownership: nothing to free.
/// - threads: any, each with a struct of its own.
/// - NULL: not allowed for `options`.
/// - errors: `WELM_NULL_POINTER`; `WELM_INVALID_ARGUMENT` for an impossible size, then nothing is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_generate_options_init(
    options: *mut welm_generate_options,
    struct_size: usize,
) -> welm_status {
    // SAFETY: the caller's struct has the size that it says.
    let body = || unsafe { sized::init("options", options, struct_size, &welm_generate_options::default()) };
    // SAFETY: NULL is allowed.
    unsafe { status(ptr::null_mut(), body) }
}

/// Ends requests from another thread: all requests that have it in their options. Any number of threads may use it at
/// once.
pub struct welm_cancel_token(pub(crate) CancelToken);

/// Makes a token that is not cancelled.
///
/// - ownership: the result is the caller's, to be freed with `welm_cancel_token_free`.
/// - threads: any, at any time.
/// - NULL: returned only for a fault inside the library.
#[unsafe(no_mangle)]
pub extern "C" fn welm_cancel_token_new() -> *mut welm_cancel_token {
    value(ptr::null_mut(), || Box::into_raw(Box::new(welm_cancel_token(CancelToken::new()))))
}

/// Asks every request that has this token to stop, within one step. It stays cancelled.
///
/// - ownership: nothing changes.
/// - threads: any number at once on one token.
/// - NULL: does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_cancel_token_cancel(token: *const welm_cancel_token) {
    value((), || {
        // SAFETY: NULL, or a token that was not freed, by the function's contract.
        if let Some(token) = unsafe { token.as_ref() } {
            token.0.cancel();
        }
    });
}

/// Whether a token was cancelled.
///
/// - ownership: nothing changes.
/// - threads: any number at once on one token.
/// - NULL: `false` for a NULL `token`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_cancel_token_is_cancelled(token: *const welm_cancel_token) -> bool {
    // SAFETY: NULL, or a token that was not freed, by the function's contract.
    value(false, || unsafe { token.as_ref() }.is_some_and(|t| t.0.is_cancelled()))
}

/// Frees a token. Requests that have it go on.
///
/// - ownership: takes `token`.
/// - threads: once, when no other call with this token is running.
/// - NULL: does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_cancel_token_free(token: *mut welm_cancel_token) {
    // SAFETY: NULL, or a box of this library that the caller gives back.
    unsafe { free(token) }
}
