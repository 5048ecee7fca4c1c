//! Python interface of the welm engine: `welm._welm`, the part of the package `welm` that is Rust.
//!
//! Nothing is decided here. Arguments become the core's options, results become dataclasses, errors become exceptions.
//! `engine`, `request` and `exit` have what is special to Python: the GIL, signals, `fork`, `asyncio`, and the end of
//! the interpreter.

mod argument;
mod cancel;
mod chat;
mod engine;
mod error;
mod exit;
mod log;
mod model;
mod options;
mod output;
mod prompt;
mod request;
mod score;
mod stream;

/// The Rust part of the package `welm`.
#[pyo3::pymodule]
mod _welm {
    use pyo3::prelude::*;
    use welm_core::{GenerateOptions, LoadOptions};

    use crate::argument::Argument;
    use crate::exit::{detached, enter};
    use crate::options::{Progress, Row, rows};

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
    use crate::score::Scoring;
    #[pymodule_export]
    use crate::stream::Stream;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::exit::start(module.py())?;
        crate::log::start();
        crate::error::start(module)
    }

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "a name of Python's")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// The options of loading, and those of a request, as tables; ``welm._cli.arguments`` says what a row is.
    #[pyfunction]
    fn option_tables(py: Python<'_>) -> PyResult<(Vec<Row<'_>>, Vec<Row<'_>>)> {
        Ok((rows(py, LoadOptions::table())?, rows(py, GenerateOptions::table())?))
    }

    /// Writes an int8 folder from a Hugging Face folder of floats that :class:`Model` takes.
    ///
    /// ``dst`` is a new folder, an empty one, or one that this function wrote before; another folder is an error. A
    /// folder that it wrote before is replaced in one step (Linux): a program that loads it meanwhile gets either the
    /// old model or the new one. Configuration and tokenizer files are copied, too. ``progress`` is called with the
    /// bytes done and the bytes in all; ``False`` from it ends the work with :class:`welm.Cancelled`, and no unfinished
    /// files are left.
    #[pyfunction]
    #[pyo3(signature = (src, dst, /, *, progress = None))]
    fn quantize(
        py: Python<'_>,
        src: &Bound<'_, PyAny>,
        dst: &Bound<'_, PyAny>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let _inside = enter(py);
        let (src, dst) = (Argument::new("src", src).path()?, Argument::new("dst", dst).path()?);
        let progress = Progress::new(progress)?;
        let done = detached(py, || welm_core::quantize(&src, &dst, |p| progress.report(p)));
        progress.finish(py, done)
    }
}
