//! Chat templates: messages to the text that a model was trained on.
//!
//! A template is a program in Jinja2 that comes with the model, so it is as little trusted as the rest of the file.
//! It is rendered the way transformers renders it (the same settings, variables and functions), by `minijinja`,
//! which has no access to files or to Rust. What bounds it:
//!
//! - fuel, one budget for steps and for bytes produced, output included, which grows with the messages;
//! - [`guard`], which closes the ways around that budget;
//! - a thread of its own with a stack that [`guard`]'s limits cannot use up, whatever stack the caller has.

mod functions;
mod guard;

use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;
use std::thread;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Value, context};

use crate::error::{Error, Result};
use crate::host::panics;
use crate::host::threads::{expect_room_for, refused};
use crate::side_file::{CHAT_TEMPLATE, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};

/// Most bytes of a template; the longest of published models have about 30 KB.
const MAX_TEMPLATE: usize = 1 << 20;
/// Stack of the rendering thread in bytes; only what is touched takes memory.
const STACK: usize = 64 << 20;
/// How deep macros may call each other, in minijinja's units: 4 for a macro, 1 for a loop or a branch.
const RECURSION: usize = 200;
/// Fuel: of any rendering, and more for each message. One is a step, or 64 bytes produced.
const FUEL: u64 = 30_000;
const FUEL_PER_MESSAGE: u64 = 1_000;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`, and whatever else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// A model's chat template and the special tokens that it may name.
pub(crate) struct ChatTemplate {
    /// The source; none if the model has none, an error if it has one that cannot be read. Errors wait until a
    /// chat is asked for: the model is good without.
    source: Result<Option<String>>,
    /// `bos_token` and its like, as variables: name and text.
    special: Vec<(&'static str, String)>,
}

/// The special tokens that transformers shows to templates.
const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl ChatTemplate {
    /// Reads `chat_template.jinja`, `tokenizer_config.json` and `special_tokens_map.json`, as far as they are there.
    pub(crate) fn from_folder(folder: &Path) -> Self {
        let mut special = Vec::new();
        let source = Self::read(folder, &mut special);
        ChatTemplate { source, special }
    }

    fn read(folder: &Path, special: &mut Vec<(&'static str, String)>) -> Result<Option<String>> {
        let file = folder.join(TOKENIZER_CONFIG.name);
        let config = TOKENIZER_CONFIG.json(folder)?.unwrap_or_default();
        let map = SPECIAL_TOKENS_MAP.json(folder)?.unwrap_or_default();
        for name in SPECIAL {
            // A text, or an object around it.
            let text =
                |value: &serde_json::Value| Some(value.get("content").unwrap_or(value).as_str()?.to_string());
            let token = [&config, &map].into_iter().find_map(|json| text(json.get(name)?));
            special.extend(token.map(|token| (name, token)));
        }
        if let Some(source) = CHAT_TEMPLATE.text(folder)? {
            return Ok(Some(source));
        }
        let wrong = || {
            let reason = "expected chat_template to be a string, or a list with a template named default";
            Err(Error::file(&file, reason))
        };
        match config.get("chat_template") {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(serde_json::Value::String(source)) => Ok(Some(source.clone())),
            Some(serde_json::Value::Array(named)) => {
                match named.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str()) {
                    Some(source) => Ok(Some(source.to_string())),
                    None => wrong(),
                }
            }
            Some(_) => wrong(),
        }
    }

    /// The template in a GGUF file's metadata, and the texts of the file's tokens for beginning and end.
    pub(crate) fn from_gguf(source: Result<Option<&str>>, bos: Option<&str>, eos: Option<&str>) -> Self {
        let token = |name, text: Option<&str>| text.map(|text| (name, text.to_string()));
        let special = [token("bos_token", bos), token("eos_token", eos)];
        ChatTemplate {
            source: source.map(|s| s.map(str::to_string)),
            special: special.into_iter().flatten().collect(),
        }
    }

    /// Whether there is a template, good or bad.
    pub(crate) fn is_present(&self) -> bool {
        matches!(self.source, Ok(Some(_)))
    }

    /// The text of a conversation.
    pub(crate) fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let Some(source) = self.source.as_ref().map_err(Clone::clone)? else {
            return Err(fault("this model has none"));
        };
        if messages.is_empty() {
            return Err(Error::option("messages", "expected at least one, got none"));
        }
        if source.len() > MAX_TEMPLATE {
            return Err(fault(format!("expected at most {MAX_TEMPLATE} bytes, got {}", source.len())));
        }
        let work = || panics::catch(|| self.render_here(source, messages, add_generation_prompt));
        expect_room_for("the chat template's thread", STACK)?;
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("welm-chat".into()).stack_size(STACK);
            let thread = thread.spawn_scoped(scope, work);
            let thread = thread.map_err(|e| refused("the chat template's thread", STACK, &e))?;
            thread.join().unwrap_or(Err("its thread ended".into())).unwrap_or_else(|panic| Err(fault(panic)))
        })
    }

    fn render_here(&self, source: &str, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        // As Python reads a text file, and Jinja2 a template.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let source = guard::guarded(&source).map_err(fault)?;
        let mut env = Environment::new();
        env.remove_global("debug");
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(fault)?);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_recursion_limit(RECURSION);
        let bytes: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        env.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + bytes as u64));
        functions::add_to(&mut env);
        guard::add_to(&mut env);

        let message = |m: &Message| context! { role => m.role.as_str(), content => m.content.as_str() };
        let mut variables: HashMap<&str, Value> =
            self.special.iter().map(|(name, text)| (*name, Value::from(text.as_str()))).collect();
        variables.insert("messages", messages.iter().map(message).collect());
        variables.insert("add_generation_prompt", Value::from(add_generation_prompt));
        let template = env.template_from_str(&source).map_err(|e| failed(&e))?;
        template.render(Value::from(variables)).map_err(|e| failed(&e))
    }
}

/// What minijinja says, with the line but without the name that it gives the template.
fn failed(error: &minijinja::Error) -> Error {
    let kind = error.kind();
    let reason = error.detail().map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}"));
    match error.line() {
        Some(line) => fault(format!("line {line}: {reason}")),
        None => fault(reason),
    }
}

fn fault(reason: impl Display) -> Error {
    Error::ChatTemplate(reason.to_string())
}

#[cfg(test)]
mod tests;
