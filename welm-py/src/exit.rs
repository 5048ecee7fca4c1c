//! Keeps threads in this library from crashing when the interpreter ends.
//!
//! When Python ends, it does not wait for daemon threads. The next time that such a thread asks for the GIL, CPython up
//! to 3.13 ends it with `pthread_exit`. That unwinds its stack, which is not possible through Rust: the process aborts.
//! A thread that asks with `PyGILState_Ensure` may find no interpreter at all, and crashes.
//!
//! So once the interpreter begins to end, no thread in Rust code may have the GIL or ask for it. Threads that do are
//! counted. An exit handler waits until they have finished, and lets no new ones begin. Threads that come later wait
//! without the GIL until the process ends. A call is counted from [`enter`] to its end, except while it is
//! [`detached`]. Calls that neither release the GIL nor call Python need not be counted.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

/// Threads that have the GIL in a call, or ask for it.
static INSIDE: AtomicUsize = AtomicUsize::new(0);

/// Whether the interpreter is ending: no more threads may be counted.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Longest wait of the exit handler. There is a limit, because a progress callback may hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// If the interpreter still exists after this time, another exit handler runs, which may be waiting for this very
/// thread.
const OTHER_HANDLERS: Duration = Duration::from_secs(3);

/// The interpreter that loaded this library, as the address of its `sys.modules`. There can be only one, because
/// statics here, such as the classes of results, belong to one interpreter.
static HOME: Mutex<Option<usize>> = Mutex::new(None);

thread_local! {
    /// Whether this thread is counted.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread may use the interpreter although it is ending: it runs the exit handlers, or has waited for
    /// `OTHER_HANDLERS`.
    static GOES_ON: Cell<bool> = const { Cell::new(false) };
}

fn home() -> MutexGuard<'static, Option<usize>> {
    HOME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers the handlers for the interpreter's end and for `fork`.
pub(crate) fn start(py: Python<'_>) -> PyResult<()> {
    let here = py.import("sys")?.getattr("modules")?.as_ptr() as usize;
    if *home().get_or_insert(here) != here {
        let reason = "welm is loaded in another interpreter of this process; it can be in one only";
        return Err(PyImportError::new_err(reason));
    }
    ENDING.store(false, Ordering::SeqCst);
    let handler = PyCFunction::new_closure(py, None, None, |args, _| end(args.py()))?;
    py.import("atexit")?.call_method1("register", (handler,))?;
    // The other threads that were counted do not exist in a child.
    let forked =
        PyCFunction::new_closure(py, None, None, |_: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| {
            INSIDE.store(COUNTED.get().into(), Ordering::SeqCst);
        })?;
    let options = PyDict::new(py);
    options.set_item("after_in_child", forked)?;
    py.import("os")?.call_method("register_at_fork", (), Some(&options))?;
    Ok(())
}

/// The exit handler.
fn end(py: Python<'_>) {
    GOES_ON.set(true);
    *home() = None;
    ENDING.store(true, Ordering::SeqCst);
    let (own, until) = (COUNTED.get().into(), Instant::now() + PATIENCE);
    py.detach(|| {
        while INSIDE.load(Ordering::SeqCst) > own && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Counts this thread, unless the interpreter is ending.
fn count() -> bool {
    INSIDE.fetch_add(1, Ordering::SeqCst);
    let may = !ENDING.load(Ordering::SeqCst) || GOES_ON.get();
    if may {
        COUNTED.set(true);
    } else {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
    may
}

fn uncount() {
    COUNTED.set(false);
    INSIDE.fetch_sub(1, Ordering::SeqCst);
}

/// Counts this thread, which does not have the GIL. If the interpreter ends, this does not return.
fn count_or_wait() {
    if count() {
        return;
    }
    thread::sleep(OTHER_HANDLERS);
    if Python::try_attach(|_| ()).is_none() {
        loop {
            thread::park();
        }
    }
    GOES_ON.set(true);
    INSIDE.fetch_add(1, Ordering::SeqCst);
    COUNTED.set(true);
}

/// While this value exists, this thread is counted. Calls may be nested; the outermost one ends the count.
pub(crate) struct Inside {
    outermost: bool,
}

/// To be called at the beginning of a call that calls Python or releases the GIL.
pub(crate) fn enter(py: Python<'_>) -> Inside {
    let outermost = !COUNTED.get();
    if outermost && !count() {
        py.detach(count_or_wait);
    }
    Inside { outermost }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if self.outermost {
            uncount();
        }
    }
}

/// Runs `work` without the GIL, as `Python::detach` does, but does not ask for the GIL again if the interpreter is
/// ending.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    /// Counts again also if the work panics.
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            count_or_wait();
        }
    }
    let counted = COUNTED.get();
    if counted {
        uncount();
    }
    let _inside = Inside { outermost: !counted };
    py.detach(|| {
        let _back = Back;
        work()
    })
}

/// Runs `call` with the GIL, from work that was [`detached`], or from a thread of this library; `None` if the
/// interpreter is ending.
pub(crate) fn attached<T>(call: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    let outermost = !COUNTED.get();
    if outermost && !count() {
        return None;
    }
    let _inside = Inside { outermost };
    Some(Python::attach(call))
}
