//! Keyword arguments to the core's options, and Python values to prompts.
//!
//! Options are taken as a dict, so that their names are spelled once for all methods that take them, and their
//! defaults and domains stay the core's. Signatures that a reader sees stand beside the methods.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyList, PyMapping, PyString};
use welm_core::{GenerateOptions, LoadOptions, LoadProgress, ProgressFn, Prompt};

use crate::cancel::CancelToken;
use crate::engine::TICK;
use crate::error::{OrRaise, exception, invalid_option};

/// The name and value of one keyword argument.
struct Argument<'a, 'py> {
    name: &'static str,
    value: &'a Bound<'py, PyAny>,
}

impl<'py> Argument<'_, 'py> {
    /// The value as the type that the option has; a `TypeError` names the argument.
    fn get<'a, T>(&'a self) -> PyResult<T>
    where
        T: FromPyObject<'a, 'py>,
    {
        self.value.extract::<T>().map_err(|error| self.named(error.into()))
    }

    fn named(&self, error: PyErr) -> PyErr {
        let py = self.value.py();
        if error.is_instance_of::<PyTypeError>(py) {
            PyTypeError::new_err(format!("argument '{}': {}", self.name, error.value(py)))
        } else {
            error
        }
    }

    /// A number of things.
    fn count<T>(&self) -> PyResult<T>
    where
        T: for<'a> FromPyObject<'a, 'py> + Bounded,
    {
        let py = self.value.py();
        self.value.extract::<T>().map_err(Into::into).map_err(|error: PyErr| {
            if error.is_instance_of::<PyOverflowError>(py) {
                invalid_option(py, self.name, format!("expected 0 to {}, got {}", T::MAX, self.value))
            } else {
                self.named(error)
            }
        })
    }

    /// `None`, or a number of things.
    fn optional_count<T>(&self) -> PyResult<Option<T>>
    where
        T: for<'a> FromPyObject<'a, 'py> + Bounded,
    {
        if self.value.is_none() { Ok(None) } else { self.count().map(Some) }
    }

    /// A value that the core knows by name.
    fn named_value<T: FromStr<Err = welm_core::Error>>(&self) -> PyResult<T> {
        self.get::<PyBackedStr>()?.parse().or_raise(self.value.py())
    }

    /// Numbers of tokens, of a mapping.
    fn by_token(&self) -> PyResult<Vec<(u32, f32)>> {
        let mapping = self.value.cast::<PyMapping>().map_err(|e| self.named(e.into()))?;
        let pair = |item: Bound<'py, PyAny>| {
            let (token, number) = item.extract::<(Bound<'py, PyAny>, Bound<'py, PyAny>)>()?;
            let token = Argument { name: self.name, value: &token }.count()?;
            Ok((token, Argument { name: self.name, value: &number }.get()?))
        };
        mapping.items()?.iter().map(pair).collect()
    }

    /// Seconds, or a `timedelta`.
    fn duration(&self) -> PyResult<Duration> {
        let seconds = match self.value.extract::<f64>() {
            Ok(seconds) => seconds,
            Err(_) if self.value.hasattr("total_seconds")? => {
                self.value.call_method0("total_seconds")?.extract()?
            }
            Err(error) => return Err(self.named(error)),
        };
        if seconds == f64::INFINITY {
            return Ok(Duration::MAX);
        }
        Duration::try_from_secs_f64(seconds).map_err(|_| {
            invalid_option(self.value.py(), self.name, format!("expected 0 seconds or more, got {seconds}"))
        })
    }
}

/// Integer types with their largest value.
trait Bounded {
    const MAX: u64;
}

impl Bounded for usize {
    const MAX: u64 = usize::MAX as u64;
}

impl Bounded for u32 {
    const MAX: u64 = u32::MAX as u64;
}

impl Bounded for u64 {
    const MAX: u64 = u64::MAX;
}

