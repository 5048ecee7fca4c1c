//! Text to tokens and back.

use std::ffi::c_char;
use std::ptr;

use crate::error::welm_status::WELM_NOT_FOUND;
use crate::error::{Failure, welm_error, welm_status};
use crate::guard::{free, status, value};
use crate::model::welm_model;
use crate::text::{array, put, text, welm_string};

/// Tokens that a function returned. They never change, so that any number of threads may read them at once.
pub struct welm_tokens(Vec<u32>);

impl welm_tokens {
    pub(crate) fn new(tokens: Vec<u32>) -> *mut Self {
        Box::into_raw(Box::new(welm_tokens(tokens)))
    }
}

/// The tokens of a text, without the token that starts a text. With `parse_special`, spellings of special tokens in the
/// text, such as `<|endoftext|>`, become these tokens; otherwise they are ordinary text.
///
/// - ownership: `*tokens` is the caller's, to be freed with `welm_tokens_free`. Nothing of the text is kept.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model` and `tokens`; allowed for `text` if `len` is 0; allowed for `error`.
/// - encoding: UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
/// - errors: `WELM_TOKENIZER` if the model has no tokenizer, or the tokenizer fails; the general errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_tokenize(
    model: *const welm_model,
    text: *const c_char,
    len: usize,
    parse_special: bool,
    tokens: *mut *mut welm_tokens,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, text and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let text = self::text("text", text, len)?;
        Failure::unless_null("tokens", tokens)?;
        tokens.write(welm_tokens::new(model.tokenize(text, parse_special)?));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// The tokens themselves.
///
/// - ownership: belongs to `tokens`; valid until `tokens` is freed.
/// - threads: any number at once on the same tokens.
/// - NULL: returned for NULL `tokens`, with the length 0; allowed for `len`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_tokens_data(tokens: *const welm_tokens, len: *mut usize) -> *const u32 {
    value(ptr::null(), || {
        // SAFETY: NULL, or tokens that were not freed; the output is the caller's.
        unsafe {
            let tokens = tokens.as_ref();
            put(len, tokens.map_or(0, |t| t.0.len()));
            tokens.map_or(ptr::null(), |t| t.0.as_ptr())
        }
    })
}

/// Frees tokens.
///
/// - ownership: takes `tokens`.
/// - threads: once, when nobody reads them any more.
/// - NULL: does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_tokens_free(tokens: *mut welm_tokens) {
    // SAFETY: NULL, or a box of this library that the caller gives back.
    unsafe { free(tokens) }
}

/// The text of tokens. Bytes that are not UTF-8 become U+FFFD; special tokens are left out. Empty for a model without a
/// tokenizer.
///
/// - ownership: `*text` is the caller's, to be freed with `welm_string_free`. Nothing of the tokens is kept.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model` and `text`; allowed for `tokens` if `n_tokens` is 0; allowed for `error`.
/// - encoding: the text is UTF-8.
/// - errors: only the general errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_detokenize(
    model: *const welm_model,
    tokens: *const u32,
    n_tokens: usize,
    text: *mut *mut welm_string,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, tokens and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let tokens = array("tokens", tokens, n_tokens)?;
        Failure::unless_null("text", text)?;
        text.write(Box::into_raw(welm_string::new(model.detokenize(tokens))));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// The bytes of a token, `*len` of them; none for a special token, or for one that does not exist.
///
/// - ownership: belongs to `model`; valid until `model` is freed.
/// - threads: any number at once on one model.
/// - NULL: returned for a NULL `model`, with the length 0; allowed for `len`.
/// - encoding: any bytes, perhaps only a part of a character, and no NUL after them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_token_bytes(
    model: *const welm_model,
    token: u32,
    len: *mut usize,
) -> *const u8 {
    value(ptr::null(), || {
        // SAFETY: NULL, or a handle that was not freed; the output is the caller's.
        unsafe {
            let bytes = welm_model::get(model).ok().map(|m| m.token_bytes(token));
            put(len, bytes.map_or(0, <[u8]>::len));
            bytes.map_or(ptr::null(), <[u8]>::as_ptr)
        }
    })
}

/// The id of a token, special or not, from its name in the vocabulary.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model` and `id`; allowed for `token` if `len` is 0; allowed for `error`.
/// - encoding: UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
/// - errors: `WELM_NOT_FOUND` if there is no such token; the general errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_token_id(
    model: *const welm_model,
    token: *const c_char,
    len: usize,
    id: *mut u32,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, text and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let token = text("token", token, len)?;
        Failure::unless_null("id", id)?;
        let missing = || Failure::new(WELM_NOT_FOUND, format!("the vocabulary has no token `{token}`"));
        id.write(model.token_id(token).ok_or_else(missing)?);
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// Whether a token is a control token, which is not part of a text.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one model.
/// - NULL: `false` for a NULL `model`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_is_special(model: *const welm_model, token: u32) -> bool {
    // SAFETY: NULL, or a handle that was not freed, by the function's contract.
    value(false, || unsafe { welm_model::get(model) }.is_ok_and(|m| m.is_special(token)))
}
