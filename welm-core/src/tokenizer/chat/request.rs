//! [`Message`] and [`ChatRequest`], and how transformers changes messages before the template gets them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::jinja::is_space;
use super::json::Json;
use crate::error::{Error, Result, quoted};

/// How deep the values of a message may be nested.
pub(super) const MAX_DEPTH: usize = 100;
/// The keys that a message's reasoning may have. Templates read one of the first two.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Marks the end of the message to be continued while the template runs.
const CONTINUED: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// One message of a conversation: a JSON object, which the template gets. Most messages have a `role` and a `content`.
/// Some templates also use `tool_calls`, `name`, `reasoning_content` or other keys.
///
/// ```
/// use welm_core::{Json, Message};
/// let question = Message::new("user", "What is the weather in Oslo?");
/// let parts = Message::from_json(r#"{"role": "user", "content": [{"type": "text", "text": "Hello"}]}"#)?;
/// let answer = Message::new("tool", "-3 degrees").with("tool_call_id", "call_1");
/// assert_eq!(answer.get("tool_call_id"), Some(&Json::from("call_1")));
/// # Ok::<(), welm_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    fields: Vec<(String, Json)>,
}

impl Message {
    /// A message with a `role` and a `content`. The role is `system`, `user`, `assistant`, or another that the template
    /// knows. The content is a text, or another value that the template accepts.
    pub fn new(role: impl Into<String>, content: impl Into<Json>) -> Self {
        Message { fields: Vec::new() }.with("role", role.into()).with("content", content)
    }

    /// The same message with one more key, or with another value of that key.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Json>) -> Self {
        set(&mut self.fields, key.into(), value.into());
        self
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.fields.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Reads a JSON object.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the text is not JSON, or not an object.
    pub fn from_json(text: &str) -> Result<Self> {
        let json =
            text.parse::<Json>().map_err(|e| Error::option("message", format!("expected JSON, got {e}")))?;
        Message::try_from(json)
    }
}

impl TryFrom<Json> for Message {
    type Error = Error;

    fn try_from(json: Json) -> Result<Self> {
        let Json::Object(all) = json else {
            let reason = format!("expected an object with role and content, got {}", json.kind());
            return Err(Error::option("message", reason));
        };
        Ok(Message { fields: unique(all) })
    }
}

/// Removes repeated keys. A repeated key keeps its first place and gets its last value, as in a Python dict.
fn unique(all: Vec<(String, Json)>) -> Vec<(String, Json)> {
    let mut fields: Vec<(String, Json)> = Vec::with_capacity(all.len());
    let mut places: HashMap<String, usize> = HashMap::with_capacity(all.len());
    for (key, value) in all {
        match places.entry(key) {
            Entry::Occupied(place) => fields[*place.get()].1 = value,
            Entry::Vacant(place) => {
                fields.push((place.key().clone(), value));
                place.insert(fields.len() - 1);
            }
        }
    }
    fields
}

/// Sets the value of a key. A key that exists keeps its place, as in a Python dict.
fn set(fields: &mut Vec<(String, Json)>, key: String, value: Json) {
    match fields.iter_mut().find(|(name, _)| *name == key) {
        Some((_, old)) => *old = value,
        None => fields.push((key, value)),
    }
}

/// A conversation and the other variables of its template: the arguments of transformers' `apply_chat_template`.
///
/// ```
/// use welm_core::{ChatRequest, Message};
/// let mut request = ChatRequest::new([Message::new("user", "What is the weather in Oslo?")]);
/// request.tools = Some(vec![r#"{"type": "function", "function": {"name": "weather"}}"#.parse()?]);
/// request.variables.push(("enable_thinking".into(), false.into()));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ChatRequest {
    /// The conversation.
    pub messages: Vec<Message>,
    /// Whether the text ends with the beginning of the assistant's answer. `None` means true, unless a message is to be
    /// continued.
    pub add_generation_prompt: Option<bool>,
    /// Ends the text within the last message, so that the model continues it. The value is the key to be continued,
    /// most often `content`.
    pub continue_final_message: Option<String>,
    /// JSON schemas of functions that the model may call. Templates see `none` without them. If there are tools and the
    /// model has a template named `tool_use`, that template is used.
    pub tools: Option<Vec<Json>>,
    /// Documents that the model may use, if its template supports them. Each is an object.
    pub documents: Option<Vec<Json>>,
    /// Another template than the default: the name of one of the model's templates, or the source of a template.
    pub chat_template: Option<String>,
    /// Other variables of the template, such as `enable_thinking`. They may replace special tokens like `bos_token`.
    pub variables: Vec<(String, Json)>,
}

/// Arguments of `apply_chat_template` that are not variables of the template. They are refused as variables, because
/// they would have no effect.
const NOT_VARIABLES: [&str; 17] = [
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "conversations",
    "documents",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "truncation",
];

