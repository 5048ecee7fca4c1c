//! Marks threads whose log messages are dropped: those of models that are loaded inside a log callback.
//!
//! A log callback is called when a model was loaded, and when a model ends, on that model's thread. If the callback
//! loads and frees a model, it would be called for that model, too, and so on without end. A subscriber of `tracing`
//! cannot be changed from inside an event. So this is a flag of the thread, which the threads of models inherit.

use std::cell::Cell;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Whether log messages of this thread are dropped.
pub fn is_quiet() -> bool {
    QUIET.get()
}

/// Sets whether log messages of this thread are dropped. Returns the value before.
pub fn set(quiet: bool) -> bool {
    QUIET.replace(quiet)
}
