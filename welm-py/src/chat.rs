//! Conversations from Python: dicts to the core's JSON.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PySequence, PyString, PyTuple};
use welm_core::{self as core, GenerateOptions, Json};

use crate::argument::{Argument, kind};
use crate::error::{OrRaise, invalid_option};
use crate::options::generate_options;

/// How deep values may be nested, as in the core. This also stops at a value that contains itself.
const MAX_DEPTH: usize = 100;
/// Most values of a request. This also stops at a sequence that never ends.
const MAX_VALUES: usize = 1 << 24;

/// Reads values; an error names where the wrong one is.
struct Reader<'a> {
    option: &'static str,
    /// The argument's name as in the call.
    argument: &'a str,
    path: String,
    values: usize,
}

impl<'a> Reader<'a> {
    fn new(option: &'static str) -> Self {
        Reader { option, argument: option, path: option.into(), values: 0 }
    }

    /// For a variable of the template, which is an argument of its own.
    fn of_variable(name: &'a str) -> Self {
        Reader { option: "variables", argument: name, path: name.into(), values: 0 }
    }

    /// Where we are in the argument; nothing for the argument itself.
    fn place(&self) -> String {
        if self.path == self.argument { String::new() } else { format!("{}: ", self.path) }
    }

    fn invalid(&self, py: Python<'_>, reason: &str) -> PyErr {
        invalid_option(py, self.option, format!("{}: {reason}", self.path))
    }

    fn wrong_type(&self, expected: &str, got: &Bound<'_, PyAny>) -> PyErr {
        let (argument, place, got) = (self.argument, self.place(), kind(got));
        PyTypeError::new_err(format!("argument '{argument}': {place}expected {expected}, got {got}"))
    }

    /// Reads a part of the value; `part` names it in errors.
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
        // Before int, because a bool is an int, too.
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

    /// A list. Its length is not asked for, because an object may claim any.
    fn list(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<Vec<Json>> {
        let mut items = Vec::new();
        for (i, item) in value.try_iter()?.enumerate() {
            items.push(self.within(&format!("[{i}]"), |reader| reader.value(&item?, depth + 1))?);
        }
        Ok(items)
    }

    fn object(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<Vec<(String, Json)>> {
        let py = value.py();
        let mut fields = Vec::new();
        for entry in value.call_method0("items")?.try_iter()? {
            let entry = entry?;
            let pair: PyResult<(Bound<'_, PyAny>, Bound<'_, PyAny>)> = entry.extract();
            let (key, value) = pair.map_err(|_| self.wrong_type("a dict", value))?;
            let Ok(key) = key.cast::<PyString>() else {
                return Err(self.wrong_type("keys that are str", &key));
            };
            let Ok(key) = key.to_str().map(str::to_string) else {
                return Err(self.invalid(py, "expected keys that are text, got half of a surrogate pair"));
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
        let items = value.try_iter().map_err(|_| self.wrong_type("a list of dicts", value))?;
        for (i, item) in items.enumerate() {
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

/// Arguments of a conversation beside its messages.
const ARGUMENTS: [&str; 6] =
    ["add_generation_prompt", "tools", "documents", "continue_final_message", "chat_template", "variables"];

/// Sets an argument of a conversation by its name.
fn set(request: &mut core::ChatRequest, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
    match name {
        "add_generation_prompt" => {
            let whether = Argument::new("add_generation_prompt", value);
            request.add_generation_prompt = whether.optional_truth()?;
        }
        _ if value.is_none() => {}
        "tools" => request.tools = Some(Reader::new("tools").objects(value)?),
        "documents" => request.documents = Some(Reader::new("documents").objects(value)?),
        "continue_final_message" => {
            // Whether the last message is to be continued, or which of its keys.
            let key = Argument::new("continue_final_message", value);
            request.continue_final_message = if key.is_text() {
                Some(key.text()?.to_string())
            } else if value.is_instance_of::<PyBool>() {
                key.truth()?.then(|| "content".into())
            } else {
                return Err(key.not("bool or str"));
            };
        }
        "chat_template" => {
            request.chat_template = Some(Argument::new("chat_template", value).text()?.to_string());
        }
        _ => {
            let mut reader = Reader::new("variables");
            if value.cast::<PyMapping>().is_err() {
                return Err(reader.wrong_type("a dict", value));
            }
            request.variables.extend(reader.object(value, 0)?);
        }
    }
    Ok(())
}

/// The messages of a conversation.
pub(crate) fn conversation(messages: &Bound<'_, PyAny>) -> PyResult<core::ChatRequest> {
    let mut request = core::ChatRequest::default();
    for message in Reader::new("messages").objects(messages)? {
        request.messages.push(core::Message::try_from(message).or_raise(messages.py())?);
    }
    Ok(request)
}

/// The arguments of `chat_prompt` and `chat_tokens`. All other keywords are variables of the template.
pub(crate) fn request(
    messages: &Bound<'_, PyAny>,
    add_generation_prompt: Option<&Bound<'_, PyAny>>,
    arguments: Option<&Bound<'_, PyDict>>,
) -> PyResult<core::ChatRequest> {
    let mut request = conversation(messages)?;
    if let Some(whether) = add_generation_prompt {
        set(&mut request, "add_generation_prompt", whether)?;
    }
    for (key, value) in arguments.into_iter().flatten() {
        let name = Argument::new("variables", &key).text()?;
        match ARGUMENTS.iter().find(|known| **known == &*name && **known != "variables") {
            Some(known) => set(&mut request, known, &value)?,
            None => {
                let value = Reader::of_variable(&name).value(&value, 0)?;
                request.variables.push((name.to_string(), value));
            }
        }
    }
    Ok(request)
}

/// The arguments of `chat`: those of the conversation, and options of a request.
pub(crate) fn request_and_options(
    call: &str,
    messages: &Bound<'_, PyAny>,
    given: Option<&Bound<'_, PyDict>>,
) -> PyResult<(core::ChatRequest, GenerateOptions)> {
    let mut request = conversation(messages)?;
    let options = PyDict::new(messages.py());
    for (key, value) in given.into_iter().flatten() {
        match ARGUMENTS.iter().find(|name| key.eq(**name).unwrap_or(false)) {
            Some(name) => set(&mut request, name, &value)?,
            None => options.set_item(key, value)?,
        }
    }
    Ok((request, generate_options(call, Some(&options))?))
}