impl ChatRequest {
    /// A request for the next answer in a conversation.
    pub fn new(messages: impl Into<Vec<Message>>) -> Self {
        ChatRequest { messages: messages.into(), ..ChatRequest::default() }
    }

    /// Reads a JSON object whose keys are the fields of this struct. `messages` is required. `continue_final_message`
    /// may be `true`, which means `content`. All other keys are variables of the template.
    ///
    /// ```
    /// use welm_core::ChatRequest;
    /// let text = r#"{"messages": [{"role": "user", "content": "Hello"}], "enable_thinking": false}"#;
    /// assert_eq!(ChatRequest::from_json(text)?.variables.len(), 1);
    /// # Ok::<(), welm_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidOption`], with the name of the key that is wrong.
    pub fn from_json(text: &str) -> Result<Self> {
        ChatRequest::try_from(
            text.parse::<Json>().map_err(|e| Error::option("request", format!("expected JSON, got {e}")))?,
        )
    }

    /// Checks everything except the template. Afterwards, recursion over the values cannot overflow the stack.
    pub(super) fn validate(&self) -> Result<()> {
        if self.messages.is_empty() {
            return Err(Error::option("messages", "expected at least one, got none"));
        }
        if let (Some(key), Some(true)) = (&self.continue_final_message, self.add_generation_prompt) {
            let key = quoted(key);
            let reason =
                format!("expected none with add_generation_prompt, which begins a new message, got {key}");
            return Err(Error::option("continue_final_message", reason));
        }
        for (option, items) in [("tools", &self.tools), ("documents", &self.documents)] {
            for (i, item) in items.iter().flatten().enumerate() {
                if !matches!(item, Json::Object(_)) {
                    let reason = format!("{option}[{i}]: expected an object, got {}", item.kind());
                    return Err(Error::option(option, reason));
                }
                check_depth(option, || format!("{option}[{i}]"), item)?;
            }
        }
        for (i, message) in self.messages.iter().enumerate() {
            for (key, value) in &message.fields {
                check_depth("messages", || format!("messages[{i}].{key}"), value)?;
            }
        }
        let mut names = HashSet::new();
        for (name, value) in &self.variables {
            if NOT_VARIABLES.contains(&name.as_str()) {
                let reason = format!(
                    "expected names of the template's variables, got {}, which is none",
                    quoted(name)
                );
                return Err(Error::option("variables", reason));
            }
            if !names.insert(name) {
                return Err(Error::option(
                    "variables",
                    format!("expected each name once, got {} again", quoted(name)),
                ));
            }
            check_depth("variables", || name.clone(), value)?;
        }
        Ok(())
    }

    /// The number of values and bytes of text. The template gets fuel in proportion to it.
    pub(super) fn size(&self) -> usize {
        let fields = |fields: &[(String, Json)]| {
            fields.iter().map(|(key, value)| key.len() + value.size()).sum::<usize>()
        };
        let messages: usize = self.messages.iter().map(|m| fields(&m.fields)).sum();
        let others: usize = self.tools.iter().chain(&self.documents).flatten().map(Json::size).sum();
        messages + others + fields(&self.variables)
    }

    /// The messages as templates get them. If the last message is to be continued, also the text that it ends with.
    pub(super) fn conversation(&self, template: &str) -> Result<(Json, Option<String>)> {
        let mut messages: Vec<Vec<(String, Json)>> =
            self.messages.iter().map(|m| visible(&m.fields)).collect();
        let mut continued = None;
        if let (Some(key), Some(last)) = (&self.continue_final_message, messages.last_mut()) {
            continued = Some(mark(last, key, template)?);
        }
        Ok((Json::List(messages.into_iter().map(Json::Object).collect()), continued))
    }
}

impl TryFrom<Json> for ChatRequest {
    type Error = Error;

    /// The same as [`ChatRequest::from_json`], for a value that was already read.
    fn try_from(json: Json) -> Result<Self> {
        let Json::Object(fields) = json else {
            let reason = format!("expected an object with messages, got {}", json.kind());
            return Err(Error::option("request", reason));
        };
        let mut request = ChatRequest::default();
        let mut messages = None;
        for (key, value) in unique(fields) {
            match key.as_str() {
                "messages" => messages = list("messages", value)?,
                "tools" => request.tools = list("tools", value)?,
                "documents" => request.documents = list("documents", value)?,
                "add_generation_prompt" => {
                    request.add_generation_prompt = boolean("add_generation_prompt", value)?
                }
                "continue_final_message" => {
                    request.continue_final_message = match value {
                        Json::String(key) => Some(key),
                        other => boolean("continue_final_message", other)?
                            .filter(|on| *on)
                            .map(|_| "content".into()),
                    }
                }
                "chat_template" => {
                    request.chat_template = match value {
                        Json::Null => None,
                        Json::String(template) => Some(template),
                        other => return Err(wrong("chat_template", "a string", &other)),
                    }
                }
                _ => request.variables.push((key, value)),
            }
        }
        let Some(messages) = messages else {
            return Err(Error::option("messages", "expected a list, got none"));
        };
        request.messages = messages
            .into_iter()
            .enumerate()
            .map(|(i, json)| match json {
                Json::Object(_) => Message::try_from(json),
                other => Err(Error::option(
                    "messages",
                    format!("messages[{i}]: expected an object, got {}", other.kind()),
                )),
            })
            .collect::<Result<_>>()?;
        Ok(request)
    }
}

