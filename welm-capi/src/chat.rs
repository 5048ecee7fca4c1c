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

/// One message of a conversation. What it points to needs to live only while the function runs that takes it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_message {
    /// Who speaks: "system", "user" or "assistant", and whatever else the template knows; UTF-8, NUL-terminated.
    pub role: *const c_char,
    /// What is said, in UTF-8.
    pub content: *const c_char,
    /// Bytes of it, or `WELM_NUL_TERMINATED`.
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

/// Whether a model comes with a chat template. One that is not valid shows only when it is used.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one model.
/// - NULL: `false` for a NULL `model`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_has_chat_template(model: *const welm_model) -> bool {
    // SAFETY: NULL, or a handle that was not freed, by the function's contract.
    value(false, || unsafe { welm_model::get(model) }.is_ok_and(|m| m.has_chat_template()))
}

/// The text of a conversation, by the model's own template. With `add_generation_prompt` it ends where the
/// assistant's answer begins.
///
/// The template is a program of the model's author. It runs with bounds on steps, memory and depth, and sees nothing
/// but the messages, the special tokens and the time.
///
/// - ownership: `*prompt` is the caller's, to be freed with `welm_string_free`. Nothing of the messages is kept.
/// - threads: any number at once on one model.
/// - NULL: `model` and `prompt` must not be, nor the texts of a message; `messages` may be, if `n` is 0; `error` may
///   be.
/// - encoding: UTF-8.
/// - errors: `WELM_CHAT_TEMPLATE` if the model has none, or it fails; `WELM_IO`, `WELM_INVALID_FILE` if its file cannot
///   be read; `WELM_INVALID_OPTION` without a message; those of any function.
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
        if prompt.is_null() {
            return Err(Failure::null("prompt"));
        }
        let text = model.chat_prompt(&messages, add_generation_prompt)?;
        prompt.write(Box::into_raw(welm_string::new(text)));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// The tokens of what `welm_model_chat_prompt` gives, to be continued by way of `welm_prompt_tokens`: special tokens
/// are parsed, and none is put in front, since the template names the one that starts a text.
///
/// Special tokens that are written in a message, such as `<|im_end|>`, are parsed too: who may write a message can
/// end it and begin another one in any role. Where messages are not trusted, look for such texts before.
///
/// - ownership: `*tokens` is the caller's, to be freed with `welm_tokens_free`. Nothing of the messages is kept.
/// - threads: any number at once on one model.
/// - NULL: `model` and `tokens` must not be, nor the texts of a message; `messages` may be, if `n` is 0; `error` may
///   be.
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
        if tokens.is_null() {
            return Err(Failure::null("tokens"));
        }
        let ids = model.chat_tokens(&messages, add_generation_prompt)?;
        tokens.write(welm_tokens::new(ids));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// As `welm_model_chat_prompt`, of a JSON object: messages with all the keys that a template may ask for, and what
/// else transformers' `apply_chat_template` takes.
///
/// ```json
/// {"messages": [{"role": "user", "content": "Hello"},
///               {"role": "assistant", "content": null, "tool_calls": [{"type": "function", ...}]}],
///  "tools": [{"type": "function", ...}], "enable_thinking": false}
/// ```
///
/// - `messages`: objects with any keys; those that are null are as if they were not there.
/// - `add_generation_prompt`: `true` unless it is given, or a message is to be continued.
/// - `continue_final_message`: `true`, or the key of the last message that the model is to go on with.
/// - `tools`, `documents`: lists of objects; templates see `none` without them. With tools, the model's template named
///   `tool_use` is taken if it has one.
/// - `chat_template`: the name of one of several templates that the model has, or the source of another one.
/// - All other keys are variables of the template.
///
/// - ownership: `*prompt` is the caller's, to be freed with `welm_string_free`. Nothing of the request is kept.
/// - threads: any number at once on one model.
/// - NULL: `model`, `request` and `prompt` must not be; `error` may be.
/// - encoding: UTF-8; `len` bytes, or `WELM_NUL_TERMINATED`.
/// - errors: as `welm_model_chat_prompt`; `WELM_INVALID_OPTION` for what is no JSON, or has a wrong value, which the
///   message names.
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
        if prompt.is_null() {
            return Err(Failure::null("prompt"));
        }
        let text = model.chat_request_prompt(&request)?;
        prompt.write(Box::into_raw(welm_string::new(text)));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// The tokens of what `welm_model_chat_prompt_json` gives, as `welm_model_chat_tokens` makes them.
///
/// - ownership: `*tokens` is the caller's, to be freed with `welm_tokens_free`. Nothing of the request is kept.
/// - threads: any number at once on one model.
/// - NULL: `model`, `request` and `tokens` must not be; `error` may be.
/// - encoding: UTF-8; `len` bytes, or `WELM_NUL_TERMINATED`.
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
        if tokens.is_null() {
            return Err(Failure::null("tokens"));
        }
        let ids = model.chat_request_tokens(&request)?;
        tokens.write(welm_tokens::new(ids));
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// The model's answer to a conversation, by its own chat template; returns when all `n` sequences of the options have
/// ended.
///
/// It is what `welm_model_generate` gives for the tokens of `welm_model_chat_tokens`, with the beginning of the
/// answer, and ends at the model's end tokens, of which a chat model has one for the end of a turn. With `echo` the
/// text begins with that of `welm_model_chat_prompt`. Special tokens that are written in a message are parsed; see
/// `welm_model_chat_tokens`.
///
/// - ownership: `*generation` is the caller's, to be freed with `welm_generation_free`. Nothing of messages and
///   options is kept.
/// - threads: any number at once on one model; their requests are computed together.
/// - NULL: `model` and `generation` must not be, nor the texts of a message; `messages` may be, if `n` is 0;
///   `options` may be, for the defaults; `error` may be.
/// - encoding: of messages and stop strings UTF-8.
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

/// As `welm_model_chat`, of a JSON object as for `welm_model_chat_prompt_json`: with tools, documents, and what else
/// templates ask for.
///
/// - ownership: `*generation` is the caller's, to be freed with `welm_generation_free`. Nothing of the request and
///   options is kept.
/// - threads: any number at once on one model; their requests are computed together.
/// - NULL: `model`, `request` and `generation` must not be; `options` may be, for the defaults; `error` may be.
/// - encoding: UTF-8; of the request `len` bytes, or `WELM_NUL_TERMINATED`.
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
///   kept. `model` may be freed while the stream lives.
/// - threads: any number at once on one model; their requests are computed together.
/// - NULL: `model` and `stream` must not be, nor the texts of a message; `messages` may be, if `n` is 0;
///   `options` may be, for the defaults; `error` may be.
/// - encoding: of messages and stop strings UTF-8.
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

/// As `welm_model_chat_stream`, of a JSON object as for `welm_model_chat_prompt_json`.
///
/// - ownership: `*stream` is the caller's, to be freed with `welm_stream_free`. Nothing of the request and options
///   is kept. `model` may be freed while the stream lives.
/// - threads: any number at once on one model; their requests are computed together.
/// - NULL: `model`, `request` and `stream` must not be; `options` may be, for the defaults; `error` may be.
/// - encoding: UTF-8; of the request `len` bytes, or `WELM_NUL_TERMINATED`.
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
