//! The engine's log, to a callback.
//!
//! Events come from `tracing`, whose subscriber is one for the whole library and for ever. Ours looks up the callback
//! at each event, under a lock that changing it takes as well: when `welm_log_set_callback` returns, the callback
//! before is not running and is never called again, so that what it uses can go.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Event, Level, LevelFilter, Metadata, Subscriber};

use crate::error::welm_status::{WELM_INVALID_ARGUMENT, WELM_UNAVAILABLE};
use crate::error::{Failure, welm_error, welm_status};
use crate::guard::status;
use welm_log_level::*;

/// How important a message is.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum welm_log_level {
    /// Nothing.
    WELM_LOG_OFF = 0,
    /// Faults.
    WELM_LOG_ERROR = 1,
    /// What should be looked at.
    WELM_LOG_WARN = 2,
    /// What happens seldom: a model was loaded, and where it runs.
    WELM_LOG_INFO = 3,
    /// What helps to find a fault.
    WELM_LOG_DEBUG = 4,
    /// Everything.
    WELM_LOG_TRACE = 5,
}

/// Takes a message: where it comes from, and what it says, with its values behind it, `model loaded path=...`. Texts
/// are UTF-8, NUL-terminated, and live until the callback returns. It must not throw, nor `longjmp` out.
///
/// It is called on the thread that logs, also on several at once. What is logged while it runs, on its thread, is
/// dropped, so that it may call other functions of this library, except `welm_log_set_callback`.
pub type welm_log_callback = Option<
    unsafe extern "C" fn(
        data: *mut c_void,
        level: welm_log_level,
        target: *const c_char,
        message: *const c_char,
    ),
>;

/// Sets the one callback that the log goes to, in place of the one before; with NULL, the log goes nowhere. When the
/// function returns, the callback before is not running and is never called again.
///
/// A library that is linked statically into a Rust program that has set a global `tracing` subscriber cannot take its
/// place: that is `WELM_UNAVAILABLE`, and messages go where those of the program go.
///
/// - ownership: `data` stays the caller's; it has to live until another callback is set.
/// - threads: any, at any time, but not from inside a callback, which is `WELM_INVALID_ARGUMENT`.
/// - NULL: `callback`, `data` and `error` may be.
/// - errors: `WELM_INVALID_ARGUMENT` if `max_level` is no `welm_log_level`; `WELM_UNAVAILABLE`; those of any
///   function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_log_set_callback(
    max_level: i32,
    callback: welm_log_callback,
    data: *mut c_void,
    error: *mut *mut welm_error,
) -> welm_status {
    let body = || {
        if !(WELM_LOG_OFF as i32..=WELM_LOG_TRACE as i32).contains(&max_level) {
            let reason = format!("`max_level`: expected 0 to 5, got {max_level}");
            return Err(Failure::new(WELM_INVALID_ARGUMENT, reason));
        }
        if INSIDE.get() {
            let reason = "`callback` cannot be changed from inside a log callback";
            return Err(Failure::new(WELM_INVALID_ARGUMENT, reason));
        }
        let sink = callback.map(|callback| Sink { callback, data, max_level: max_level as u8 });
        if sink.is_some() && !*SUBSCRIBED.get_or_init(subscribe) {
            let reason = "this program has a tracing subscriber already, which gets the log";
            return Err(Failure::new(WELM_UNAVAILABLE, reason));
        }
        {
            let mut current = SINK.write().unwrap_or_else(PoisonError::into_inner);
            MAX_LEVEL.store(sink.as_ref().map_or(0, |s| s.max_level), Ordering::Relaxed);
            *current = sink;
        }
        tracing_core::callsite::rebuild_interest_cache();
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);
static MAX_LEVEL: AtomicU8 = AtomicU8::new(0);
/// Whether the log comes to us.
static SUBSCRIBED: OnceLock<bool> = OnceLock::new();

thread_local! {
    /// Whether this thread is inside the callback.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn subscribe() -> bool {
    tracing_core::dispatcher::set_global_default(tracing_core::Dispatch::new(Log)).is_ok()
}

struct Sink {
    callback: unsafe extern "C" fn(*mut c_void, welm_log_level, *const c_char, *const c_char),
    data: *mut c_void,
    max_level: u8,
}

// SAFETY: the callback's type asks for one that takes calls on any thread, several at once.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && level_of(metadata.level()) as u8 <= MAX_LEVEL.load(Ordering::Relaxed)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match MAX_LEVEL.load(Ordering::Relaxed) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn event(&self, event: &Event<'_>) {
        if INSIDE.replace(true) {
            return;
        }
        let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
        let level = level_of(event.metadata().level());
        // An event that passed `enabled` may meet the callback that was set meanwhile.
        if let Some(sink) = sink.as_ref().filter(|s| level as u8 <= s.max_level) {
            let mut line = Line::default();
            event.record(&mut line);
            let (target, message) = (c_text(event.metadata().target()), c_text(&line.text()));
            // SAFETY: the caller gave the function for this; it does not unwind, as its type's comment asks.
            unsafe { (sink.callback)(sink.data, level, target.as_ptr(), message.as_ptr()) };
        }
        drop(sink);
        INSIDE.set(false);
    }

    // Spans are not followed.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn level_of(level: &Level) -> welm_log_level {
    match *level {
        Level::ERROR => WELM_LOG_ERROR,
        Level::WARN => WELM_LOG_WARN,
        Level::INFO => WELM_LOG_INFO,
        Level::DEBUG => WELM_LOG_DEBUG,
        Level::TRACE => WELM_LOG_TRACE,
    }
}

fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{FFFD}")).unwrap_or_default()
}

/// A message, and the values behind it.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn text(self) -> String {
        self.message + &self.fields
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing into a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.fields, " {}={value}", field.name());
    }
}
