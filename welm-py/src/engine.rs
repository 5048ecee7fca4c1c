//! How the binding keeps models and streams, and how it waits for an engine.
//!
//! Three things are special to Python. The GIL must not be held while a call waits. Python runs signal handlers only
//! between bytecodes, so a call that waits must run them itself. And after `fork` the child has the memory of an engine
//! but not its threads.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use welm_core::{CancelToken, Error, Generation, Result, Stream};

use crate::error::{OrRaise, forked};
use crate::exit::detached;

/// Longest time until a signal is handled.
pub(crate) const TICK: Duration = Duration::from_millis(20);

/// Something that belongs to an engine: a model or a stream.
///
/// Dropping the last one joins the engine's thread, so the GIL is released for that. In a forked child that thread does
/// not exist; there the value is neither used nor dropped.
pub(crate) struct Owned<T: Send> {
    value: Option<T>,
    pid: u32,
}

impl<T: Send> Owned<T> {
    pub(crate) fn new(value: T) -> Self {
        Owned { value: Some(value), pid: std::process::id() }
    }

    /// Whether this is the process that made it.
    pub(crate) fn is_here(&self) -> bool {
        self.pid == std::process::id()
    }

    /// The value, in the process that made it.
    pub(crate) fn get(&self, py: Python<'_>) -> PyResult<&T> {
        self.value.as_ref().filter(|_| self.is_here()).ok_or_else(|| forked(py))
    }
}

impl<T: Send> Drop for Owned<T> {
    fn drop(&mut self) {
        let value = self.value.take();
        if !self.is_here() {
            std::mem::forget(value);
            return;
        }
        let mut value = Some(value);
        // If the interpreter is gone, there is no GIL to release, and `value` is dropped at the end of this function.
        Python::try_attach(|py| {
            let value = value.take();
            detached(py, move || drop(value));
        });
    }
}

/// Waits for all pieces of a stream. A signal handler that raises ends the waiting, and the request.
pub(crate) fn collect(py: Python<'_>, mut stream: Stream) -> PyResult<Generation> {
    let mut generation = stream.generation();
    // The GIL is asked for once a tick, not once a piece: another thread may hold it for milliseconds.
    let mut wait_a_tick = || -> Poll<Result<()>> {
        let end = Instant::now() + TICK;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match stream.next_timeout(left) {
                Poll::Ready(Some(Ok(piece))) => generation.push(piece),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
            if left.is_zero() {
                return Poll::Pending;
            }
        }
    };
    loop {
        match detached(py, &mut wait_a_tick) {
            Poll::Ready(done) => {
                done.or_raise(py)?;
                return Ok(generation);
            }
            Poll::Pending => py.check_signals()?,
        }
    }
}

/// Runs work of the core on another thread, and waits for it. A signal handler that raises ends the waiting and sets
/// the token, which the work checks now and then. The caller's token, if there is one, sets it, too.
pub(crate) fn wait_aside<T: Send + 'static>(
    py: Python<'_>,
    cancel: Option<&CancelToken>,
    work: impl FnOnce(&CancelToken) -> Result<T> + Send + 'static,
) -> PyResult<T> {
    let (done, mut result) = channel();
    let stop = cancel.map_or_else(CancelToken::new, CancelToken::child);
    let stopped = stop.clone();
    let worker = thread::Builder::new().name("welm-wait".into()).spawn(move || {
        let _ = done.send(work(&stopped)); // fails if the waiting has ended
    });
    let worker = worker
        .map_err(|e| Error::Unavailable { what: "thread".into(), reason: e.to_string() })
        .or_raise(py)?;
    loop {
        let result = &mut result;
        match detached(py, move || result.recv_timeout(TICK)) {
            Ok(value) => return value.or_raise(py),
            Err(RecvTimeoutError::Timeout) => py.check_signals().inspect_err(|_| stop.cancel())?,
            Err(RecvTimeoutError::Disconnected) => {
                let _ = worker.join();
                let error = Error::EngineStopped("a call panicked".into());
                return Err(crate::error::exception(py, &error));
            }
        }
    }
}
