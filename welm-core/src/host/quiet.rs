//! Threads whose log nobody wants: those of models that are loaded inside a log callback.
//!
//! Such a callback is called when a model was loaded, and when one ends, on the model's own thread. If it loads a model
//! and frees it, it would be called about that one, and so on without end. A subscriber of `tracing` cannot be changed
//! from inside an event, so this is a flag of the thread, which the threads of models take over.

use std::cell::Cell;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Whether what this thread logs is to be dropped.
pub fn is_quiet() -> bool {
    QUIET.get()
}

/// Says so of this thread; gives what was before.
pub fn set(quiet: bool) -> bool {
    QUIET.replace(quiet)
}
