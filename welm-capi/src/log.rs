//! Sends the engine's log to a callback.
//!
//! Events come from `tracing`, which allows one subscriber, for all of the library and for ever. Ours looks up the
//! callback at each event, and counts the calls that are running. So when `welm_log_set_callback` returns, the previous
//! callback is not running and is never called again, and what it uses can be freed.
//!
//! There is no lock. A callback that waits for the engine would hold it while the engine waits for it, and in a forked
//! child it could stay locked for ever. Without a lock, a thread may still read a callback that was just replaced. So
//! no callback is ever freed: all stay in a list, some forty bytes each.

use std::ffi::{CString, c_char, c_void};
use std::fmt::{Debug, Write};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::time::Duration;

use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Event, Level, LevelFilter, Metadata, Subscriber};
use welm_core::{is_quiet, set_quiet};

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
    /// Errors.
    WELM_LOG_ERROR = 1,
    /// Things that somebody should look at.
    WELM_LOG_WARN = 2,
    /// Rare events, for instance that a model was loaded, and where it runs.
    WELM_LOG_INFO = 3,
    /// Details that help to find an error.
    WELM_LOG_DEBUG = 4,
    /// Everything.
    WELM_LOG_TRACE = 5,
}

/// Takes a message. `target` says where it comes from. `message` is its text, with its values at the end:
/// `model loaded path=...`. Both are UTF-8, NUL-terminated, and valid until the callback returns. It must not throw,
/// and must not `longjmp` out.
///
/// It is called on the thread that logs, perhaps on several threads at once. Messages that are logged on its thread
/// while it runs are dropped, and so are all messages of models that it loads. So it may call other functions of this
/// library, except `welm_log_set_callback`. The thread may be the model's own, when a step has failed or the model
/// ends: a callback must not answer a warning, or a message about an end, with a request to the same model.
pub type welm_log_callback = Option<
    unsafe extern "C" fn(
        data: *mut c_void,
        level: welm_log_level,
        target: *const c_char,
        message: *const c_char,
    ),
>;

/// Sets the callback that gets the log, and replaces the previous one; with NULL, the log goes nowhere. When the
/// function returns, the previous callback is not running and is never called again.
///
/// If the library is linked statically into a Rust program that has set a global `tracing` subscriber, this function
/// fails with `WELM_UNAVAILABLE`, and messages go to that subscriber.
///
/// - ownership: `data` stays the caller's; it has to live until another callback is set.
/// - threads: any, at any time, but not from inside a callback: that gives `WELM_INVALID_ARGUMENT`.
/// - NULL: allowed for `callback`, `data` and `error`.
/// - errors: `WELM_INVALID_ARGUMENT` if `max_level` is no `welm_log_level`; `WELM_UNAVAILABLE`; the general
///   errors.
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
        if is_quiet() {
            let reason = "`callback` cannot be changed from inside a log callback";
            return Err(Failure::new(WELM_INVALID_ARGUMENT, reason));
        }
        if callback.is_some() && !*SUBSCRIBED.get_or_init(subscribe) {
            let reason = "this program has a tracing subscriber already, which gets the log";
            return Err(Failure::new(WELM_UNAVAILABLE, reason));
        }
        let new = callback.map_or(null_mut(), |callback| Sink::keep(callback, data, max_level as u8));
        let before = SINK.swap(new, Ordering::SeqCst);
        tracing_core::callsite::rebuild_interest_cache();
        // SAFETY: NULL, or one of those that are never freed.
        if let Some(before) = unsafe { before.as_ref() } {
            while before.is_running() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// The callback that is set.
static SINK: AtomicPtr<Sink> = AtomicPtr::new(null_mut());
/// All callbacks that were ever set, as a linked list.
static ALL: AtomicPtr<Sink> = AtomicPtr::new(null_mut());
/// Whether our subscriber gets the log.
static SUBSCRIBED: OnceLock<bool> = OnceLock::new();

fn subscribe() -> bool {
    tracing_core::dispatcher::set_global_default(tracing_core::Dispatch::new(Log)).is_ok()
}

struct Sink {
    callback: unsafe extern "C" fn(*mut c_void, welm_log_level, *const c_char, *const c_char),
    data: *mut c_void,
    max_level: u8,
    /// The process id in the upper half, the number of running calls in the lower half. With the id, a forked child
    /// does not count the calls of its parent.
    running: AtomicU64,
    /// The next of [`ALL`].
    next: *mut Sink,
}

impl Sink {
    /// Makes a callback, which is never freed.
    fn keep(
        callback: unsafe extern "C" fn(*mut c_void, welm_log_level, *const c_char, *const c_char),
        data: *mut c_void,
        max_level: u8,
    ) -> *mut Sink {
        let sink = Box::into_raw(Box::new(Sink {
            callback,
            data,
            max_level,
            running: AtomicU64::new(0),
            next: ALL.load(Ordering::Relaxed),
        }));
        // SAFETY: just made, and nobody else's until the exchange succeeds.
        let exchange = |next| unsafe {
            (*sink).next = next;
            ALL.compare_exchange(next, sink, Ordering::AcqRel, Ordering::Relaxed)
        };
        let mut next = ALL.load(Ordering::Relaxed);
        while let Err(now) = exchange(next) {
            next = now;
        }
        sink
    }

    /// The callback that is set. It counts as running until [`Sink::leave`].
    fn enter() -> Option<&'static Sink> {
        loop {
            let now = SINK.load(Ordering::SeqCst);
            // SAFETY: NULL, or one of those that are never freed.
            let sink = unsafe { now.as_ref() }?;
            sink.count(|calls| calls + 1);
            if SINK.load(Ordering::SeqCst) == now {
                return Some(sink);
            }
            sink.leave();
        }
    }

    fn leave(&self) {
        self.count(|calls| calls.saturating_sub(1));
    }

    fn count(&self, change: impl Fn(u64) -> u64) {
        let process = u64::from(std::process::id()) << 32;
        let next = |running: u64| {
            let calls = if running & !LOWER == process { running & LOWER } else { 0 };
            Some(process | change(calls))
        };
        let _ = self.running.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    }

    fn is_running(&self) -> bool {
        let running = self.running.load(Ordering::SeqCst);
        running & !LOWER == u64::from(std::process::id()) << 32 && running & LOWER > 0
    }
}

const LOWER: u64 = 0xFFFF_FFFF;

/// The least important level that the callback gets.
fn max_level() -> u8 {
    // SAFETY: NULL, or one of those that are never freed.
    unsafe { SINK.load(Ordering::Acquire).as_ref() }.map_or(0, |sink| sink.max_level)
}

struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && level_of(metadata.level()) as u8 <= max_level()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match max_level() {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn event(&self, event: &Event<'_>) {
        // Quiet already: inside the callback, and on the threads of models that it loads.
        if set_quiet(true) {
            return;
        }
        let level = level_of(event.metadata().level());
        if let Some(sink) = Sink::enter() {
            // Since `enabled` was asked, another callback may have been set.
            if level as u8 <= sink.max_level {
                let mut line = Line::default();
                event.record(&mut line);
                let (target, message) = (c_text(event.metadata().target()), c_text(&line.text()));
                // SAFETY: the caller gave the function for this use; it does not unwind, as its type's comment asks.
                unsafe { (sink.callback)(sink.data, level, target.as_ptr(), message.as_ptr()) };
            }
            sink.leave();
        }
        set_quiet(false);
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

/// A message, and the values after it.
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
