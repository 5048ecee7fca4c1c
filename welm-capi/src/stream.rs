//! Answers that the caller reads piece by piece.

use std::ffi::c_char;
use std::sync::{Mutex, TryLockError};
use std::task::Poll;
use std::time::Duration;

use welm_core::{Model, Piece, Prompt, Result, Stream};

use crate::error::welm_status::{WELM_END, WELM_INVALID_ARGUMENT, WELM_PENDING};
use crate::error::{Failure, welm_error, welm_status};
use crate::guard::{free, status, value};
use crate::list::{TokenList, welm_finish_reason, welm_token};
use crate::model::welm_model;
use crate::request::{welm_generate_options, welm_prompt};
use crate::sized;
use crate::text::Text;

/// A piece of a stream.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_piece {
    /// Which of the `n` sequences it belongs to, from 0.
    pub index: usize,
    /// The next part of the text, in UTF-8, with a NUL after it. It may be empty while a character is incomplete, or
    /// while the text could be the beginning of a stop string.
    pub text: *const c_char,
    /// Bytes of the text.
    pub text_len: usize,
    /// Tokens generated since the last piece; with `echo`, the first piece has the prompt's.
    pub tokens: *const welm_token,
    /// Number of them.
    pub n_tokens: usize,
    /// On the last piece of a sequence: why it ended. Otherwise `WELM_FINISH_NONE`.
    pub finish_reason: welm_finish_reason,
    /// On the last piece: tokens generated, the end token not counted.
    pub completion_tokens: usize,
    /// On the last piece: prompt tokens that were found in the prefix cache.
    pub cached_tokens: usize,
    /// On the last piece: the token that ended the sequence, if `has_end_token`; see `welm_choice`.
    pub end_token: u32,
    /// Whether such a token ended it.
    pub has_end_token: bool,
}

/// A piece with what it points to.
pub(crate) struct PieceBox {
    piece: welm_piece,
    _text: Text,
    _tokens: TokenList,
}

impl PieceBox {
    pub(crate) fn new(piece: Piece) -> Box<Self> {
        let (text, tokens) = (Text::new(piece.text), TokenList::new(piece.tokens));
        let reason = piece.finish.map_or(welm_finish_reason::WELM_FINISH_NONE, |f| f.reason.into());
        let end_token = piece.finish.and_then(|f| f.end_token);
        let piece = welm_piece {
            index: piece.index,
            text: text.as_ptr(),
            text_len: text.len(),
            tokens: tokens.as_ptr(),
            n_tokens: tokens.len(),
            finish_reason: reason,
            completion_tokens: piece.finish.map_or(0, |f| f.completion_tokens),
            cached_tokens: piece.finish.map_or(0, |f| f.cached_tokens),
            end_token: end_token.unwrap_or(0),
            has_end_token: end_token.is_some(),
        };
        Box::new(PieceBox { piece, _text: text, _tokens: tokens })
    }

    pub(crate) fn as_ptr(&self) -> *const welm_piece {
        &self.piece
    }
}

/// An answer that is being generated. One thread at a time may ask for its pieces; any thread may cancel it meanwhile.
pub struct welm_stream {
    pull: Mutex<Pull>,
    cancel: Box<dyn Fn() + Send + Sync>,
    seed: u64,
    prompt_tokens: usize,
}

struct Pull {
    stream: Stream,
    /// The last piece, which the caller reads.
    piece: Option<Box<PieceBox>>,
}

impl welm_stream {
    pub(crate) fn new(stream: Stream) -> *mut Self {
        let (seed, prompt_tokens) = (stream.seed(), stream.prompt_tokens());
        let cancel = Box::new(stream.canceller());
        let pull = Mutex::new(Pull { stream, piece: None });
        Box::into_raw(Box::new(welm_stream { pull, cancel, seed, prompt_tokens }))
    }
}

