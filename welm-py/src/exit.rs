//! The end of the interpreter, for threads that are in this library at that time.
//!
//! When Python ends, it does not wait for daemon threads: the next time that one asks for the GIL, CPython up to 3.13
//! ends the thread with `pthread_exit`. That unwinds its stack, and through Rust it cannot: the process aborts.
//! A thread that asks with `PyGILState_Ensure` may find no interpreter at all, and crashes.
//!
//! So no thread may be in Rust code, and have the GIL or ask for it, once the interpreter has begun to end. Threads
//! in that state are counted, and an exit handler lets them finish, and no other one begin. Who comes later waits
//! without the GIL, until the process is gone. A call counts from [`enter`] to its end, but for what it does
//! [`detached`]; calls that neither let go of the GIL nor call Python need not say so.

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

/// Whether the interpreter ends: no thread may become one of those.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Longest wait of the exit handler: a callback of loading may hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// After this long, the interpreter still being there, another exit handler runs that may wait for this very thread.
const OTHER_HANDLERS: Duration = Duration::from_secs(3);

/// The interpreter that this library is in, by the address of its `sys.modules`; there is one of everything here, such
/// as of the classes that results have.
static HOME: Mutex<Option<usize>> = Mutex::new(None);

thread_local! {
    /// Whether this thread is counted.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
    /// Whether it may use the interpreter to the end: it is the one that ends it, or has waited for that in vain.
    static GOES_ON: Cell<bool> = const { Cell::new(false) };
}

fn home() -> MutexGuard<'static, Option<usize>> {
    HOME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Arranges for all this.
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

/// Counts this thread, unless the interpreter ends.
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

/// Counts this thread, which does not have the GIL. If the interpreter ends, it does not come back.
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

/// This thread is in a call. The count ends with the outermost.
pub(crate) struct Inside {
    outermost: bool,
}

/// A call begins that calls Python, or lets go of the GIL.
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

/// `work` without the GIL: what `Python::detach` is, but that it does not ask for the GIL of an interpreter that ends.
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

/// `call` with the GIL, from work that was [`detached`], or from a thread of this library; `None` if the interpreter
/// ends.
pub(crate) fn attached<T>(call: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    let outermost = !COUNTED.get();
    if outermost && !count() {
        return None;
    }
    let _inside = Inside { outermost };
    Some(Python::attach(call))
}