/// Calls `set` for every keyword argument whose name is in `names`; another one is a `TypeError`.
fn each(
    call: &str,
    names: &[&'static str],
    arguments: Option<&Bound<'_, PyDict>>,
    mut set: impl FnMut(&'static str, &Argument<'_, '_>) -> PyResult<()>,
) -> PyResult<()> {
    for (key, value) in arguments.into_iter().flatten() {
        let key = key.extract::<PyBackedStr>()?;
        let Some(name) = names.iter().copied().find(|name| *name == &*key) else {
            let message = format!("{call}() got an unexpected keyword argument '{key}'");
            return Err(PyTypeError::new_err(message));
        };
        set(name, &Argument { name, value: &value })?;
    }
    Ok(())
}

const GENERATE: &[&str] = &[
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "n",
    "echo",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "stop",
    "logprobs",
    "seed",
    "deadline",
    "cancel",
    "parse_special",
    "ignore_eos",
];

/// The options of a request.
pub(crate) fn generate_options(call: &str, given: Option<&Bound<'_, PyDict>>) -> PyResult<GenerateOptions> {
    let mut options = GenerateOptions::default();
    each(call, GENERATE, given, |name, argument| {
        match name {
            "max_tokens" => options.max_tokens = argument.count()?,
            "temperature" => options.temperature = argument.get()?,
            "top_p" => options.top_p = argument.get()?,
            "top_k" => options.top_k = argument.count()?,
            "n" => options.n = argument.count()?,
            "echo" => options.echo = argument.get()?,
            "min_p" => options.min_p = argument.get()?,
            "repetition_penalty" => options.repetition_penalty = argument.get()?,
            "frequency_penalty" => options.frequency_penalty = argument.get()?,
            "presence_penalty" => options.presence_penalty = argument.get()?,
            "logit_bias" if argument.value.is_none() => {}
            "logit_bias" => options.logit_bias = argument.by_token()?,
            "stop" if argument.value.is_none() => {}
            "stop" if argument.value.is_instance_of::<PyString>() => options.stop = vec![argument.get()?],
            "stop" => options.stop = argument.get()?,
            "logprobs" => options.logprobs = argument.optional_count()?,
            "seed" => options.seed = argument.optional_count()?,
            "deadline" if argument.value.is_none() => {}
            "deadline" => options.deadline = Some(argument.duration()?),
            "cancel" if argument.value.is_none() => {}
            "cancel" => {
                let token = argument.value.cast::<CancelToken>().map_err(|e| argument.named(e.into()))?;
                options.cancel = Some(token.get().0.clone());
            }
            "parse_special" => options.parse_special = argument.get()?,
            _ => options.ignore_eos = argument.get()?,
        }
        Ok(())
    })?;
    Ok(options)
}

const LOAD: &[&str] = &[
    "device",
    "dtype",
    "threads",
    "cache_dtype",
    "activations",
    "isa",
    "context_tokens",
    "cache_tokens",
    "chunk_tokens",
    "max_running",
    "queue_limit",
    "prefix_cache",
    "copy_weights",
    "memory_limit",
    "allow_unread_tensors",
];

/// How a model is loaded, but for the progress.
pub(crate) fn load_options(call: &str, given: Option<&Bound<'_, PyDict>>) -> PyResult<LoadOptions> {
    let mut options = LoadOptions::default();
    each(call, LOAD, given, |name, argument| {
        match name {
            "device" => options.device = argument.named_value()?,
            "dtype" => options.dtype = argument.named_value()?,
            "threads" => options.threads = argument.optional_count()?,
            "cache_dtype" => options.cache_dtype = argument.named_value()?,
            "activations" => options.activations = argument.named_value()?,
            "isa" => options.isa = argument.get()?,
            "context_tokens" => options.context_tokens = argument.optional_count()?,
            "cache_tokens" => options.cache_tokens = argument.optional_count()?,
            "chunk_tokens" => options.chunk_tokens = argument.count()?,
            "max_running" => options.max_running = argument.count()?,
            "queue_limit" => options.queue_limit = argument.count()?,
            "prefix_cache" => options.prefix_cache = argument.get()?,
            "copy_weights" => options.copy_weights = argument.get()?,
            "allow_unread_tensors" => options.allow_unread_tensors = argument.get()?,
            _ => options.memory_limit = argument.optional_count()?,
        }
        Ok(())
    })?;
    Ok(options)
}

/// A model's path: the one given, or the small model of this package.
pub(crate) fn model_path(py: Python<'_>, path: Option<PathBuf>) -> PyResult<PathBuf> {
    match path {
        Some(path) => Ok(path),
        None => py.import("welm")?.getattr("NANO")?.extract(),
    }
}

/// Reports of loading go to a Python callable, and to whatever signals wait; what either raises is kept for
/// the caller, and the loading ends.
#[derive(Clone)]
pub(crate) struct Progress {
    call: Option<Arc<Py<PyAny>>>,
    looked: Arc<Mutex<Instant>>,
    raised: Arc<Mutex<Option<PyErr>>>,
}

impl Progress {
    pub(crate) fn new(call: Option<Py<PyAny>>) -> Self {
        Progress {
            call: call.map(Arc::new),
            looked: Arc::new(Mutex::new(Instant::now())),
            raised: Arc::default(),
        }
    }

    /// Whether to go on.
    pub(crate) fn report(&self, progress: LoadProgress) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(|e| e.into_inner());
        if self.call.is_none() && looked.elapsed() < TICK {
            return true;
        }
        *looked = Instant::now();
        let answer = Python::attach(|py| {
            py.check_signals()?;
            let Some(call) = &self.call else { return Ok(true) };
            let answer = call.bind(py).call1((progress.done_bytes, progress.total_bytes))?;
            // Any value but False goes on: a progress bar's update returns what it likes.
            Ok(!answer.is_exact_instance_of::<PyBool>() || answer.is_truthy()?)
        });
        answer.unwrap_or_else(|error| {
            *self.raised.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
            false
        })
    }

    /// For `LoadOptions::progress`.
    pub(crate) fn callback(&self) -> ProgressFn {
        let this = self.clone();
        Arc::new(move |progress| this.report(progress))
    }

    /// The result, or what was raised on the way to it.
    pub(crate) fn finish<T>(&self, py: Python<'_>, result: welm_core::Result<T>) -> PyResult<T> {
        let raised = self.raised.lock().unwrap_or_else(|e| e.into_inner()).take();
        match (result, raised) {
            (Ok(value), None) => Ok(value),
            (_, Some(raised)) => Err(raised),
            (Err(error), None) => Err(exception(py, &error)),
        }
    }
}

/// One prompt, held so that the GIL can be released.
pub(crate) enum OnePrompt {
    Text(PyBackedStr),
    Tokens(Vec<u32>),
}

impl OnePrompt {
    pub(crate) fn as_prompt(&self) -> Prompt<'_> {
        match self {
            OnePrompt::Text(text) => Prompt::Text(text),
            OnePrompt::Tokens(tokens) => Prompt::Tokens(tokens),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for OnePrompt {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if value.is_instance_of::<PyString>() {
            Ok(OnePrompt::Text(value.extract()?))
        } else {
            tokens("prompt", &value).map(OnePrompt::Tokens)
        }
    }
}

/// Token ids: any sequence of integers, but not the bytes of a text.
pub(crate) fn tokens(option: &'static str, value: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let py = value.py();
    let expected = format!("argument '{option}': expected a sequence of token ids");
    if value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyByteArray>() {
        return Err(PyTypeError::new_err(format!("{expected}, got {}", value.get_type().name()?)));
    }
    value.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyOverflowError>(py) {
            invalid_option(py, option, format!("expected tokens of 0 to {}", u32::MAX))
        } else if error.is_instance_of::<PyTypeError>(py) {
            PyTypeError::new_err(format!("{expected}: {}", error.value(py)))
        } else {
            error
        }
    })
}

/// What `generate` takes: one prompt, or several.
pub(crate) enum Prompts {
    One(OnePrompt),
    Many(Vec<OnePrompt>),
}

impl<'py> FromPyObject<'_, 'py> for Prompts {
    type Error = PyErr;

    /// A sequence whose first element is a string or a sequence is a batch; so is an empty list.
    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let is_text = |value: &Bound<'_, PyAny>| value.is_instance_of::<PyString>();
        if is_text(&value) || value.len().is_err() {
            return Ok(Prompts::One(value.extract()?));
        }
        let batch = match value.get_item(0) {
            Ok(first) => is_text(&first) || first.len().is_ok(),
            Err(_) => value.len()? == 0 && value.is_instance_of::<PyList>(),
        };
        if batch { Ok(Prompts::Many(value.extract()?)) } else { Ok(Prompts::One(value.extract()?)) }
    }
}