/// As `welm_model_generate`, but the caller asks for one piece after another. Pieces that it has not asked for yet wait
/// in memory.
///
/// - ownership: `*stream` is the caller's, to be freed with `welm_stream_free`. Nothing of prompt and options is
///   kept. `model` may be freed before the stream.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model` and `stream`; allowed for `options`, for the defaults; allowed for `error`.
/// - encoding: prompt and stop strings are UTF-8.
/// - errors: as `welm_model_generate`; those of the engine come from `welm_stream_next`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_stream(
    model: *const welm_model,
    prompt: welm_prompt,
    options: *const welm_generate_options,
    stream: *mut *mut welm_stream,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle, prompt, options and output are the caller's, as the comment asks.
    let body = || unsafe {
        let model = welm_model::get(model)?;
        start(model, || prompt.to_core(), options, stream)
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// Writes the stream of the answer to a prompt. The prompt is read after the options.
///
/// # Safety
/// `options` and `stream` are NULL or the caller's.
pub(crate) unsafe fn start<'p, P: Into<Prompt<'p>>>(
    model: &Model,
    prompt: impl FnOnce() -> std::result::Result<P, Failure>,
    options: *const welm_generate_options,
    stream: *mut *mut welm_stream,
) -> std::result::Result<(), Failure> {
    // SAFETY: by this function's contract.
    let options = unsafe { sized::read("options", options, Default::default())?.to_core()? };
    Failure::unless_null("stream", stream)?;
    let answer = model.stream(prompt()?, &options)?;
    // SAFETY: not NULL; the caller's.
    unsafe { stream.write(welm_stream::new(answer)) };
    Ok(())
}

/// Waits for the next piece. `WELM_END` means that all sequences have ended; then nothing is written, and it is no
/// error.
///
/// The texts of one sequence's pieces, one after another, are its final text. None ends inside a character, and none
/// has any part of the stop string that ended the sequence.
///
/// - ownership: `*piece` belongs to `stream`; valid until the next piece or `welm_stream_free`.
/// - threads: one at a time on one stream; a second one is refused with `WELM_INVALID_ARGUMENT`.
/// - NULL: not allowed for `stream` and `piece`; allowed for `error`.
/// - encoding: its text is UTF-8: `text_len` bytes, then a NUL.
/// - errors: `WELM_NOT_FINITE`, `WELM_DEVICE`, `WELM_DEVICE_LOST`, `WELM_ENGINE_STOPPED`, `WELM_OUT_OF_MEMORY`, and with
///   `guard_mapped_files` `WELM_INVALID_FILE` for faults, after which the stream has ended; the general errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_stream_next(
    stream: *const welm_stream,
    piece: *mut *const welm_piece,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: by the function's contract.
    unsafe { pull(stream, piece, error, |stream| Poll::Ready(stream.next())) }
}

/// As `welm_stream_next`, but waits no longer than `timeout_ms` milliseconds. `WELM_PENDING` means that no piece came;
/// then nothing is written, and it is no error. So a thread can look at other things meanwhile: whether a client has
/// hung up, or at another stream.
///
/// - ownership: `*piece` belongs to `stream`, as that of `welm_stream_next`.
/// - threads: one at a time on one stream, in either of these two functions.
/// - NULL: not allowed for `stream` and `piece`; allowed for `error`.
/// - encoding: its text is UTF-8: `text_len` bytes, then a NUL.
/// - errors: as `welm_stream_next`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_stream_next_timeout(
    stream: *const welm_stream,
    timeout_ms: u64,
    piece: *mut *const welm_piece,
    error: *mut *mut welm_error,
) -> welm_status {
    let timeout = Duration::from_millis(timeout_ms);
    // SAFETY: by the function's contract.
    unsafe { pull(stream, piece, error, |stream| stream.next_timeout(timeout)) }
}

