//! Keyword arguments to the core's options.
//!
//! Options are taken as a dict. So their names are written once for all methods that take them, and their defaults and
//! allowed values stay in the core. The signatures that users see are at the methods; a test of the core
//! (`welm-core/tests/options.rs`) writes them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple};
use welm_core::{Domain, GenerateOptions, LoadOptions, LoadProgress, OptionInfo, ProgressFn, ScoreOptions};

use crate::argument::Argument;
use crate::cancel::CancelToken;
use crate::engine::TICK;
use crate::error::exception;
use crate::exit;

/// Calls `set` for every keyword argument. `set` returns whether there is an option of that name; if not, the call
/// fails with a `TypeError`.
fn each(
    call: &str,
    table: &[OptionInfo],
    arguments: Option<&Bound<'_, PyDict>>,
    mut set: impl FnMut(&str, Argument<'_, '_>) -> PyResult<bool>,
) -> PyResult<()> {
    for (key, value) in arguments.into_iter().flatten() {
        let option = table.iter().find(|option| key.eq(option.name).unwrap_or(false));
        if !option.map_or(Ok(false), |option| set(option.name, Argument::new(option.name, &value)))? {
            let message =
                format!("{call}() got an unexpected keyword argument {}", key.repr()?.to_string_lossy());
            return Err(PyTypeError::new_err(message));
        }
    }
    Ok(())
}

/// `None`, or a token.
fn cancel(argument: Argument<'_, '_>) -> PyResult<Option<welm_core::CancelToken>> {
    if argument.value.is_none() {
        return Ok(None);
    }
    let token = argument.value.cast::<CancelToken>();
    Ok(Some(token.map_err(|_| argument.not("a welm.CancelToken"))?.get().0.clone()))
}

