//! `welm.CancelToken`.

use pyo3::prelude::*;

/// Ends requests from another thread.
///
/// One token may be given to several requests. Cancelling a request is no error: it ends with the finish reason
/// ``"cancelled"`` and the text so far.
///
/// >>> cancel = welm.CancelToken()
/// >>> cancel.cancelled
/// False
/// >>> cancel.cancel()
/// >>> model.generate("床前明月光，", max_tokens=500, cancel=cancel).choices[0].finish_reason
/// 'cancelled'
#[pyclass(frozen, module = "welm", weakref)]
pub(crate) struct CancelToken(pub(crate) welm_core::CancelToken);

#[pymethods]
impl CancelToken {
    #[new]
    fn new() -> Self {
        CancelToken(welm_core::CancelToken::new())
    }

    /// Asks every request that has this token to stop, within one step of the engine.
    fn cancel(&self) {
        self.0.cancel();
    }

    /// Whether :meth:`cancel` was called.
    #[getter]
    fn cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    fn __repr__(&self) -> String {
        let cancelled = if self.0.is_cancelled() { "True" } else { "False" };
        format!("CancelToken(cancelled={cancelled})")
    }
}
