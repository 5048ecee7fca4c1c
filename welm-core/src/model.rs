//! [`Model`]: what a program holds, and the only way into the engine.

mod load;
mod prompt;
mod score;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Instant;

use self::prompt::Given;
use crate::config::ModelConfig;
use crate::engine::request::{Request, Task, interruption};
use crate::engine::stats::Stats;
use crate::engine::{Event, Handle};
use crate::error::{Error, Result};
use crate::estimate::Estimate;
use crate::host::memory::vec_for;
use crate::options::GenerateOptions;
use crate::output::{Finish, FinishReason, Generation, Piece};
use crate::tokenizer::{ChatRequest, ChatTemplate, Message, Tokenizer};

pub use self::prompt::Prompt;
pub use self::stream::Stream;

/// A loaded model. Clones are handles of one engine; it ends when the last handle and stream are gone.
///
/// ```
/// # fn main() -> welm_core::Result<()> {
/// use welm_core::{GenerateOptions, LoadOptions, Model};
/// let model = Model::load("../examples/welm-nano", &LoadOptions::default())?;
/// let answer = model.generate("床前明月光，", &GenerateOptions::greedy(18))?;
/// assert!(answer.usage.completion_tokens <= 18);
/// println!("{}", answer.text());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Handle,
    tokenizer: Option<Arc<Tokenizer>>,
    chat: Option<ChatTemplate>,
    config: ModelConfig,
    estimate: Estimate,
    description: String,
    prefix_cache: bool,
}

fn whole_messages(messages: &[Message], add_generation_prompt: bool) -> ChatRequest {
    let mut request = ChatRequest::new(messages);
    request.add_generation_prompt = Some(add_generation_prompt);
    request
}

