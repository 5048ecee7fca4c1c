//! Python interface of the welm engine: `welm._welm`, the part of the package `welm` that is Rust.
//!
//! Nothing is decided here. Arguments become the core's options, results become dataclasses, errors become
//! exceptions; what is Python's own, the GIL, signals, `fork` and `asyncio`, is in `engine` and `request`.

mod cancel;
mod chat;
mod engine;
mod error;
mod log;
mod model;
mod options;
mod output;
mod request;
mod stream;

/// The Rust part of the package `welm`.
#[pyo3::pymodule]
mod _welm {
    use std::path::PathBuf;

    use pyo3::prelude::*;

    use crate::options::Progress;

    #[pymodule_export]
    use crate::cancel::CancelToken;
    #[pymodule_export]
    use crate::model::Model;
    #[pymodule_export]
    use crate::model::Submit;
    #[pymodule_export]
    use crate::output::Histogram;
    #[pymodule_export]
    use crate::request::Request;
    #[pymodule_export]
    use crate::request::Selector;
    #[pymodule_export]
    use crate::stream::Stream;

    #[pymodule_init]
    fn init() {
        crate::log::start();
    }

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "a name of Python's")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Writes an int8 folder from any Hugging Face folder that :class:`Model` takes.
    ///
    /// ``dst`` is made if need be; configuration and tokenizer files are copied beside the weights. ``progress`` is
    /// called with the bytes done and in all; ``False`` ends it with :class:`welm.Cancelled`. An unfinished file is
    /// not left behind.
    #[pyfunction]
    #[pyo3(signature = (src, dst, /, *, progress = None))]
    fn quantize(py: Python<'_>, src: PathBuf, dst: PathBuf, progress: Option<Py<PyAny>>) -> PyResult<()> {
        let progress = Progress::new(progress);
        let done = py.detach(|| welm_core::quantize(&src, &dst, |p| progress.report(p)));
        progress.finish(py, done)
    }
}
