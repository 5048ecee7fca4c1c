//! The engine's log, to a callback.
//!
//! Events come from `tracing`, whose subscriber is one for the whole library and for ever. Ours looks up the callback
//! at each event, and counts who is inside: when `welm_log_set_callback` returns, the callback before is not running and
//! is never called again, so that what it uses can go.
//!
//! There is no lock, which a callback that waits for the engine would hold against it, and a forked child for ever. So
//! callbacks that were set stay in a list, some forty bytes each: who has just looked one up may still look at it.

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

/// Takes a message: where it comes from, and what it says, with its values after it, `model loaded path=...`. Texts
/// are UTF-8, NUL-terminated, and live until the callback returns. It must not throw, nor `longjmp` out.
///
/// It is called on the thread that logs, also on several at once. What is logged while it runs, on its thread, is
/// dropped, and so is what models that it loads log as long as they live. So it may call other functions of this library,
/// except `welm_log_set_callback`. That thread may be the model's own, when a step has failed or the model ends: what is
/// logged as a warning or about an end must not be answered by a request to the same model.
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

/// The callback now.
static SINK: AtomicPtr<Sink> = AtomicPtr::new(null_mut());
/// All that there were.
static ALL: AtomicPtr<Sink> = AtomicPtr::new(null_mut());
/// Whether the log comes to us.
static SUBSCRIBED: OnceLock<bool> = OnceLock::new();

fn subscribe() -> bool {
    tracing_core::dispatcher::set_global_default(tracing_core::Dispatch::new(Log)).is_ok()
}

struct Sink {
    callback: unsafe extern "C" fn(*mut c_void, welm_log_level, *const c_char, *const c_char),
    data: *mut c_void,
    max_level: u8,
    /// Process in the upper half, calls under way in the lower: those of the parent are not in a forked child.
    running: AtomicU64,
    /// The next of [`ALL`].
    next: *mut Sink,
}

impl Sink {
    /// A new one, for ever.
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

    /// The callback now, which does not count as ended until [`Sink::leave`].
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

/// The least important level that anybody listens to.
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
        // Inside the callback, and on the threads of models that it loads.
        if set_quiet(true) {
            return;
        }
        let level = level_of(event.metadata().level());
        if let Some(sink) = Sink::enter() {
            // An event that passed `enabled` may meet the callback that was set meanwhile.
            if level as u8 <= sink.max_level {
                let mut line = Line::default();
                event.record(&mut line);
                let (target, message) = (c_text(event.metadata().target()), c_text(&line.text()));
                // SAFETY: the caller gave the function for this; it does not unwind, as its type's comment asks.
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
