//! Conversations: their prompts, and the model's answers.

use std::ffi::c_char;

use welm_core::{ChatRequest, Message};

use crate::error::{Failure, welm_error, welm_status};
use crate::generate::{generate, welm_generation};
use crate::guard::{status, value};
use crate::model::welm_model;
use crate::request::welm_generate_options;
use crate::stream::{start, welm_stream};
use crate::text::{WELM_NUL_TERMINATED, array, text, welm_string};
use crate::tokens::welm_tokens;

/// One message of a conversation. What it points to needs to live only until the function that takes it returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_message {
    /// Who speaks: "system", "user", "assistant", or another role that the template knows; UTF-8, NUL-terminated.
    pub role: *const c_char,
    /// The message's text, in UTF-8.
    pub content: *const c_char,
    /// Bytes of the text, or `WELM_NUL_TERMINATED`.
    pub content_len: usize,
}

/// # Safety
/// As for `array`, and for each message as for `text`.
unsafe fn conversation(messages: *const welm_message, n: usize) -> Result<Vec<Message>, Failure> {
    // SAFETY: by this function's contract.
    let messages = unsafe { array("messages", messages, n) }?;
    let one = |(i, m): (usize, &welm_message)| {
        // SAFETY: by this function's contract.
        unsafe {
            let role = text(&format!("messages[{i}].role"), m.role, WELM_NUL_TERMINATED)?;
            let content = text(&format!("messages[{i}].content"), m.content, m.content_len)?;
            Ok(Message::new(role, content))
        }
    };
    messages.iter().enumerate().map(one).collect()
}

/// Whether a model has a chat template. Whether the template is valid is known only when it is used.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one model.
/// - NULL: `false` for a NULL `model`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_has_chat_template(model: *const welm_model) -> bool {
    // SAFETY: NULL, or a handle that was not freed, by the function's contract.
    value(false, || unsafe { welm_model::get(model) }.is_ok_and(|m| m.has_chat_template()))
}

/// The text of a conversation, made by the model's own chat template. With `add_generation_prompt` it ends where the
/// assistant's answer begins.
///
/// The template is a program by the author of the model. It runs with limits on steps, memory and depth, and can read
/// only the messages, the special tokens and the time.
///
/// - ownership: `*prompt` is the caller's, to be freed with `welm_string_free`. Nothing of the messages is kept.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model` and `prompt` or the texts of a message; allowed for `messages` if `n` is 0;
///   allowed for `error`.
/// - encoding: UTF-8.
/// - errors: `WELM_CHAT_TEMPLATE` if the model has none, or it fails; `WELM_IO`, `WELM_INVALID_FILE` if its file
///   cannot be read; `WELM_INVALID_OPTION` without a message; the general errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_chat_prompt(
    model: *const welm_model,
    messages: *const welm_message,
    n: usize,
    add_generation_prompt: bool,
    prompt: *mut *mut welm_string,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, messages and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let messages = conversation(messages, n)?;
        Failure::unless_null("prompt", prompt)?;
        let text = model.chat_prompt(&messages, add_generation_prompt)?;
        prompt.write(Box::into_raw(welm_string::new(text)));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// The tokens of the text that `welm_model_chat_prompt` gives. Give them to `welm_prompt_tokens` to continue them.
/// Spellings of special tokens become these tokens. None is added in front, because the template writes the token that
/// starts a text.
///
/// This includes special tokens in the text of a message, such as `<|im_end|>`. So the writer of a message can end it
/// and begin another one in any role. If messages are not trusted, look for such texts first.
///
/// - ownership: `*tokens` is the caller's, to be freed with `welm_tokens_free`. Nothing of the messages is kept.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model` and `tokens` or the texts of a message; allowed for `messages` if `n` is 0;
///   allowed for `error`.
/// - encoding: UTF-8.
/// - errors: as `welm_model_chat_prompt`, and `WELM_TOKENIZER`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_chat_tokens(
    model: *const welm_model,
    messages: *const welm_message,
    n: usize,
    add_generation_prompt: bool,
    tokens: *mut *mut welm_tokens,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, messages and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let messages = conversation(messages, n)?;
        Failure::unless_null("tokens", tokens)?;
        let ids = model.chat_tokens(&messages, add_generation_prompt)?;
        tokens.write(welm_tokens::new(ids));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// As `welm_model_chat_prompt`, for a JSON object. Messages may have all keys that a template reads, and there are the
/// other arguments of `apply_chat_template` in transformers.
///
/// ```json
/// {"messages": [{"role": "user", "content": "Hello"},
///               {"role": "assistant", "content": null, "tool_calls": [{"type": "function", ...}]}],
///  "tools": [{"type": "function", ...}], "enable_thinking": false}
/// ```
///
/// - `messages`: objects with any keys. A key whose value is null is left out.
/// - `add_generation_prompt`: by default `true`, but `false` with `continue_final_message`.
/// - `continue_final_message`: `true`, or the key of the last message whose text the model continues.
/// - `tools`, `documents`: lists of objects; without them templates get `none`. With tools, the model's template named
///   `tool_use` is taken if it has one.
/// - `chat_template`: the name of one of the model's templates if it has several, or the source of another one.
/// - All other keys are variables of the template.
///
/// - ownership: `*prompt` is the caller's, to be freed with `welm_string_free`. Nothing of the request is kept.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model`, `request` and `prompt`; allowed for `error`.
/// - encoding: UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
/// - errors: as `welm_model_chat_prompt`; `WELM_INVALID_OPTION` if `request` is not JSON, or has a wrong value; the
///   message says which.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_chat_prompt_json(
    model: *const welm_model,
    request: *const c_char,
    len: usize,
    prompt: *mut *mut welm_string,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, text and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let request = ChatRequest::from_json(text("request", request, len)?)?;
        Failure::unless_null("prompt", prompt)?;
        let text = model.chat_request_prompt(&request)?;
        prompt.write(Box::into_raw(welm_string::new(text)));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// The tokens of the text that `welm_model_chat_prompt_json` gives, made as by `welm_model_chat_tokens`.