/// How texts are scored.
pub(crate) fn score_options(call: &str, given: Option<&Bound<'_, PyDict>>) -> PyResult<ScoreOptions> {
    let mut options = ScoreOptions::default();
    each(call, &ScoreOptions::table(), given, |name, argument| {
        match name {
            "deadline" => options.deadline = argument.duration()?,
            "cancel" => options.cancel = cancel(argument)?,
            "logprobs" => options.logprobs = argument.count()?,
            "cache_salt" if argument.value.is_none() => {}
            "cache_salt" => options.cache_salt = Some(argument.text()?.to_string()),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(options)
}

/// The options of a request.
pub(crate) fn generate_options(call: &str, given: Option<&Bound<'_, PyDict>>) -> PyResult<GenerateOptions> {
    let mut options = GenerateOptions::default();
    each(call, &GenerateOptions::table(), given, |name, argument| {
        match name {
            "max_tokens" => options.max_tokens = argument.count()?,
            "temperature" => options.temperature = argument.number()?,
            "top_p" => options.top_p = argument.number()?,
            "top_k" => options.top_k = argument.count()?,
            "n" => options.n = argument.count()?,
            "echo" => options.echo = argument.truth()?,
            "min_p" => options.min_p = argument.number()?,
            "repetition_penalty" => options.repetition_penalty = argument.number()?,
            "frequency_penalty" => options.frequency_penalty = argument.number()?,
            "presence_penalty" => options.presence_penalty = argument.number()?,
            "logit_bias" | "stop" | "stop_token_ids" | "cache_salt" if argument.value.is_none() => {}
            "logit_bias" => options.logit_bias = argument.by_token()?,
            "stop" if argument.is_text() => options.stop = vec![argument.text()?.to_string()],
            "stop" => options.stop = argument.texts("str or a sequence of str", GenerateOptions::MAX_STOP)?,
            "logprobs" => options.logprobs = argument.optional_count()?,
            "seed" => options.seed = argument.optional_count()?,
            "deadline" => options.deadline = argument.duration()?,
            "cancel" => options.cancel = cancel(argument)?,
            "parse_special" => options.parse_special = argument.truth()?,
            "ignore_eos" => options.ignore_eos = argument.truth()?,
            "stop_token_ids" => {
                let ids = argument.tokens("a sequence of token ids", GenerateOptions::MAX_STOP)?;
                options.stop_token_ids = argument.all(ids, GenerateOptions::MAX_STOP, "tokens")?;
            }
            "cache_salt" => options.cache_salt = Some(argument.text()?.to_string()),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(options)
}

/// The options of loading, without `progress`.
pub(crate) fn load_options(call: &str, given: Option<&Bound<'_, PyDict>>) -> PyResult<LoadOptions> {
    let mut options = LoadOptions::default();
    each(call, &LoadOptions::table(), given, |name, argument| {
        match name {
            "device" => options.device = argument.named_value()?,
            "dtype" => options.dtype = argument.named_value()?,
            "threads" => options.threads = argument.optional_count()?,
            "cache_dtype" => options.cache_dtype = argument.named_value()?,
            "activations" => options.activations = argument.named_value()?,
            "isa" if argument.value.is_none() => {}
            "isa" => options.isa = Some(argument.text()?.to_string()),
            "context_tokens" => options.context_tokens = argument.optional_count()?,
            "cache_tokens" => options.cache_tokens = argument.optional_count()?,
            "chunk_tokens" => options.chunk_tokens = argument.optional_count()?,
            "max_running" => options.max_running = argument.count()?,
            "queue_limit" => options.queue_limit = argument.count()?,
            "prefix_cache" => options.prefix_cache = argument.truth()?,
            "copy_weights" => options.copy_weights = argument.truth()?,
            "guard_mapped_files" => options.guard_mapped_files = argument.truth()?,
            "allow_unread_tensors" => options.allow_unread_tensors = argument.truth()?,
            "memory_limit" => options.memory_limit = argument.optional_count()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(options)
}

/// A row of a table of options: name, sentence, default, what holds if there is no default, name of the type, and the
/// allowed values: the least and the most, or names and aliases.
pub(crate) type Row<'py> =
    (&'static str, &'static str, Option<String>, &'static str, &'static str, Bound<'py, PyTuple>);

/// A table of options of the core, for the command line.
pub(crate) fn rows(py: Python<'_>, table: Vec<OptionInfo>) -> PyResult<Vec<Row<'_>>> {
    let row = |option: OptionInfo| {
        let OptionInfo { name, doc, default, unset, domain, .. } = option;
        let none = PyTuple::empty(py);
        let (kind, values) = match domain {
            Domain::Switch => ("switch", none),
            Domain::Whole(least, u64::MAX) => ("whole", (least, py.None()).into_pyobject(py)?),
            Domain::Whole(least, most) => ("whole", (least, most).into_pyobject(py)?),
            // As text, because an f32 as a Python float would show all digits of its rounding.
            Domain::Real(least, most) => ("real", (format!("{least}"), format!("{most}")).into_pyobject(py)?),
            Domain::Named { names, aliases } => {
                ("named", (PyTuple::new(py, names)?, PyTuple::new(py, aliases)?).into_pyobject(py)?)
            }
            Domain::Device => ("device", none),
            Domain::Text(_) => ("text", none),
            Domain::Texts(_) => ("texts", none),
            Domain::Tokens(_) => ("tokens", none),
            Domain::Biases(_) => ("biases", none),
            Domain::Bytes => ("bytes", none),
            Domain::Duration => ("duration", none),
            _ => ("object", none),
        };
        Ok((name, doc, default, unset, kind, values))
    };
    table.into_iter().map(row).collect()
}

/// A model's path: the one given, or the small model of this package.
pub(crate) fn model_path(py: Python<'_>, path: Option<&Bound<'_, PyAny>>) -> PyResult<PathBuf> {
    match path.filter(|path| !path.is_none()) {
        Some(path) => Argument::new("path", path).path(),
        None => py.import("welm")?.getattr("NANO")?.extract(),
    }
}

/// Passes reports of loading to a Python callable, and runs signal handlers. If either raises, the exception is kept
/// for the caller, and the loading ends.
#[derive(Clone)]
pub(crate) struct Progress {
    call: Option<Arc<Py<PyAny>>>,
    looked: Arc<Mutex<Instant>>,
    raised: Arc<Mutex<Option<PyErr>>>,
}

impl Progress {
    pub(crate) fn new(call: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let call = call.filter(|call| !call.is_none());
        let call = call.map(|call| Argument::new("progress", call).callable()).transpose()?;
        Ok(Progress {
            call: call.map(Arc::new),
            looked: Arc::new(Mutex::new(Instant::now())),
            raised: Arc::default(),
        })
    }

    /// Whether to go on.
    pub(crate) fn report(&self, progress: LoadProgress) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(|e| e.into_inner());
        if self.call.is_none() && looked.elapsed() < TICK {
            return true;
        }
        *looked = Instant::now();
        let answer = exit::attached(|py| {
            py.check_signals()?;
            let Some(call) = &self.call else { return Ok(true) };
            let answer = call.bind(py).call1((progress.done_bytes, progress.total_bytes))?;
            // Only False ends it, because the update method of a progress bar may return anything.
            Ok(!answer.is_exact_instance_of::<PyBool>() || answer.is_truthy()?)
        });
        // If the interpreter is ending, nobody waits for the model.
        answer.unwrap_or(Ok(false)).unwrap_or_else(|error: PyErr| {
            *self.raised.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
            false
        })
    }

    /// For `LoadOptions::progress`.
    pub(crate) fn callback(&self) -> ProgressFn {
        let this = self.clone();
        Arc::new(move |progress| this.report(progress))
    }

    /// The result, or the exception that was kept.
    pub(crate) fn finish<T>(&self, py: Python<'_>, result: welm_core::Result<T>) -> PyResult<T> {
        let raised = self.raised.lock().unwrap_or_else(|e| e.into_inner()).take();
        match (result, raised) {
            (Ok(value), None) => Ok(value),
            (_, Some(raised)) => Err(raised),
            (Err(error), None) => Err(exception(py, &error)),
        }
    }
}

/// Token ids, any number of them.
pub(crate) fn tokens(name: &'static str, value: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let argument = Argument::new(name, value);
    argument.all(argument.tokens("a sequence of token ids", usize::MAX)?, usize::MAX, "tokens")
}
