//! Chat templates, which turn messages into the text format that a model was trained on.
//!
//! A template is a program in Jinja2 that comes with the model, so it is not trusted. [`jinja`] renders it in the same
//! way as transformers. It has no access to files or to Rust, and its steps, memory and depth are bounded. The bound on
//! steps and memory grows with the conversation. It runs on a thread of its own, whose stack is large enough for the
//! bounds, because the caller's stack may be small.

mod jinja;
mod json;
mod request;

use std::fmt::Display;
use std::path::Path;
use std::thread;

use crate::error::{Error, Result};
use crate::host::panics;
use crate::host::threads::{expect_room_for, refused};
use crate::side_file::{ADDITIONAL_TEMPLATES, CHAT_TEMPLATE, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};
pub use json::Json;
pub use request::{ChatRequest, Message};

/// Most bytes of a template. The longest of published models have about 30 KB.
const MAX_TEMPLATE: usize = 1 << 20;
/// Bytes of the rendering thread's stack. Only pages that are touched take memory.
const STACK: usize = 64 << 20;
/// The fuel of a rendering: a base, and more for each message, and for each value and byte of the template's variables.
/// One unit is one step, or 64 bytes that are read or made.
const FUEL: u64 = 200_000;
const FUEL_PER_MESSAGE: u64 = 5_000;
const FUEL_PER_BYTE: u64 = 2;
/// So many messages have fuel of their own. A template that looks at all messages for each one runs out before that, and
/// others need a small part of it; without an end, a long conversation would buy any amount of memory.
const FUELLED_MESSAGES: u64 = 5_000;

/// A model's chat templates and the special tokens that they may name.
pub(crate) struct ChatTemplate {
    /// Names and sources; empty if the model has no template. An error if the templates cannot be read: it is reported
    /// only when a chat is rendered, because the model can be used without.
    sources: Result<Vec<(String, String)>>,
    /// Variables for special tokens, such as `bos_token`: name and text.
    special: Vec<(String, String)>,
}

