//! `welm.Stream`: pieces of a request, one after another.

use std::sync::{Mutex, MutexGuard};
use std::task::Poll;

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use welm_core as core;

use crate::engine::{Owned, TICK};
use crate::error::OrRaise;
use crate::exit::{detached, enter};
use crate::output;

/// The pieces of a request, which :meth:`Model.stream` returns.
///
/// The texts of one sequence's pieces, one after another, are its final text. None ends inside a character, and none
/// has any part of the stop string that ended the sequence. Leaving a ``with`` block, or deleting the stream, cancels
/// the request.
///
/// >>> with model.stream("床前明月光，", max_tokens=20, temperature=0) as stream:
/// ...     text = "".join(piece.text for piece in stream)
/// >>> text == model.generate("床前明月光，", max_tokens=20, temperature=0).text
/// True
#[pyclass(frozen, module = "welm", weakref)]
pub(crate) struct Stream {
    model: Owned<core::Model>,
    pieces: Owned<Mutex<core::Stream>>,
    /// Cancels the request, also while another thread waits for a piece and so has `pieces`.
    canceller: Box<dyn Fn() + Send + Sync>,
    seed: u64,
    prompt_tokens: usize,
}

fn lock(pieces: &Mutex<core::Stream>) -> MutexGuard<'_, core::Stream> {
    pieces.lock().unwrap_or_else(|e| e.into_inner())
}

impl Stream {
    pub(crate) fn new(model: core::Model, pieces: core::Stream) -> Self {
        let (seed, prompt_tokens) = (pieces.seed(), pieces.prompt_tokens());
        let canceller = Box::new(pieces.canceller());
        let (model, pieces) = (Owned::new(model), Owned::new(Mutex::new(pieces)));
        Stream { model, pieces, canceller, seed, prompt_tokens }
    }
}

#[pymethods]
impl Stream {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let _inside = enter(py);
        let (model, pieces) = (self.model.get(py)?, self.pieces.get(py)?);
        loop {
            match detached(py, || lock(pieces).next_timeout(TICK)) {
                Poll::Ready(None) => return Ok(None),
                Poll::Ready(Some(piece)) => {
                    return output::piece(py, model, &piece.or_raise(py)?).map(Some);
                }
                Poll::Pending => py.check_signals().inspect_err(|_| (self.canceller)())?,
            }
        }
    }

    /// Ends the request. Pieces that are already generated still come, and then the last ones, with the finish reason
    /// ``"cancelled"``. Any thread may call this.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = enter(py);
        self.pieces.get(py)?; // not in a forked child
        detached(py, || (self.canceller)());
        Ok(())
    }

    /// The seed that is used; the same request with this seed gives the same text.
    #[getter]
    fn seed(&self) -> u64 {
        self.seed
    }

    /// Tokens of the prompt.
    #[getter]
    fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.cancel(py)
    }

    fn __repr__(&self) -> String {
        format!("Stream(seed={}, prompt_tokens={})", self.seed, self.prompt_tokens)
    }
}
