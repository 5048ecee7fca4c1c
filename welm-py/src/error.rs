//! Converts `welm_core::Error` to an exception of `welm._errors`: the class for this kind of error, the same message,
//! and attributes for the fields that a program may want.

use pyo3::IntoPyObjectExt;
use pyo3::panic::PanicException;
use pyo3::prelude::*;
use welm_core::Error;

/// Converts a result of the core to one with a Python exception.
pub(crate) trait OrRaise<T> {
    /// The value, or the exception.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for welm_core::Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| exception(py, &error))
    }
}

/// The exception for an error.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    build(py, error).unwrap_or_else(|failed| failed)
}

fn build(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    crate::log::flush(py)?;
    let class = match error {
        Error::Io { .. } => "IoError",
        Error::InvalidFile { .. } => "InvalidFile",
        Error::Config { .. } => "ConfigError",
        Error::Tensor { .. } => "TensorError",
        Error::Tokenizer(_) => "TokenizerError",
        Error::ChatTemplate(_) => "ChatTemplateError",
        Error::InvalidOption { .. } => "InvalidOption",
        Error::TooLong { .. } => "TooLong",
        Error::EmptyPrompt => "EmptyPrompt",
        Error::QueueFull { .. } => "QueueFull",
        Error::OutOfMemory { .. } | Error::Allocation { .. } => "OutOfMemory",
        Error::Unavailable { .. } => "Unavailable",
        Error::Device(_) => "DeviceError",
        Error::DeviceLost(_) => "DeviceLost",
        Error::EngineStopped(_) => "EngineStopped",
        Error::LoadCancelled | Error::Interrupted { .. } => "Cancelled",
        Error::NotFinite { .. } => "NotFinite",
        Error::Forked => "ForkError",
        _ => "Error",
    };
    let raised = raised(py, class, &error.to_string())?;
    let set = |name: &str, value: Py<PyAny>| raised.setattr(name, value);
    match error {
        Error::Io { path, .. } | Error::InvalidFile { path, .. } => {
            set("path", path.as_os_str().into_py_any(py)?)?;
        }
        Error::Config { setting, .. } => set("setting", setting.into_py_any(py)?)?,
        Error::Tensor { name, .. } => set("tensor", name.into_py_any(py)?)?,
        Error::InvalidOption { option, .. } => set("option", option.into_py_any(py)?)?,
        Error::TooLong { prompt, requested, limit, what } => {
            set("prompt_tokens", prompt.into_py_any(py)?)?;
            set("requested", requested.into_py_any(py)?)?;
            set("limit", limit.into_py_any(py)?)?;
            set("what", what.into_py_any(py)?)?;
        }
        Error::QueueFull { waiting, limit } => {
            set("waiting", waiting.into_py_any(py)?)?;
            set("limit", limit.into_py_any(py)?)?;
        }
        Error::OutOfMemory { required, weights, cache, scratch, available, fitting_cache_tokens } => {
            set("required", required.into_py_any(py)?)?;
            set("weights", weights.into_py_any(py)?)?;
            set("cache", cache.into_py_any(py)?)?;
            set("scratch", scratch.into_py_any(py)?)?;
            set("available", available.into_py_any(py)?)?;
            set("fitting_cache_tokens", fitting_cache_tokens.into_py_any(py)?)?;
        }
        // For a single allocation only the size is known.
        Error::Allocation { bytes, .. } => {
            set("required", bytes.into_py_any(py)?)?;
            for name in ["weights", "cache", "scratch", "available", "fitting_cache_tokens"] {
                set(name, py.None())?;
            }
        }
        Error::LoadCancelled => set("reason", "cancelled".into_py_any(py)?)?,
        Error::Interrupted { reason } => set("reason", reason.as_str().into_py_any(py)?)?,
        Error::Unavailable { what, .. } => set("what", what.into_py_any(py)?)?,
        Error::NotFinite { position, got, began } => {
            set("position", position.into_py_any(py)?)?;
            set("got", got.into_py_any(py)?)?;
            set("began", began.into_py_any(py)?)?;
        }
        _ => {}
    }
    Ok(PyErr::from_value(raised))
}

/// Makes a panic an error of this package: `welm.InternalError`.
///
/// PyO3 turns a panic in any function, its conversions of arguments included, into its `PanicException`, which is not
/// an `Exception`. Each extension module has a class of its own for this, so we may change its base and its name.
pub(crate) fn start(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let class = py.get_type::<PanicException>();
    class.setattr("__bases__", (py.import("welm._errors")?.getattr("Error")?,))?;
    class.setattr("__name__", "InternalError")?;
    class.setattr("__qualname__", "InternalError")?;
    class.setattr("__module__", "welm")?;
    let doc = "A fault of this package: a panic in its Rust code. The call has ended; the message says where to look.";
    class.setattr("__doc__", doc)?;
    module.add("InternalError", class)
}

/// An exception of `welm._errors` with this message.
fn raised<'py>(py: Python<'py>, class: &str, message: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("welm._errors")?.getattr(class)?.call1((message,))
}

/// The error for using something that the parent process loaded.
pub(crate) fn forked(py: Python<'_>) -> PyErr {
    let message = "this was made before os.fork(), and its engine runs in the parent process only: load the model \
                   in the process that uses it (multiprocessing: start method `spawn` or `forkserver`)";
    raised(py, "ForkError", message).map_or_else(|failed| failed, PyErr::from_value)
}

/// The error for an option whose value the core's types cannot hold.
pub(crate) fn invalid_option(py: Python<'_>, option: &'static str, reason: String) -> PyErr {
    exception(py, &Error::InvalidOption { option, reason })
}
