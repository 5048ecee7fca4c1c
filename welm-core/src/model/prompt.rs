//! Prompts, and how they become tokens that fit.

use std::borrow::Cow;

use super::Model;
use crate::error::{Error, Result};
use crate::estimate::Estimate;
use crate::output::FinishReason;
use crate::tokenizer::{ChatRequest, Halt, Watch};

/// Tokens of a prompt that are counted, though they are more than fit.
const COUNTED_TOKENS: usize = 1 << 14;

/// A prompt: text, tokens as they are, or a conversation.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Prompt<'a> {
    /// Text, tokenized by the model, with the token that starts a text where the model has one.
    Text(&'a str),
    /// Tokens; nothing is added. If they end within a character, the generated text begins with U+FFFD for the rest of it.
    Tokens(&'a [u32]),
    /// A conversation, by the model's chat template: what [`Model::chat_request_tokens`] gives. Special tokens are
    /// parsed, whatever [`GenerateOptions::parse_special`](crate::GenerateOptions::parse_special) says, and none is put in front.
    Chat(&'a ChatRequest),
}

/// A prompt before it is tokenized.
pub(super) enum Given<'a> {
    Text(Written<'a>),
    Tokens(&'a [u32]),
}

/// A text, and how it is tokenized.
pub(super) struct Written<'a> {
    pub(super) text: Cow<'a, str>,
    pub(super) add_special: bool,
    pub(super) parse_special: bool,
}

impl<'a> From<&'a str> for Prompt<'a> {
    fn from(text: &'a str) -> Self {
        Prompt::Text(text)
    }
}

impl<'a> From<&'a String> for Prompt<'a> {
    fn from(text: &'a String) -> Self {
        Prompt::Text(text)
    }
}

impl<'a> From<&'a [u32]> for Prompt<'a> {
    fn from(tokens: &'a [u32]) -> Self {
        Prompt::Tokens(tokens)
    }
}

impl<'a> From<&'a Vec<u32>> for Prompt<'a> {
    fn from(tokens: &'a Vec<u32>) -> Self {
        Prompt::Tokens(tokens)
    }
}

impl<'a> From<&'a ChatRequest> for Prompt<'a> {
    fn from(chat: &'a ChatRequest) -> Self {
        Prompt::Chat(chat)
    }
}

impl Model {
    /// What a prompt is made of.
    pub(super) fn given<'a>(&self, prompt: Prompt<'a>, parse_special: bool) -> Result<Given<'a>> {
        Ok(match prompt {
            Prompt::Text(text) => {
                Given::Text(Written { text: text.into(), add_special: true, parse_special })
            }
            Prompt::Tokens(ids) => Given::Tokens(ids),
            Prompt::Chat(chat) => {
                let text = self.chat_request_prompt(chat)?.into();
                Given::Text(Written { text, add_special: false, parse_special: true })
            }
        })
    }

    /// A prompt's tokens, at least one.
    pub(super) fn encode(&self, prompt: &Given<'_>) -> Result<Vec<u32>> {
        match self.encode_watched(prompt, 0, &|| None)? {
            Ok(tokens) => Ok(tokens),
            Err(_) => unreachable!("nothing stops it"),
        }
    }

    /// As [`Model::encode`], or why it ended before. A text that has far more tokens than fit together with
    /// `max_tokens` is refused before all of it is looked at.
    pub(super) fn encode_watched(
        &self,
        prompt: &Given<'_>,
        max_tokens: usize,
        stop: &dyn Fn() -> Option<FinishReason>,
    ) -> Result<std::result::Result<Vec<u32>, FinishReason>> {
        let mut tokens = match prompt {
            Given::Text(written) => match self.encode_text(written, max_tokens, stop)? {
                Ok(tokens) => tokens,
                Err(reason) => return Ok(Err(reason)),
            },
            Given::Tokens(ids) => ids.to_vec(),
        };
        if tokens.is_empty() {
            tokens.push(self.start_token().ok_or(Error::EmptyPrompt)?);
        }
        self.check_tokens("prompt", tokens.iter().copied())?;
        Ok(Ok(tokens))
    }

    /// The tokens of a text that is to be computed; otherwise as [`Model::encode_watched`].
    pub(super) fn encode_text(
        &self,
        Written { text, add_special, parse_special }: &Written<'_>,
        max_tokens: usize,
        stop: &dyn Fn() -> Option<FinishReason>,
    ) -> Result<std::result::Result<Vec<u32>, FinishReason>> {
        let (context, _) = self.context();
        // Where it costs little, the error has the exact number.
        let mut watch = Watch::new(stop, context + context.max(COUNTED_TOKENS));
        match self.tokenizer()?.encode_watched(text, *add_special, *parse_special, &mut watch) {
            Ok(tokens) => Ok(Ok(tokens)),
            Err(Halt::Stopped(reason)) => Ok(Err(reason)),
            Err(Halt::TooMany(n)) => Err(self.too_long(n, max_tokens)),
            Err(Halt::Failed(error)) => Err(error),
        }
    }

    /// The most tokens of a request, and what has no room for more.
    #[doc(hidden)] // for the bindings
    pub fn context(&self) -> (usize, &'static str) {
        let Estimate { context_tokens, cache_tokens, .. } = self.inner.estimate;
        let context = self.inner.config.longest_context().min(context_tokens.max(1));
        (context, if context == cache_tokens { "KV cache" } else { "context" })
    }

    /// The token in front of an empty text.
    pub(super) fn start_token(&self) -> Option<u32> {
        let config = &self.inner.config;
        config.bos_token_id.or(config.eos_token_ids.first().copied())
    }

    pub(super) fn check_tokens(
        &self,
        option: &'static str,
        mut ids: impl Iterator<Item = u32>,
    ) -> Result<()> {
        let vocab_size = self.inner.config.vocab_size;
        match ids.find(|&id| id as usize >= vocab_size) {
            Some(id) => Err(Error::option(option, format!("expected tokens below {vocab_size}, got {id}"))),
            None => Ok(()),
        }
    }

    pub(super) fn check_length(&self, prompt: usize, max_tokens: usize) -> Result<()> {
        let fits = prompt.saturating_add(max_tokens) <= self.context().0;
        if fits { Ok(()) } else { Err(self.too_long(prompt, max_tokens)) }
    }

    /// The error for a prompt of so many tokens.
    #[doc(hidden)] // for the bindings
    pub fn too_long(&self, prompt: usize, max_tokens: usize) -> Error {
        let (limit, what) = self.context();
        Error::TooLong { prompt, requested: prompt.saturating_add(max_tokens), limit, what }
    }
}
