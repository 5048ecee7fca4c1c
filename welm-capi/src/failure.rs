//! What a function returns if it fails: a status, and an error with a message.

use std::ffi::{CStr, CString};

use welm_core::Error;

/// What a function returns. Values from 16 on are errors of the engine.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum welm_status {
    /// Done; the outputs are written.
    WELM_OK = 0,
    /// The stream has ended; no error.
    WELM_END = 1,
    /// An argument is NULL that must not be NULL.
    WELM_NULL_POINTER = 2,
    /// An argument is impossible; the message names it.
    WELM_INVALID_ARGUMENT = 3,
    /// A text is not UTF-8; the message says from which byte on.
    WELM_INVALID_UTF8 = 4,
    /// There is no such token.
    WELM_NOT_FOUND = 5,
    /// A fault inside the library, which was caught; the message says which. Please report it.
    WELM_PANIC = 6,
    /// An error that has no status of its own yet; the message says which.
    WELM_OTHER = 7,
    /// There is no piece yet; no error.
    WELM_PENDING = 8,
    /// A file could not be opened, read, mapped or written.
    WELM_IO = 16,
    /// A file was read, but its content is damaged or not of the format it should be.
    WELM_INVALID_FILE = 17,
    /// The model's configuration asks for something that is unknown or not supported.
    WELM_CONFIG = 18,
    /// A tensor is missing, or has another shape or element type than the configuration asks for.
    WELM_TENSOR = 19,
    /// The tokenizer cannot be built, is missing, or failed on a text.
    WELM_TOKENIZER = 20,
    /// An option has a value that is not allowed.
    WELM_INVALID_OPTION = 21,
    /// Prompt and `max_tokens` together do not fit the model's context or the KV cache.
    WELM_TOO_LONG = 22,
    /// The prompt has no token, and the model has no token to start an empty text with.
    WELM_EMPTY_PROMPT = 23,
    /// The request was refused because too many are waiting.
    WELM_QUEUE_FULL = 24,
    /// The model, or the answer to a request, does not fit in memory; the message has the numbers.
    WELM_OUT_OF_MEMORY = 25,
    /// The device, instruction set or thread that was asked for is not available.
    WELM_UNAVAILABLE = 26,
    /// The device failed in a step; the requests of that step end with this, later ones are served.
    WELM_DEVICE = 27,
    /// The device's context is lost; the model cannot serve any more.
    WELM_DEVICE_LOST = 28,
    /// The engine stopped after an internal fault; the model cannot serve any more.
    WELM_ENGINE_STOPPED = 29,
    /// The progress callback asked to stop.
    WELM_LOAD_CANCELLED = 30,
    /// The model has no chat template, or the template cannot be read, is not valid, or raised an error.
    WELM_CHAT_TEMPLATE = 31,
    /// The model gave logits that are not finite numbers: its weights, or the device, are at fault; or a key or value is
    /// above 65,504 in a cache of f16. Only this request ends.
    WELM_NOT_FINITE = 32,
    /// The process was forked after the model was loaded; its engine is in the parent only. Freeing is allowed.
    WELM_FORKED = 33,
    /// A scoring was cancelled, or its deadline passed, before all scores were there.
    WELM_INTERRUPTED = 34,
}

use welm_status::*;