/// The name of the template that is used by default, and of the template that is used if the request has tools.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// The special tokens that transformers passes to templates, beside those that a model defines itself.
const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl ChatTemplate {
    /// Reads `chat_template.jinja`, the folder `additional_chat_templates`, `tokenizer_config.json` and
    /// `special_tokens_map.json`, if they exist.
    pub(crate) fn from_folder(folder: &Path) -> Self {
        let mut special = Vec::new();
        let sources = Self::read(folder, &mut special);
        ChatTemplate { sources, special }
    }

    fn read(folder: &Path, special: &mut Vec<(String, String)>) -> Result<Vec<(String, String)>> {
        let file = folder.join(TOKENIZER_CONFIG.name);
        let config = TOKENIZER_CONFIG.json(folder)?.unwrap_or_default();
        let map = SPECIAL_TOKENS_MAP.json(folder)?.unwrap_or_default();
        // A token is a text, or an object with the text as `content`.
        let text =
            |value: &serde_json::Value| Some(value.get("content").unwrap_or(value).as_str()?.to_string());
        // transformers reads the map where the configuration has no `added_tokens_decoder`: in old folders, and in those
        // that transformers 5 wrote. There the map counts more.
        let listed = config.get("added_tokens_decoder").is_some();
        let files: &[&serde_json::Value] = if listed { &[&config] } else { &[&map, &config] };
        for name in SPECIAL {
            let token = files.iter().find_map(|json| json.get(name)).and_then(text);
            special.extend(token.map(|token| (name.to_string(), token)));
        }
        // Special tokens that a model defines itself, such as `image_token`.
        let own = files.iter().rev().filter_map(|json| json.as_object()).flatten();
        let own = own.filter(|(name, _)| name.ends_with("_token"));
        let named = ["extra_special_tokens", "model_specific_special_tokens"].into_iter();
        let named = named.filter_map(|key| config.get(key)?.as_object()).flatten();
        for (name, value) in own.chain(named) {
            if let (Some(token), false) = (text(value), SPECIAL.contains(&name.as_str())) {
                special.push((name.clone(), token));
            }
        }
        let mut sources = Vec::new();
        if let Some(source) = CHAT_TEMPLATE.text(folder)? {
            sources.push((DEFAULT.to_string(), source));
        }
        sources.extend(ADDITIONAL_TEMPLATES.in_folder(folder)?);
        if !sources.is_empty() {
            return Ok(sources);
        }
        let wrong = || {
            let reason = "expected chat_template to be a string, or templates with their names";
            Error::file(&file, reason)
        };
        let one = |name: Option<&str>, source: Option<&str>| match (name, source) {
            (Some(name), Some(source)) => Ok((name.to_string(), source.to_string())),
            _ => Err(wrong()),
        };
        match config.get("chat_template") {
            None | Some(serde_json::Value::Null) => Ok(Vec::new()),
            Some(serde_json::Value::String(source)) => Ok(vec![(DEFAULT.into(), source.clone())]),
            Some(serde_json::Value::Array(named)) => {
                named.iter().map(|t| one(t["name"].as_str(), t["template"].as_str())).collect()
            }
            Some(serde_json::Value::Object(named)) => {
                named.iter().map(|(name, source)| one(Some(name), source.as_str())).collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    /// The templates of a GGUF file. `sources` are the names and sources in its metadata; `bos` and `eos` are the texts
    /// of its tokens for beginning and end.
    pub(crate) fn from_gguf(
        sources: Result<Vec<(String, String)>>,
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Self {
        let token = |name: &str, text: Option<&str>| text.map(|text| (name.to_string(), text.to_string()));
        let special = [token("bos_token", bos), token("eos_token", eos)];
        ChatTemplate { sources, special: special.into_iter().flatten().collect() }
    }

    /// Whether there is a template, valid or not.
    pub(crate) fn is_present(&self) -> bool {
        self.sources.as_ref().is_ok_and(|sources| !sources.is_empty())
    }

    /// The source of the template for a request.
    fn source<'s>(&'s self, request: &'s ChatRequest) -> Result<&'s str> {
        let named = |sources: &'s [(String, String)], wanted: &str| {
            // Of two templates with the same name, the later one counts, as in a Python dict.
            sources.iter().rev().find(|(name, _)| name == wanted).map(|(_, source)| source.as_str())
        };
        if let Some(wanted) = &request.chat_template {
            let sources = self.sources.as_deref().unwrap_or_default();
            // If a model has only one template, it has no name, as in transformers.
            let alone = matches!(sources, [(name, _)] if name == DEFAULT);
            let found = if alone { None } else { named(sources, wanted) };
            return Ok(found.unwrap_or(wanted));
        }
        let sources = self.sources.as_ref().map_err(|error| match error {
            // Of the template, and not of the weights, after which nothing can be computed.
            Error::InvalidFile { .. } => fault(error),
            other => other.clone(),
        })?;
        if sources.is_empty() {
            return Err(fault("this model has none"));
        }
        let with_tools = request.tools.as_ref().and_then(|_| named(sources, TOOL_USE));
        with_tools.or_else(|| named(sources, DEFAULT)).ok_or_else(|| {
            let names: Vec<&str> = sources.iter().map(|(name, _)| name.as_str()).collect();
            fault(format!(
                "expected the name of one of the model's templates ({}), got none",
                names.join(", ")
            ))
        })
    }

    /// Renders a conversation to text.
    pub(crate) fn render(&self, request: &ChatRequest) -> Result<String> {
        request.validate()?;
        let source = self.source(request)?;
        if source.len() > MAX_TEMPLATE {
            return Err(fault(format!("expected at most {MAX_TEMPLATE} bytes, got {}", source.len())));
        }
        let work = || panics::catch(|| self.render_here(source, request));
        expect_room_for("the chat template's thread", STACK)?;
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("welm-chat".into()).stack_size(STACK);
            let thread = thread.spawn_scoped(scope, work);
            let thread = thread.map_err(|e| refused("the chat template's thread", STACK, &e))?;
            thread.join().unwrap_or(Err("its thread ended".into())).unwrap_or_else(|panic| Err(fault(panic)))
        })
    }

    fn render_here(&self, source: &str, request: &ChatRequest) -> Result<String> {
        let (messages, continued) = request.conversation(source)?;
        let items = |items: &Option<Vec<Json>>| items.clone().map_or(Json::Null, Json::List);
        let (tools, documents) = (items(&request.tools), items(&request.documents));
        let answer = request.add_generation_prompt.unwrap_or(request.continue_final_message.is_none());
        let special: Vec<_> = self.special.iter().map(|(name, text)| (name, Json::from(text))).collect();
        let mut variables: Vec<(&str, &Json)> = Vec::new();
        // Later ones replace earlier ones of the same name.
        variables.extend(special.iter().map(|(name, text)| (name.as_str(), text)));
        variables.extend(request.variables.iter().map(|(name, value)| (name.as_str(), value)));
        let answer = Json::Bool(answer);
        variables.extend([
            ("messages", &messages),
            ("tools", &tools),
            ("documents", &documents),
            ("add_generation_prompt", &answer),
        ]);
        let messages = FUELLED_MESSAGES.min(request.messages.len() as u64);
        let fuel = FUEL + FUEL_PER_MESSAGE * messages + FUEL_PER_BYTE * request.size() as u64;
        let rendered = jinja::render(source, &variables, fuel).map_err(|fault| failed(&fault))?;
        match continued {
            Some(text) => request::cut(rendered, &text),
            None => Ok(rendered),
        }
    }
}

fn failed(failed: &jinja::Fault) -> Error {
    match failed.line {
        Some(line) => fault(format!("line {line}: {}", failed.message)),
        None => fault(&failed.message),
    }
}

fn fault(reason: impl Display) -> Error {
    Error::ChatTemplate(reason.to_string())
}

#[cfg(test)]
mod tests;