/// # Safety
/// `stream` is NULL or was not freed; `piece` and `error` are NULL or the caller's.
unsafe fn pull(
    stream: *const welm_stream,
    piece: *mut *const welm_piece,
    error: *mut *mut welm_error,
    wait: impl FnOnce(&mut Stream) -> Poll<Option<Result<Piece>>>,
) -> welm_status {
    let body = || {
        // SAFETY: by this function's contract.
        let stream = unsafe { stream.as_ref() }.ok_or_else(|| Failure::null("stream"))?;
        Failure::unless_null("piece", piece)?;
        let mut pull = match stream.pull.try_lock() {
            Ok(pull) => pull,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let reason = "`stream`: another thread waits for its next piece";
                return Err(Failure::new(WELM_INVALID_ARGUMENT, reason));
            }
        };
        let next = match wait(&mut pull.stream) {
            Poll::Ready(Some(next)) => PieceBox::new(next?),
            Poll::Ready(None) => return Err(Failure::no_piece(WELM_END)),
            Poll::Pending => return Err(Failure::no_piece(WELM_PENDING)),
        };
        // SAFETY: not NULL; the caller's.
        unsafe { piece.write(next.as_ptr()) };
        pull.piece = Some(next);
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// Ends the request. Pieces that are already generated still come, then the last ones, with `WELM_FINISH_CANCELLED`.
///
/// - ownership: nothing changes; the stream is still to be freed.
/// - threads: any number at once on one stream, also while another waits in `welm_stream_next`.
/// - NULL: does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_stream_cancel(stream: *const welm_stream) {
    value((), || {
        // SAFETY: NULL, or a stream that was not freed, by the function's contract.
        if let Some(stream) = unsafe { stream.as_ref() } {
            (stream.cancel)();
        }
    });
}

/// The seed that is used; the same request with this seed gives the same bits.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one stream.
/// - NULL: 0 for a NULL `stream`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_stream_seed(stream: *const welm_stream) -> u64 {
    // SAFETY: NULL, or a stream that was not freed, by the function's contract.
    value(0, || unsafe { stream.as_ref() }.map_or(0, |s| s.seed))
}

/// Tokens of the prompt.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one stream.
/// - NULL: 0 for a NULL `stream`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_stream_prompt_tokens(stream: *const welm_stream) -> usize {
    // SAFETY: NULL, or a stream that was not freed, by the function's contract.
    value(0, || unsafe { stream.as_ref() }.map_or(0, |s| s.prompt_tokens))
}

/// Frees a stream, and ends its request if that is still running.
///
/// - ownership: takes `stream`, and frees its last piece, too.
/// - threads: once, when no other call with this stream is running.
/// - NULL: does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_stream_free(stream: *mut welm_stream) {
    // SAFETY: NULL, or a box of this library that the caller gives back.
    unsafe { free(stream) }
}

#[cfg(test)]
mod tests {
    use std::ptr::{null, null_mut};

    use super::*;
    use crate::error::welm_status::{WELM_INVALID_ARGUMENT, WELM_OK};
    use crate::error::{welm_error_free, welm_error_message};
    use crate::model::welm_model_free;
    use crate::request::welm_prompt_tokens;

    #[test]
    fn a_second_reader_is_refused() {
        let nano = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/welm-nano");
        let model = welm_model::new(welm_core::Model::load(nano, &Default::default()).unwrap());
        let (mut stream, mut piece, mut error) = (null_mut(), null(), null_mut());
        // SAFETY: handles are freed once, at the end; outputs are local variables.
        unsafe {
            let prompt = welm_prompt_tokens(null(), 0);
            assert_eq!(welm_model_stream(model, prompt, null(), &mut stream, null_mut()), WELM_OK);
            let reader = (*stream).pull.lock();
            assert_eq!(welm_stream_next(stream, &mut piece, &mut error), WELM_INVALID_ARGUMENT);
            assert!(piece.is_null());
            let message = std::ffi::CStr::from_ptr(welm_error_message(error));
            assert_eq!(message, c"`stream`: another thread waits for its next piece");
            drop(reader);
            let mut status = WELM_PENDING;
            while status == WELM_PENDING {
                status = welm_stream_next_timeout(stream, 1, &mut piece, &mut error);
            }
            assert_eq!(status, WELM_OK);
            assert!((*piece).n_tokens <= 1);
            welm_error_free(error);
            welm_stream_free(stream);
            welm_model_free(model);
        }
    }
}