/// The names of the statuses, as in the header.
pub(crate) const NAMES: [(welm_status, &CStr); 28] = [
    (WELM_OK, c"WELM_OK"),
    (WELM_END, c"WELM_END"),
    (WELM_NULL_POINTER, c"WELM_NULL_POINTER"),
    (WELM_INVALID_ARGUMENT, c"WELM_INVALID_ARGUMENT"),
    (WELM_INVALID_UTF8, c"WELM_INVALID_UTF8"),
    (WELM_NOT_FOUND, c"WELM_NOT_FOUND"),
    (WELM_PANIC, c"WELM_PANIC"),
    (WELM_OTHER, c"WELM_OTHER"),
    (WELM_PENDING, c"WELM_PENDING"),
    (WELM_IO, c"WELM_IO"),
    (WELM_INVALID_FILE, c"WELM_INVALID_FILE"),
    (WELM_CONFIG, c"WELM_CONFIG"),
    (WELM_TENSOR, c"WELM_TENSOR"),
    (WELM_TOKENIZER, c"WELM_TOKENIZER"),
    (WELM_INVALID_OPTION, c"WELM_INVALID_OPTION"),
    (WELM_TOO_LONG, c"WELM_TOO_LONG"),
    (WELM_EMPTY_PROMPT, c"WELM_EMPTY_PROMPT"),
    (WELM_QUEUE_FULL, c"WELM_QUEUE_FULL"),
    (WELM_OUT_OF_MEMORY, c"WELM_OUT_OF_MEMORY"),
    (WELM_UNAVAILABLE, c"WELM_UNAVAILABLE"),
    (WELM_DEVICE, c"WELM_DEVICE"),
    (WELM_DEVICE_LOST, c"WELM_DEVICE_LOST"),
    (WELM_ENGINE_STOPPED, c"WELM_ENGINE_STOPPED"),
    (WELM_LOAD_CANCELLED, c"WELM_LOAD_CANCELLED"),
    (WELM_CHAT_TEMPLATE, c"WELM_CHAT_TEMPLATE"),
    (WELM_NOT_FINITE, c"WELM_NOT_FINITE"),
    (WELM_FORKED, c"WELM_FORKED"),
    (WELM_INTERRUPTED, c"WELM_INTERRUPTED"),
];

/// Why an entry point did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: welm_status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: welm_status, message: impl Into<String>) -> Self {
        Failure { status, message: message.into() }
    }

    pub(crate) fn null(argument: &str) -> Self {
        Failure::new(WELM_NULL_POINTER, format!("`{argument}` is NULL"))
    }

    /// Fails if this argument is NULL.
    pub(crate) fn unless_null<T>(argument: &str, pointer: *const T) -> Result<(), Self> {
        if pointer.is_null() { Err(Self::null(argument)) } else { Ok(()) }
    }

    /// `WELM_END` or `WELM_PENDING`: a stream has no piece, which is no error.
    pub(crate) fn no_piece(status: welm_status) -> Self {
        Failure::new(status, "")
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Io { .. } => WELM_IO,
            Error::InvalidFile { .. } => WELM_INVALID_FILE,
            Error::Config { .. } => WELM_CONFIG,
            Error::Tensor { .. } => WELM_TENSOR,
            Error::Tokenizer(_) => WELM_TOKENIZER,
            Error::InvalidOption { .. } => WELM_INVALID_OPTION,
            Error::TooLong { .. } => WELM_TOO_LONG,
            Error::EmptyPrompt => WELM_EMPTY_PROMPT,
            Error::QueueFull { .. } => WELM_QUEUE_FULL,
            Error::OutOfMemory { .. } | Error::Allocation { .. } => WELM_OUT_OF_MEMORY,
            Error::Unavailable { .. } => WELM_UNAVAILABLE,
            Error::Device(_) => WELM_DEVICE,
            Error::DeviceLost(_) => WELM_DEVICE_LOST,
            Error::EngineStopped(_) => WELM_ENGINE_STOPPED,
            Error::LoadCancelled => WELM_LOAD_CANCELLED,
            Error::ChatTemplate(_) => WELM_CHAT_TEMPLATE,
            Error::NotFinite { .. } => WELM_NOT_FINITE,
            Error::Forked => WELM_FORKED,
            Error::Interrupted { .. } => WELM_INTERRUPTED,
            _ => WELM_OTHER,
        };
        Failure::new(status, error.to_string())
    }
}

/// An error with its message. The last argument of functions that can fail is a `welm_error **`. If it is not NULL and
/// the status is an error, a new error is written there, which the caller frees. The old value is neither read nor
/// freed.
///
/// An error never changes, so that any number of threads may read it at once.
pub struct welm_error {
    pub(crate) status: welm_status,
    pub(crate) message: CString,
}

impl welm_error {
    pub(crate) fn new(failure: Failure) -> Box<Self> {
        // A file's name or a token may contain a NUL. For C the message would end there.
        let message = CString::new(failure.message.replace('\0', "\u{FFFD}")).unwrap_or_default();
        Box::new(welm_error { status: failure.status, message })
    }
}