impl Model {
    /// Continues a prompt; returns when all `n` sequences have ended.
    ///
    /// Cancelling and deadlines are no errors: the sequences end with that [`FinishReason`] and what they
    /// have. Calls from many threads are computed together.
    ///
    /// # Errors
    /// For the request: [`Error::InvalidOption`], [`Error::TooLong`], [`Error::EmptyPrompt`], [`Error::Tokenizer`]; those of
    /// [`Model::chat_prompt`] for a conversation; [`Error::QueueFull`] if too many wait; [`Error::Forked`] in a child that was
    /// forked after the model was loaded.
    ///
    /// For computing: [`Error::NotFinite`]; [`Error::Device`], after which other requests go on; [`Error::DeviceLost`],
    /// [`Error::InvalidFile`] for a mapped file that was cut short, and [`Error::EngineStopped`] after an internal fault,
    /// after which no request has an answer.
    pub fn generate<'p>(
        &self,
        prompt: impl Into<Prompt<'p>>,
        options: &GenerateOptions,
    ) -> Result<Generation> {
        let stream = self.stream(prompt, options)?;
        let mut generation = stream.generation();
        for piece in stream {
            generation.push(piece?);
        }
        Ok(generation)
    }

    /// As [`Model::generate`], piece by piece. Dropping the stream cancels the request.
    ///
    /// Returns when the prompt is tokenized and queued, before anything of it is computed. Then each [`Iterator::next`]
    /// waits for a piece.
    ///
    /// The texts of one sequence's pieces make its final text; none ends inside a character, and none
    /// shows the beginning of a stop string that later completes.
    ///
    /// # Errors
    /// As [`Model::generate`]. Those for the request are returned from here. Those for computing are the stream's last item.
    pub fn stream<'p>(&self, prompt: impl Into<Prompt<'p>>, options: &GenerateOptions) -> Result<Stream> {
        options.validate()?;
        self.inner.engine.check()?;
        let prompt = self.given(prompt.into(), options.parse_special)?;
        options.validate_tokens(self.inner.config.vocab_size, self.inner.tokenizer.is_some())?;
        let deadline = options.deadline.and_then(|d| Instant::now().checked_add(d));
        let stop = || interruption(options.cancel.as_ref(), deadline, Instant::now());
        let tokens = match self.encode_watched(&prompt, options.max_tokens, &stop)? {
            Ok(tokens) => tokens,
            Err(reason) => return Ok(self.ended(reason, &prompt, options)),
        };
        self.check_length(tokens.len(), options.max_tokens)?;
        if let Some(bos) = self.inner.config.bos_token_id.filter(|&bos| tokens.starts_with(&[bos, bos])) {
            tracing::warn!(
                bos,
                "a prompt begins with two tokens that start a text: its text has one, and the tokenizer puts one in front"
            );
        }
        let echo = options.echo.then(|| match prompt {
            Given::Text(written) => written.text.into_owned(),
            Given::Tokens(ids) => self.detokenize(ids),
        });
        let (mut request, events) = Request::generate(tokens, options);
        request.echo = echo;
        request.seed = options.seed.unwrap_or_else(random_seed);
        request.deadline = deadline;
        Stream::submit(self, (request, events))
    }

    /// The model's answer to a conversation, by its own chat template.
    ///
    /// The same as [`Model::generate`] with a [`ChatRequest`] of these messages. For tools, documents and other variables
    /// of a template, make a [`ChatRequest`] and call that. The answer ends at one of the model's end tokens; a chat model
    /// has one that ends a turn. With [`GenerateOptions::echo`] the text begins with [`Model::chat_prompt`].
    ///
    /// ```
    /// # fn main() -> welm_core::Result<()> {
    /// use welm_core::{ChatRequest, Error, GenerateOptions, LoadOptions, Message, Model};
    /// let model = Model::load("../examples/welm-nano", &LoadOptions::default())?;
    /// let options = GenerateOptions::greedy(18);
    /// let messages = [Message::new("user", "床前明月光，")];
    /// match model.chat(&messages, &options) {
    ///     Ok(answer) => println!("{}", answer.text()),
    ///     Err(Error::ChatTemplate(reason)) => println!("{reason}"), // this model has none
    ///     Err(error) => return Err(error),
    /// }
    /// let mut request = ChatRequest::new(messages);
    /// request.chat_template = Some("{{ messages[0].content }}".into());
    /// let answer = model.generate(&request, &options)?;
    /// # assert_eq!(answer.text(), model.generate("床前明月光，", &options)?.text());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Special tokens that are written *in a message* are parsed, too; see [`Model::chat_tokens`].
    ///
    /// # Errors
    /// As [`Model::generate`] and [`Model::chat_prompt`].
    pub fn chat(&self, messages: &[Message], options: &GenerateOptions) -> Result<Generation> {
        self.generate(&ChatRequest::new(messages), options)
    }

    /// As [`Model::chat`], piece by piece: [`Model::stream`] of a [`ChatRequest`].
    ///
    /// # Errors
    /// As [`Model::chat`].
    pub fn chat_stream(&self, messages: &[Message], options: &GenerateOptions) -> Result<Stream> {
        self.stream(&ChatRequest::new(messages), options)
    }

    /// Logits after each token of a prompt from position `from` on: `(prompt_len - from, vocab_size)`,
    /// row-major, f32. For measurements: the result is large, and a caller keeps it small by a larger `from`. The prefix
    /// cache is shared with requests that have no [`GenerateOptions::cache_salt`].
    ///
    /// # Errors
    /// As [`Model::generate`]; [`Error::InvalidOption`] if `from` is not a position of the prompt; [`Error::Allocation`] if
    /// there is not enough memory for the result.
    pub fn logits<'p>(&self, prompt: impl Into<Prompt<'p>>, from: usize) -> Result<Vec<f32>> {
        self.inner.engine.check()?;
        let tokens = self.encode(&self.given(prompt.into(), false)?)?;
        self.check_length(tokens.len(), 0)?;
        if from >= tokens.len() {
            let reason = format!("expected less than {}, the tokens of the prompt, got {from}", tokens.len());
            return Err(Error::option("from", reason));
        }
        // Here, and whole: the engine only writes into it, and takes no memory that it may not get.
        let values = (tokens.len() - from).saturating_mul(self.inner.config.vocab_size);
        let (mut request, events) = Request::new(Task::Logits { from }, tokens);
        request.logits = vec_for("logits", values)?;
        let stream = Stream::submit(self, (request, events))?;
        let mut logits = Vec::new();
        loop {
            match stream.receive()? {
                Event::Logits(all) => logits = all,
                Event::Piece(piece) if piece.finish.is_some() => return Ok(logits),
                Event::Piece(_) => {}
            }
        }
    }

    /// The tokens of a text, without any that would be added in front of a prompt.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the model has no tokenizer, or that fails.
    pub fn tokenize(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        self.tokenizer()?.encode(text, false, parse_special)
    }

    /// The text of tokens. Bytes that are not UTF-8 become U+FFFD. Special tokens are left out, and so are ids that no token
    /// has. Empty without a tokenizer.
    pub fn detokenize(&self, tokens: &[u32]) -> String {
        self.inner.tokenizer.as_ref().map_or_else(String::new, |t| t.decode(tokens))
    }

    /// The bytes that a token stands for; none for a special one, for an id that no token has, and without a tokenizer.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.inner.tokenizer.as_ref().map_or(&[], |t| t.token_bytes(token))
    }

    /// Whether a token is a control token, which is no part of a text; false without a tokenizer.
    pub fn is_special(&self, token: u32) -> bool {
        self.inner.tokenizer.as_ref().is_some_and(|t| t.is_special(token))
    }

    /// The id of a token as the vocabulary spells it, special ones included; none if there is no such token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.as_ref()?.token_to_id(token)
    }

    /// Whether the model comes with a chat template. One that is not valid shows only when it is used.
    pub fn has_chat_template(&self) -> bool {
        self.inner.chat.as_ref().is_some_and(ChatTemplate::is_present)
    }

    /// The text of a conversation, by the model's own template: what transformers' `apply_chat_template` gives. With
    /// `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// A template sees what it would see in transformers: messages with all their keys, except keys whose value is null,
    /// and values that behave as Python's do. The text is the same as transformers', or there is an error that names what is
    /// not supported.
    ///
    /// The template is a program of the model's author. It runs with bounds on steps, memory and depth, and sees
    /// nothing but the request, the special tokens and the local time.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if the model has none, or it fails, or its file is damaged; [`Error::Io`] if the
    /// file with it cannot be read; [`Error::InvalidOption`] if `messages` is empty, or its values are nested too deeply.
    pub fn chat_prompt(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.chat_request_prompt(&whole_messages(messages, add_generation_prompt))
    }

    /// As [`Model::chat_prompt`], with tools, documents, and what else templates ask for.
    ///
    /// # Errors
    /// As [`Model::chat_prompt`].
    pub fn chat_request_prompt(&self, request: &ChatRequest) -> Result<String> {
        match &self.inner.chat {
            Some(chat) => chat.render(request),
            None => Err(Error::ChatTemplate("this model has none".into())),
        }
    }

    /// The tokens of [`Model::chat_prompt`], ready to be continued by [`Model::generate`]: special tokens are
    /// parsed, and no token is put in front, because the template itself writes the token that starts a text.
    ///
    /// Special tokens that are written *in a message*, such as `<|im_end|>`, are parsed too, as in transformers. So
    /// whoever writes a message can end it early and begin another one in any role. If you do not trust the messages, look
    /// for the spellings of special tokens in them first ([`Model::token_id`], [`Model::is_special`]).
    ///
    /// # Errors
    /// As [`Model::chat_prompt`], and [`Error::Tokenizer`].
    pub fn chat_tokens(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>> {
        self.chat_request_tokens(&whole_messages(messages, add_generation_prompt))
    }

    /// As [`Model::chat_tokens`], of [`Model::chat_request_prompt`].
    ///
    /// # Errors
    /// As [`Model::chat_tokens`].
    pub fn chat_request_tokens(&self, request: &ChatRequest) -> Result<Vec<u32>> {
        self.tokenize(&self.chat_request_prompt(request)?, true)
    }

    /// Whether the engine still runs: for the liveness probe of a service. It computes nothing, and returns at once.
    ///
    /// It looks for no faults. A lost device, or a file that was cut short, is noticed by the next request that computes;
    /// from then on this returns the error. An engine that has ended does not come back: load the model again, or start the
    /// process again.
    ///
    /// # Errors
    /// The error with which the engine ended: [`Error::DeviceLost`], [`Error::InvalidFile`] for a mapped file that was cut
    /// short, [`Error::EngineStopped`] after an internal fault; [`Error::Forked`] in a child that was forked after the model
    /// was loaded.
    pub fn check_health(&self) -> Result<()> {
        self.inner.engine.check()
    }

    /// Counters of the engine, at this moment.
    pub fn stats(&self) -> Stats {
        self.inner.engine.counters.snapshot()
    }

    /// Shape and settings.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// The memory that the loaded model takes, as it was estimated before loading.
    pub fn memory(&self) -> Estimate {
        self.inner.estimate
    }

    /// Where it runs: device, threads, instruction set.
    pub fn backend(&self) -> &str {
        &self.inner.description
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        let missing = || {
            Error::Tokenizer("this model has none (no tokenizer.json or tokenizer.model); give tokens".into())
        };
        self.inner.tokenizer.as_deref().ok_or_else(missing)
    }

    /// A request that ended before the engine saw it.
    fn ended(&self, reason: FinishReason, prompt: &Given<'_>, options: &GenerateOptions) -> Stream {
        let echo = match prompt {
            Given::Text(written) if options.echo => &*written.text,
            _ => "", // tokens are not tokenized, so nothing ends that
        };
        let (mut request, events) = Request::generate(Vec::new(), options);
        request.seed = options.seed.unwrap_or_else(random_seed);
        let finish = Some(Finish { reason, completion_tokens: 0, cached_tokens: 0, end_token: None });
        for index in 0..options.n {
            let piece = Piece { index, text: echo.into(), tokens: Vec::new(), finish };
            request.send(Ok(Event::Piece(piece)));
        }
        Stream::of(self.clone(), &request, events)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("family", &self.inner.config.family)
            .field("parameters", &self.inner.config.n_params())
            .field("backend", &self.inner.description)
            .finish_non_exhaustive()
    }
}

/// A seed from the system's randomness.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
