//! Passes the engine's log to Python's `logging`, to the logger `welm`.
//!
//! Events are kept until a call that has the GIL passes them on, for instance at the end of loading and with an error.
//! So the engine's thread never waits for Python, and never calls into an interpreter that is ending.

use std::collections::VecDeque;
use std::fmt::{Debug, Write};
use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Most events that are kept. A device that fails in every step makes many, and these are enough.
const KEPT: usize = 100;

static EVENTS: Mutex<VecDeque<(Level, String)>> = Mutex::new(VecDeque::new());

struct Log;

/// Starts to keep events. If this library's copy of `tracing` has another subscriber already, that one stays.
pub(crate) fn start() {
    let _ = tracing::subscriber::set_global_default(Log);
}

/// Passes on the events that were kept.
pub(crate) fn flush(py: Python<'_>) -> PyResult<()> {
    // If another thread has the lock, the events stay. In a forked child that thread may not exist, so we must not
    // wait.
    let Ok(events) = EVENTS.try_lock().map(|mut events| std::mem::take(&mut *events)) else { return Ok(()) };
    for (level, message) in events {
        let urgent = level <= Level::WARN;
        // A program that has not imported logging does not want information. Importing it would add a third to the time
        // of this package's import.
        if !urgent && !py.import("sys")?.getattr("modules")?.cast::<PyDict>()?.contains("logging")? {
            continue;
        }
        let number = match level {
            Level::ERROR => 40,
            Level::WARN => 30,
            _ => 20,
        };
        let logger = py.import("logging")?.call_method1("getLogger", ("welm",))?;
        logger.call_method1("log", (number, "%s", message))?;
    }
    Ok(())
}

/// The message, and after it the values, `name=value`.
#[derive(Default)]
struct Text {
    message: String,
    values: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.values, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.values, " {}={value}", field.name());
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= &Level::INFO
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        if let Ok(mut events) = EVENTS.try_lock() {
            if events.len() == KEPT {
                events.pop_front();
            }
            events.push_back((*event.metadata().level(), text.message + &text.values));
        }
    }

    // The engine has no spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