///
/// - ownership: `*tokens` is the caller's, to be freed with `welm_tokens_free`. Nothing of the request is kept.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model`, `request` and `tokens`; allowed for `error`.
/// - encoding: UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
/// - errors: as `welm_model_chat_prompt_json`, and `WELM_TOKENIZER`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_chat_tokens_json(
    model: *const welm_model,
    request: *const c_char,
    len: usize,
    tokens: *mut *mut welm_tokens,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, text and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let request = ChatRequest::from_json(text("request", request, len)?)?;
        Failure::unless_null("tokens", tokens)?;
        let ids = model.chat_request_tokens(&request)?;
        tokens.write(welm_tokens::new(ids));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// The model's answer to a conversation, with the model's own chat template. Returns when all `n` sequences of the
/// options have ended.
///
/// It is what `welm_model_generate` gives for the tokens of `welm_model_chat_tokens` with `add_generation_prompt`. It
/// ends at the model's end tokens; a chat model has one for the end of a turn. With `echo` the text begins with that of
/// `welm_model_chat_prompt`. Special tokens in the text of a message are parsed; see `welm_model_chat_tokens`.
///
/// - ownership: `*generation` is the caller's, to be freed with `welm_generation_free`. Nothing of messages and
///   options is kept.
/// - threads: any number at once on one model; their requests are computed together.
/// - NULL: not allowed for `model` and `generation` or the texts of a message; allowed for `messages` if `n` is 0;
///   allowed for `options`, for the defaults; allowed for `error`.
/// - encoding: messages and stop strings are UTF-8.
/// - errors: as `welm_model_generate` and `welm_model_chat_prompt`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_chat(
    model: *const welm_model,
    messages: *const welm_message,
    n: usize,
    options: *const welm_generate_options,
    generation: *mut *mut welm_generation,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, messages, options and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let request = ChatRequest::new(conversation(messages, n)?);
        generate(model, || Ok(&request), options, generation)
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// As `welm_model_chat`, for a JSON object as `welm_model_chat_prompt_json` takes it: with tools, documents, and other
/// variables of the template.
///
/// - ownership: `*generation` is the caller's, to be freed with `welm_generation_free`. Nothing of the request and
///   options is kept.
/// - threads: any number at once on one model; their requests are computed together.
/// - NULL: not allowed for `model`, `request` and `generation`; allowed for `options`, for the defaults; allowed
///   for `error`.
/// - encoding: the request is UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
/// - errors: as `welm_model_generate` and `welm_model_chat_prompt_json`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_chat_json(
    model: *const welm_model,
    request: *const c_char,
    len: usize,
    options: *const welm_generate_options,
    generation: *mut *mut welm_generation,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, text, options and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let request = ChatRequest::from_json(text("request", request, len)?)?;
        generate(model, || Ok(&request), options, generation)
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// As `welm_model_chat`, piece by piece, as `welm_model_stream` gives them.
///
/// - ownership: `*stream` is the caller's, to be freed with `welm_stream_free`. Nothing of messages and options is
///   kept. `model` may be freed before the stream.
/// - threads: any number at once on one model; their requests are computed together.
/// - NULL: not allowed for `model` and `stream` or the texts of a message; allowed for `messages` if `n` is 0;
///   allowed for `options`, for the defaults; allowed for `error`.
/// - encoding: messages and stop strings are UTF-8.
/// - errors: as `welm_model_chat`; those of the engine come from `welm_stream_next`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_chat_stream(
    model: *const welm_model,
    messages: *const welm_message,
    n: usize,
    options: *const welm_generate_options,
    stream: *mut *mut welm_stream,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, messages, options and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let request = ChatRequest::new(conversation(messages, n)?);
        start(model, || Ok(&request), options, stream)
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// As `welm_model_chat_stream`, for a JSON object as `welm_model_chat_prompt_json` takes it.
///
/// - ownership: `*stream` is the caller's, to be freed with `welm_stream_free`. Nothing of the request and options
///   is kept. `model` may be freed before the stream.
/// - threads: any number at once on one model; their requests are computed together.
/// - NULL: not allowed for `model`, `request` and `stream`; allowed for `options`, for the defaults; allowed for
///   `error`.
/// - encoding: the request is UTF-8, of `len` bytes or `WELM_NUL_TERMINATED`.
/// - errors: as `welm_model_chat_json`; those of the engine come from `welm_stream_next`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_chat_stream_json(
    model: *const welm_model,
    request: *const c_char,
    len: usize,
    options: *const welm_generate_options,
    stream: *mut *mut welm_stream,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, text, options and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        let request = ChatRequest::from_json(text("request", request, len)?)?;
        start(model, || Ok(&request), options, stream)
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}
