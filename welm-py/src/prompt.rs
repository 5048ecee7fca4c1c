//! Python values to prompts.

use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyList, PyMapping, PyString};
use welm_core::{ChatRequest, GenerateOptions, Model, Prompt, Result, Stream};

use crate::argument::{Argument, Elements};
use crate::chat::conversation;

/// One prompt, in a form that can be read without the GIL.
pub(crate) enum OnePrompt {
    Text(PyBackedStr),
    Tokens(Vec<u32>),
    /// More tokens than can fit; only their number is kept.
    TooLong(usize),
    Chat(ChatRequest),
}

impl OnePrompt {
    pub(crate) fn new(model: &Model, value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if is_conversation(value) {
            return conversation(value).map(OnePrompt::Chat);
        }
        let prompt = Argument::new("prompt", value);
        Self::text_or_tokens(model, prompt, "str, a sequence of token ids or a list of messages")
    }

    /// A prompt that is not a conversation.
    pub(crate) fn text_or_tokens(model: &Model, prompt: Argument<'_, '_>, expected: &str) -> PyResult<Self> {
        if prompt.is_text() {
            return prompt.text().map(OnePrompt::Text);
        }
        // A prompt may fill the whole context, because `max_tokens` may be 0.
        Ok(match prompt.tokens(expected, model.context().0)? {
            Elements::All(tokens) => OnePrompt::Tokens(tokens),
            Elements::TooMany(count) => OnePrompt::TooLong(count),
        })
    }

    pub(crate) fn as_prompt(&self, model: &Model, max_tokens: usize) -> Result<Prompt<'_>> {
        match self {
            OnePrompt::Text(text) => Ok(Prompt::Text(text)),
            OnePrompt::Tokens(tokens) => Ok(Prompt::Tokens(tokens)),
            OnePrompt::Chat(request) => Ok(Prompt::Chat(request)),
            &OnePrompt::TooLong(prompt) => Err(model.too_long(prompt, max_tokens)),
        }
    }

    /// `Model::stream` of it.
    pub(crate) fn stream(&self, model: &Model, options: &GenerateOptions) -> Result<Stream> {
        model.stream(self.as_prompt(model, options.max_tokens)?, options)
    }

    /// `Model::logits` of it.
    pub(crate) fn logits(&self, model: &Model, from: usize) -> Result<Vec<f32>> {
        model.logits(self.as_prompt(model, 0)?, from)
    }
}

/// The first argument of `generate`: one prompt, or several.
pub(crate) enum Prompts {
    One(OnePrompt),
    Many(Vec<OnePrompt>),
}

impl Prompts {
    /// A sequence whose first element is a string or a sequence is a batch; so is an empty list.
    pub(crate) fn new(model: &Model, value: &Bound<'_, PyAny>) -> PyResult<Self> {
        let is_batch = !is_text(value)
            && has_len(value)
            && match value.get_item(0) {
                Ok(first) => is_text(&first) || (has_len(&first) && !is_mapping(&first)),
                Err(_) => value.len()? == 0 && value.is_instance_of::<PyList>(),
            };
        if !is_batch {
            return OnePrompt::new(model, value).map(Prompts::One);
        }
        let argument = Argument::new("prompt", value);
        let prompts = argument.sequence("a prompt or a sequence of prompts", usize::MAX, |prompt| {
            OnePrompt::new(model, prompt)
        })?;
        argument.all(prompts, usize::MAX, "prompts").map(Prompts::Many)
    }
}

pub(crate) fn is_text(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyString>()
}

fn is_mapping(value: &Bound<'_, PyAny>) -> bool {
    value.cast::<PyMapping>().is_ok()
}

/// Whether it is a sequence of messages, that is, of mappings.
fn is_conversation(value: &Bound<'_, PyAny>) -> bool {
    let is_sequence = !is_text(value) && !is_mapping(value) && has_len(value);
    is_sequence && value.get_item(0).is_ok_and(|first| is_mapping(&first))
}

/// Whether it has a length, which may be larger than an integer can hold.
pub(crate) fn has_len(value: &Bound<'_, PyAny>) -> bool {
    value.len().map_or_else(|error| error.is_instance_of::<PyOverflowError>(value.py()), |_| true)
}
