//! Conversations from Python: dicts to the core's JSON.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PySequence, PyString, PyTuple};
use welm_core::{self as core, Error, Json};

use crate::error::exception;

/// How deep values may lie in each other, as in the core: a value that holds itself ends here.
const MAX_DEPTH: usize = 100;
/// Most values of a request: a sequence that never ends does here.
const MAX_VALUES: usize = 1 << 24;

/// Reads values; an error names where the wrong one is.
struct Reader {
    option: &'static str,
    path: String,
    values: usize,
}

impl Reader {
    fn new(option: &'static str) -> Self {
        Reader { option, path: option.into(), values: 0 }
    }

    fn invalid(&self, py: Python<'_>, reason: &str) -> PyErr {
        let reason = format!("{}: {reason}", self.path);
        exception(py, &Error::InvalidOption { option: self.option, reason })
    }

    fn wrong_type(&self, expected: &str, got: &Bound<'_, PyAny>) -> PyErr {
        let got = got.get_type().name().map_or_else(|_| "an object".into(), |name| name.to_string());
        PyTypeError::new_err(format!("{}: expected {expected}, got {got}", self.path))
    }

    /// Reads something inside, with a name for errors.
    fn within<T>(&mut self, part: &str, read: impl FnOnce(&mut Self) -> PyResult<T>) -> PyResult<T> {
        let length = self.path.len();
        self.path.push_str(part);
        let value = read(self)?;
        self.path.truncate(length);
        Ok(value)
    }

    fn value(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<Json> {
        let py = value.py();
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.invalid(py, &format!("expected at most {MAX_VALUES} values, got more")));
        }
        if self.values.is_multiple_of(1 << 16) {
            py.check_signals()?;
        }
        if value.is_none() {
            return Ok(Json::Null);
        }
        // Before int, of which it is one.
        if let Ok(value) = value.cast::<PyBool>() {
            return Ok(Json::Bool(value.is_true()));
        }
        if let Ok(text) = value.cast::<PyString>() {
            return match text.to_str() {
                Ok(text) => Ok(Json::String(text.into())),
                Err(_) => Err(self.invalid(py, "expected text, got half of a surrogate pair")),
            };
        }
        if value.is_instance_of::<PyInt>() {
            return match value.extract::<i128>() {
                Ok(value) => Ok(Json::Int(value)),
                Err(_) => Err(self.invalid(py, "expected a whole number of at most 127 bits, got more")),
            };
        }
        if let Ok(value) = value.cast::<PyFloat>() {
            return Ok(Json::Float(value.value()));
        }
        let list = value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>();
        if !list && value.cast::<PyMapping>().is_err() {
            return Err(self.wrong_type("None, a bool, a number, a str, a list or a dict", value));
        }
        if depth >= MAX_DEPTH {
            return Err(self.invalid(py, &format!("expected values in at most {MAX_DEPTH} others, got more")));
        }
        if list {
            self.list(value, depth).map(Json::List)
        } else {
            self.object(value, depth).map(Json::Object)
        }
    }

    /// What it says of its length is not asked for.
    fn list(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<Vec<Json>> {
        let mut items = Vec::new();
        for (i, item) in value.try_iter()?.enumerate() {
            items.push(self.within(&format!("[{i}]"), |reader| reader.value(&item?, depth + 1))?);
        }
        Ok(items)
    }

    fn object(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<Vec<(String, Json)>> {
        let mut fields = Vec::new();
        for entry in value.call_method0("items")?.try_iter()? {
            let (key, value) = entry?.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            let Ok(key) = key.extract::<String>() else {
                return Err(self.wrong_type("keys that are str", &key));
            };
            let value = self.within(&format!(".{key}"), |reader| reader.value(&value, depth + 1))?;
            fields.push((key, value));
        }
        Ok(fields)
    }

    /// A list of dicts, as messages, tools and documents are.
    fn objects(&mut self, value: &Bound<'_, PyAny>) -> PyResult<Vec<Json>> {
        if value.is_instance_of::<PyString>() || value.cast::<PySequence>().is_err() {
            return Err(self.wrong_type("a list of dicts", value));
        }
        let mut objects = Vec::new();
        for (i, item) in value.try_iter()?.enumerate() {
            let read = |reader: &mut Self| {
                let item = item?;
                match item.cast::<PyMapping>() {
                    Ok(_) => reader.value(&item, 0),
                    Err(_) => Err(reader.wrong_type("a dict", &item)),
                }
            };
            objects.push(self.within(&format!("[{i}]"), read)?);
        }
        Ok(objects)
    }
}

/// What `chat_prompt` and `chat_tokens` take.
pub(crate) struct ChatArguments<'a, 'py> {
    pub(crate) messages: &'a Bound<'py, PyAny>,
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) tools: Option<&'a Bound<'py, PyAny>>,
    pub(crate) documents: Option<&'a Bound<'py, PyAny>>,
    pub(crate) continue_final_message: Option<Continue>,
    pub(crate) chat_template: Option<String>,
    pub(crate) variables: Option<&'a Bound<'py, PyDict>>,
}

/// Whether the last message is to be continued, or which of its keys.
#[derive(FromPyObject)]
pub(crate) enum Continue {
    Whether(bool),
    Key(String),
}

impl ChatArguments<'_, '_> {
    pub(crate) fn request(self) -> PyResult<core::ChatRequest> {
        let mut request = core::ChatRequest::default();
        for message in Reader::new("messages").objects(self.messages)? {
            let py = self.messages.py();
            request.messages.push(core::Message::try_from(message).map_err(|error| exception(py, &error))?);
        }
        request.add_generation_prompt = self.add_generation_prompt;
        request.tools = self.tools.map(|tools| Reader::new("tools").objects(tools)).transpose()?;
        request.documents =
            self.documents.map(|documents| Reader::new("documents").objects(documents)).transpose()?;
        request.continue_final_message = match self.continue_final_message {
            None | Some(Continue::Whether(false)) => None,
            Some(Continue::Whether(true)) => Some("content".into()),
            Some(Continue::Key(key)) => Some(key),
        };
        request.chat_template = self.chat_template;
        for (name, value) in self.variables.into_iter().flatten() {
            let name = name.extract::<String>()?;
            let mut reader = Reader::new("variables");
            reader.path.clone_from(&name);
            request.variables.push((name, reader.value(&value, 0)?));
        }
        Ok(request)
    }
}