/// The fields of a message as templates get them. Keys with `null` are removed, because templates expect such keys to
/// be absent. Reasoning gets both names that templates use.
fn visible(fields: &[(String, Json)]) -> Vec<(String, Json)> {
    let mut visible: Vec<_> = fields.iter().filter(|(_, value)| *value != Json::Null).cloned().collect();
    let find = |name: &&str| visible.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    if let Some(reasoning) = REASONING.iter().find_map(find) {
        let own = visible.iter().position(|(key, _)| key == "thinking").map(|i| visible.remove(i).1);
        visible.insert(0, ("thinking".into(), own.unwrap_or_else(|| reasoning.clone())));
        set(&mut visible, "reasoning_content".into(), reasoning);
    }
    visible
}

/// Marks the end of the message that is to be continued, and returns its text.
fn mark(last: &mut [(String, Json)], key: &str, template: &str) -> Result<String> {
    let wrong = |reason: String| Err(Error::option("continue_final_message", reason));
    let Some(value) = last.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone()) else {
        return wrong(format!(
            "expected a key of the last message, got {}, which it does not have",
            quoted(key)
        ));
    };
    let same = |name: &str| {
        if REASONING.contains(&key) { REASONING.contains(&name) } else { name == key }
    };
    let mut text = None;
    let mut known = false;
    for (name, other) in last.iter_mut().filter(|(name, other)| same(name) && *other == value) {
        known |= template.contains(name.as_str());
        let end = match other {
            Json::String(text) => Some(text),
            Json::List(parts) => parts.iter_mut().rev().find_map(|part| match part {
                Json::Object(fields) => match fields.iter_mut().find(|(name, _)| name == "text") {
                    Some((_, Json::String(text))) => Some(text),
                    _ => None,
                },
                _ => None,
            }),
            _ => None,
        };
        let Some(end) = end else {
            return wrong(format!(
                "expected a key of the last message with a text, got {}, which has none",
                quoted(key)
            ));
        };
        text = Some(end.clone());
        end.push_str(CONTINUED);
    }
    match text {
        Some(text) if known => Ok(text),
        _ => wrong(format!("expected a key that the chat template names, got {}", quoted(key))),
    }
}

/// Cuts the rendered text after the end of the message that is to be continued.
pub(super) fn cut(mut rendered: String, text: &str) -> Result<String> {
    let end = rendered.rfind(CONTINUED.trim_end()).filter(|_| rendered.contains(text.trim_matches(is_space)));
    let Some(end) = end else {
        let reason = "expected the chat template to show the last message as it is, got a text without it";
        return Err(Error::option("continue_final_message", reason));
    };
    // If the template has trimmed the space at the end of the mark, the spaces before the mark are trimmed, too.
    let whole = rendered[end..].starts_with(CONTINUED);
    rendered.truncate(end);
    if !whole {
        rendered.truncate(rendered.trim_end_matches(is_space).len());
    }
    Ok(rendered)
}

fn check_depth(option: &'static str, name: impl Fn() -> String, value: &Json) -> Result<()> {
    if value.is_deeper_than(MAX_DEPTH) {
        let reason = format!("{}: expected values in at most {MAX_DEPTH} others, got more", name());
        return Err(Error::option(option, reason));
    }
    Ok(())
}

fn wrong(option: &'static str, expected: &str, got: &Json) -> Error {
    Error::option(option, format!("expected {expected}, got {}", got.kind()))
}

fn list(option: &'static str, json: Json) -> Result<Option<Vec<Json>>> {
    match json {
        Json::Null => Ok(None),
        Json::List(items) => Ok(Some(items)),
        other => Err(wrong(option, "a list", &other)),
    }
}

fn boolean(option: &'static str, json: Json) -> Result<Option<bool>> {
    match json {
        Json::Null => Ok(None),
        Json::Bool(b) => Ok(Some(b)),
        other => Err(wrong(option, "true or false", &other)),
    }
}
