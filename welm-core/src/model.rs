//! [`Model`]: what a program holds, and the only way into the engine.

mod score;

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::backend::cpu::Cpu;
#[cfg(feature = "kernels")]
use crate::backend::cuda::Cuda;
use crate::backend::{Backend, Limits};
use crate::checkpoint::describe::Description;
use crate::checkpoint::load::Source;
use crate::checkpoint::open::{Opened, open};
use crate::config::ModelConfig;
use crate::engine::sequence::{Event, Request, Task, interruption};
use crate::engine::stats::Stats;
use crate::engine::{Engine, Handle};
use crate::error::{Error, Result};
use crate::estimate::{Estimate, limits};
use crate::host::bus::{self, Unblocked};
use crate::host::fork::Local;
use crate::host::memory::{Available, vec_for};
use crate::kv_cache::KvCache;
use crate::options::{Activations, CancelToken, Device, Dtype, GenerateOptions, LoadOptions, LoadProgress};
use crate::output::{Choice, Finish, FinishReason, Generation, Piece, Usage};
use crate::sampler::SamplerParams;
use crate::tokenizer::{ChatRequest, ChatTemplate, Halt, Message, Tokenizer, Watch};
use crate::transformer::{Scratch, Weights};

/// Tokens of a prompt that are counted, though they are more than fit.
const COUNTED_TOKENS: usize = 1 << 14;

/// A prompt: text, tokens as they are, or a conversation.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'a> {
    /// Text, tokenized by the model, with the token that starts a text where the model has one.
    Text(&'a str),
    /// Tokens; nothing is added.
    Tokens(&'a [u32]),
    /// A conversation, by the model's chat template: what [`Model::chat_request_tokens`] gives. Special tokens are
    /// parsed, whatever [`GenerateOptions::parse_special`] says, and none is put in front.
    Chat(&'a ChatRequest),
}

/// A prompt before it is tokenized.
enum Given<'a> {
    Text(Written<'a>),
    Tokens(&'a [u32]),
}

/// A text, and how it is tokenized.
struct Written<'a> {
    text: Cow<'a, str>,
    add_special: bool,
    parse_special: bool,
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

/// The first device, if it can run this model as asked.
#[cfg(feature = "kernels")]
fn cuda_for(source: &Source, options: &LoadOptions) -> Result<welm_kernels::Device> {
    let device = welm_kernels::Device::open(0)?;
    plan(source, options, &device)?;
    Ok(device)
}

/// Memory of a device, if the model can run there as asked and fits; with the options, in which the tokens of a step are no
/// longer left open.
#[cfg(feature = "kernels")]
fn plan(
    source: &Source,
    options: &LoadOptions,
    device: &welm_kernels::Device,
) -> Result<(Estimate, LoadOptions)> {
    Cuda::check(&source.config, options)?;
    Estimate::on_device::<Cuda>(source, options, device.free_bytes()?)
}

#[cfg(not(feature = "kernels"))]
fn cuda_for(_source: &Source, _options: &LoadOptions) -> Result<std::convert::Infallible> {
    Err(no_cuda())
}

#[cfg(not(feature = "kernels"))]
fn no_cuda() -> Error {
    let reason = "this build has no CUDA backend; enable the feature `cuda`".into();
    Error::Unavailable { what: "cuda device".into(), reason }
}

/// Has a mapped file that is truncated be an error, if that is wanted; while the result lives also on this thread.
fn guard(options: &LoadOptions) -> Option<Unblocked> {
    options.guard_mapped_files.then(|| {
        bus::install();
        Unblocked::here()
    })
}

fn whole_messages(messages: &[Message], add_generation_prompt: bool) -> ChatRequest {
    let mut request = ChatRequest::new(messages);
    request.add_generation_prompt = Some(add_generation_prompt);
    request
}

impl Model {
    /// Loads a Hugging Face folder, an int8 folder of [`crate::quantize`], a GGUF file, or the one GGUF file of a folder.
    /// Nothing is downloaded.
    ///
    /// Files are mapped: they must not be changed while the model lives (see [`LoadOptions::guard_mapped_files`]). A folder without `tokenizer.json`
    /// gives a model that takes and returns tokens only.
    ///
    /// Whatever the files hold is used, or cannot matter, or is an error: settings that change the arithmetic and are
    /// not computed here, and tensors that nothing reads ([`LoadOptions::allow_unread_tensors`]). An output that is stored
    /// is used, whatever `tie_word_embeddings` says, as in transformers; one that is neither stored nor tied is an error.
    /// Norms, biases, rotary values and the scales of quantised weights must be finite. So must matrices of floats that
    /// are converted; those that are used where they lie in the file are not looked at before they are computed with.
    ///
    /// A text ends at the tokens that `generation_config.json` names, or else `config.json`, or else the tokenizer's
    /// files; in a GGUF file at those of its keys, and at names such as `<|eot_id|>` that llama.cpp ends at, too.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::InvalidFile`], [`Error::Config`] or [`Error::Tensor`] for files that are
    /// absent, damaged or not supported; [`Error::OutOfMemory`] before anything is read if it cannot fit;
    /// [`Error::InvalidOption`], [`Error::Unavailable`], [`Error::LoadCancelled`].
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Model> {
        options.validate()?;
        let _guarded = guard(options);
        let (path, opened) = (path.as_ref(), open(path.as_ref(), true, options.allow_unread_tensors)?);
        match options.device {
            Device::Cpu => Self::load_on_cpu(path, opened, options),
            #[cfg(feature = "kernels")]
            Device::Cuda(ordinal) => {
                Self::load_on_cuda(path, opened, options, welm_kernels::Device::open(ordinal)?)
            }
            #[cfg(not(feature = "kernels"))]
            Device::Cuda(_) => Err(no_cuda()),
            Device::Auto => {
                match cuda_for(&opened.source, options) {
                    #[cfg(feature = "kernels")]
                    Ok(device) => {
                        tracing::info!(?device, "device: cuda");
                        return Self::load_on_cuda(path, opened, options, device);
                    }
                    #[cfg(not(feature = "kernels"))]
                    Ok(never) => match never {},
                    #[cfg(feature = "kernels")]
                    Err(error @ Error::InvalidOption { option: welm_kernels::device::NO_HOPPER, .. }) => {
                        return Err(error);
                    }
                    Err(reason) => tracing::info!(%reason, "device: cpu"),
                }
                Self::load_on_cpu(path, opened, options)
            }
        }
    }

    /// As [`Model::load`], on a device that the caller has opened; [`LoadOptions::device`] is not looked at.
    ///
    /// # Errors
    /// As [`Model::load`].
    #[cfg(feature = "kernels")]
    pub fn load_on_device(
        path: impl AsRef<Path>,
        options: &LoadOptions,
        device: welm_kernels::Device,
    ) -> Result<Model> {
        options.validate()?;
        let _guarded = guard(options);
        let opened = open(path.as_ref(), true, options.allow_unread_tensors)?;
        Self::load_on_cuda(path.as_ref(), opened, options, device)
    }

    /// As [`Model::load_on_device`], or without a device on the CPU, with what `change` makes of the configuration: for
    /// tests of what no family has yet.
    #[cfg(feature = "kernels")]
    #[doc(hidden)]
    pub fn load_as(
        path: impl AsRef<Path>,
        options: &LoadOptions,
        device: Option<welm_kernels::Device>,
        change: impl FnOnce(&mut ModelConfig),
    ) -> Result<Model> {
        options.validate()?;
        let mut opened = open(path.as_ref(), true, options.allow_unread_tensors)?;
        change(&mut opened.source.config);
        opened.source.config.validate()?;
        match device {
            Some(device) => Self::load_on_cuda(path.as_ref(), opened, options, device),
            None => Self::load_on_cpu(path.as_ref(), opened, options),
        }
    }

    fn load_on_cpu(path: &Path, opened: Opened, options: &LoadOptions) -> Result<Model> {
        if options.activations == Activations::Int8Rotated {
            let reason = "expected auto, int8 or int16 on the cpu, got int8_rotated, which is for cuda";
            return Err(Error::option("activations", reason));
        }
        let estimate = Estimate::of_source::<Cpu>(&opened.source, options)?;
        let available = Available::now();
        estimate.check(Available { memory: options.memory_limit.or(available.memory), ..available })?;
        Self::start(path, opened, options, estimate, |config, limits| Cpu::new(config, options, limits))
    }

    #[cfg(feature = "kernels")]
    fn load_on_cuda(
        path: &Path,
        opened: Opened,
        options: &LoadOptions,
        device: welm_kernels::Device,
    ) -> Result<Model> {
        let (estimate, options) = &plan(&opened.source, options, &device)?;
        if opened.source.is_rotated() {
            tracing::warn!(
                "int8 weights in rotated groups of 128 are rounded once more, to what cuda computes with"
            );
        }
        Self::start(path, opened, options, *estimate, |config, limits| {
            Cuda::new(device, config, options, limits)
        })
    }

    /// Loads everything onto a backend and starts its engine.
    fn start<B: Backend>(
        path: &Path,
        Opened { source, tokenizer, chat }: Opened,
        options: &LoadOptions,
        estimate: Estimate,
        backend: impl FnOnce(&ModelConfig, Limits) -> Result<B>,
    ) -> Result<Model> {
        let mut config = source.config.clone();
        if source.is_packed() && matches!(options.dtype, Dtype::F32 | Dtype::Bf16) {
            tracing::warn!(asked = %options.dtype, "the weights of an int8 folder stay int8");
        }
        if let Some(tokenizer) = &tokenizer {
            if tokenizer.vocab_size() > config.vocab_size {
                // A prompt that holds such a token is refused; the others are not the poorer for it.
                let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
                tracing::warn!(tokens, rows, "the tokenizer knows tokens that the model has no row for");
            }
            config.bos_token_id = config.bos_token_id.or(tokenizer.bos());
            if config.eos_token_ids.is_empty() {
                config.eos_token_ids.extend(tokenizer.eos());
            }
        }
        let limits = limits::<B>(&config, options)?;
        let started = Instant::now();

        let mut backend = backend(&config, limits)?;
        let total_bytes = source.stored_bytes()?;
        let mut done_bytes = 0;
        let weights = Weights::load(&mut backend, &source, |bytes| {
            done_bytes += bytes;
            let go_on = options.progress.as_ref().is_none_or(|f| f(LoadProgress { done_bytes, total_bytes }));
            if go_on { Ok(()) } else { Err(Error::LoadCancelled) }
        })?;
        let kv = KvCache::new(config.n_layers, || backend.kv_layer(limits.n_blocks))?;
        let scratch = Scratch::new(&mut backend, &config, limits)?;
        let mut files = source.files();
        files.check()?;
        let description = backend.describe();
        tracing::info!(
            path = %path.display(), family = config.family, parameters = config.n_params(),
            weights_bytes = estimate.mapped_bytes + estimate.converted_bytes,
            cache_bytes = estimate.cache_bytes, scratch_bytes = estimate.scratch_bytes,
            chunk_tokens = limits.chunk_tokens,
            backend = description, seconds = started.elapsed().as_secs_f64(), "model loaded"
        );

        let tokenizer = tokenizer.map(Arc::new);
        let engine = Engine {
            backend,
            weights,
            kv,
            scratch,
            limits,
            tokenizer: tokenizer.clone(),
            eos: config.eos_token_ids.clone(),
            vocab_size: config.vocab_size,
            files,
        };
        let engine = Handle::start(engine, options)?;
        let prefix_cache = options.prefix_cache;
        Ok(Model {
            inner: Arc::new(Inner { engine, tokenizer, chat, config, estimate, description, prefix_cache }),
        })
    }

    /// What a model's files hold, whether [`Model::load`] takes them or not, and if not, why. Reads their headers.
    ///
    /// ```
    /// # fn main() -> welm_core::Result<()> {
    /// let files = welm_core::Model::describe("../examples/welm-nano")?;
    /// assert_eq!(files.family.as_deref(), Some("welm"));
    /// assert_eq!(files.unsupported, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::InvalidFile`] for files that are absent, damaged or no model's.
    pub fn describe(path: impl AsRef<Path>) -> Result<Description> {
        Description::of(path.as_ref())
    }

    /// Memory that [`Model::load`] with these options would take, from the headers of the files: the device's with
    /// [`Device::Cuda`], which need not be there, otherwise the CPU's; with prompts in steps of as many tokens as a device
    /// takes that has room for them ([`LoadOptions::chunk_tokens`]). Of values, only an output that is stored beside a
    /// tied embedding is read, to see whether it is another one.
    ///
    /// # Errors
    /// As [`Model::load`], without the ones about memory.
    pub fn estimate(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Estimate> {
        options.validate()?;
        let _guarded = guard(options);
        let source = open(path.as_ref(), false, options.allow_unread_tensors)?.source;
        source.files().check()?; // what was read of them
        match options.device {
            #[cfg(feature = "kernels")]
            Device::Cuda(_) => Estimate::of_source::<Cuda>(&source, options),
            #[cfg(not(feature = "kernels"))]
            Device::Cuda(_) => Err(no_cuda()),
            Device::Auto | Device::Cpu => Estimate::of_source::<Cpu>(&source, options),
        }
    }

    /// Continues a prompt; returns when all `n` sequences have ended.
    ///
    /// Cancelling and deadlines are no errors: the sequences end with that [`FinishReason`] and what they
    /// have. Calls from many threads are computed together.
    ///
    /// # Errors
    /// [`Error::InvalidOption`], [`Error::TooLong`], [`Error::EmptyPrompt`], [`Error::Tokenizer`]; those of
    /// [`Model::chat_prompt`] for a conversation; [`Error::QueueFull`] if too many wait; [`Error::EngineStopped`] after an internal fault;
    /// [`Error::Forked`] in a child that was forked after the model was loaded.
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
    /// As [`Model::generate`], those of the request at once and those of the engine as an item.
    pub fn stream<'p>(&self, prompt: impl Into<Prompt<'p>>, options: &GenerateOptions) -> Result<Stream> {
        options.validate()?;
        self.inner.engine.expect_here()?;
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
        let mut request = self.request(Task::Generate, tokens);
        request.0.echo = echo;
        request.0.max_tokens = options.max_tokens;
        request.0.n = options.n;
        request.0.sampling = SamplerParams::from(options);
        request.0.logprobs = options.logprobs;
        request.0.stop = options.stop.clone().into();
        request.0.stop_token_ids = options.stop_token_ids.clone();
        request.0.cache_salt = options.cache_salt.as_deref().map(Arc::from);
        request.0.seed = options.seed.unwrap_or_else(random_seed);
        request.0.ignore_eos = options.ignore_eos;
        request.0.deadline = deadline;
        request.0.cancel = options.cancel.clone();
        self.submit(request)
    }

    /// The model's answer to a conversation, by its own chat template.
    ///
    /// It is what [`Model::generate`] gives for a [`ChatRequest`] of these messages; give it one for tools, documents, and
    /// what else templates ask for. The answer ends at the model's end tokens, of which a chat model has one for the end of
    /// a turn. With [`GenerateOptions::echo`] the text begins with [`Model::chat_prompt`].
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
    /// row-major. For measuring; a caller bounds the memory by the positions it asks for. The prefix cache is used as for
    /// a request without a [`GenerateOptions::cache_salt`].
    ///
    /// # Errors
    /// As [`Model::generate`]; [`Error::InvalidOption`] if `from` is after the prompt; [`Error::Allocation`] if there
    /// is not the memory for so many.
    pub fn logits<'p>(&self, prompt: impl Into<Prompt<'p>>, from: usize) -> Result<Vec<f32>> {
        self.inner.engine.expect_here()?;
        let tokens = self.encode(&self.given(prompt.into(), false)?)?;
        self.check_length(tokens.len(), 0)?;
        if from >= tokens.len() {
            let reason = format!("expected less than {}, the tokens of the prompt, got {from}", tokens.len());
            return Err(Error::option("from", reason));
        }
        // Here, and whole: the engine only writes into it, and takes no memory that it may not get.
        let values = (tokens.len() - from).saturating_mul(self.inner.config.vocab_size);
        let mut request = self.request(Task::Logits { from }, tokens);
        request.0.logits = vec_for("logits", values)?;
        let stream = self.submit(request)?;
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

    /// The text of tokens; bytes that are no UTF-8 become U+FFFD, special tokens nothing.
    pub fn detokenize(&self, tokens: &[u32]) -> String {
        self.inner.tokenizer.as_ref().map_or_else(String::new, |t| t.decode(tokens))
    }

    /// The bytes that a token stands for; none for a special one.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.inner.tokenizer.as_ref().map_or(&[], |t| t.token_bytes(token))
    }

    /// Whether a token is a control token, which is no part of a text.
    pub fn is_special(&self, token: u32) -> bool {
        self.inner.tokenizer.as_ref().is_some_and(|t| t.is_special(token))
    }

    /// The id of a token as the vocabulary spells it, special ones included.
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
    /// Templates see what they see in transformers: messages with all their keys, without those that are null, and
    /// Python's values. The text is the same, or there is an error that names what is not supported.
    ///
    /// The template is a program of the model's author. It runs with bounds on steps, memory and depth, and sees
    /// nothing but the request, the special tokens and the local time.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if the model has none, or it fails; [`Error::InvalidFile`] or [`Error::Io`] if the
    /// file with it cannot be read; [`Error::InvalidOption`] without a message, or for values that are too deep.
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
    /// parsed, and none is put in front, since the template names the one that starts a text.
    ///
    /// Special tokens that are written *in a message*, such as `<|im_end|>`, are parsed too, as in transformers: who
    /// may write a message can end it and begin another one in any role. Where messages are not trusted, look for
    /// such texts first ([`Model::token_id`] knows them).
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

    /// Counters of the engine, at this moment.
    pub fn stats(&self) -> Stats {
        self.inner.engine.counters.snapshot()
    }

    /// Shape and settings.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// The memory it takes.
    pub fn memory(&self) -> Estimate {
        self.inner.estimate
    }

    /// Where it runs: device, threads, instruction set.
    pub fn backend(&self) -> &str {
        &self.inner.description
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        let missing = || Error::Tokenizer("this model has none (no tokenizer.json); give tokens".into());
        self.inner.tokenizer.as_deref().ok_or_else(missing)
    }

    /// What a prompt is made of.
    fn given<'a>(&self, prompt: Prompt<'a>, parse_special: bool) -> Result<Given<'a>> {
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
    fn encode(&self, prompt: &Given<'_>) -> Result<Vec<u32>> {
        match self.encode_watched(prompt, 0, &|| None)? {
            Ok(tokens) => Ok(tokens),
            Err(_) => unreachable!("nothing stops it"),
        }
    }

    /// As [`Model::encode`], or why it ended before. A text that has far more tokens than fit together with
    /// `max_tokens` is refused before all of it is looked at.
    fn encode_watched(
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
    fn encode_text(
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
    fn context(&self) -> (usize, &'static str) {
        let Estimate { context_tokens, cache_tokens, .. } = self.inner.estimate;
        let context = self.inner.config.max_context.min(context_tokens.max(1));
        (context, if context == cache_tokens { "KV cache" } else { "context" })
    }

    /// A request that ended before the engine saw it.
    fn ended(&self, reason: FinishReason, prompt: &Given<'_>, options: &GenerateOptions) -> Stream {
        let echo = match prompt {
            Given::Text(written) if options.echo => &*written.text,
            _ => "", // tokens are not tokenized, so nothing ends that
        };
        let (request, events) = self.request(Task::Generate, Vec::new());
        let finish = Some(Finish { reason, completion_tokens: 0, cached_tokens: 0, end_token: None });
        for index in 0..options.n {
            let piece = Piece { index, text: echo.into(), tokens: Vec::new(), finish };
            // The other end is in this function.
            let _ = request.events.send(Ok(Event::Piece(piece)));
        }
        let (n, seed) = (options.n, options.seed.unwrap_or_else(random_seed));
        let events = Local::new(events);
        Stream { model: self.clone(), events, dropped: request.dropped, n, open: n, seed, prompt_tokens: 0 }
    }

    /// The token in front of an empty text.
    fn start_token(&self) -> Option<u32> {
        let config = &self.inner.config;
        config.bos_token_id.or(config.eos_token_ids.first().copied())
    }

    fn check_tokens(&self, option: &'static str, mut ids: impl Iterator<Item = u32>) -> Result<()> {
        let vocab_size = self.inner.config.vocab_size;
        match ids.find(|&id| id as usize >= vocab_size) {
            Some(id) => Err(Error::option(option, format!("expected tokens below {vocab_size}, got {id}"))),
            None => Ok(()),
        }
    }

    fn check_length(&self, prompt: usize, max_tokens: usize) -> Result<()> {
        let fits = prompt.saturating_add(max_tokens) <= self.context().0;
        if fits { Ok(()) } else { Err(self.too_long(prompt, max_tokens)) }
    }

    fn too_long(&self, prompt: usize, max_tokens: usize) -> Error {
        let (limit, what) = self.context();
        Error::TooLong { prompt, requested: prompt.saturating_add(max_tokens), limit, what }
    }

    /// A request with everything off, and the receiving end of its events.
    fn request(&self, task: Task, prompt: Vec<u32>) -> (Request, Receiver<Result<Event>>) {
        let (events, receiver) = channel();
        let request = Request {
            task,
            prompt,
            echo: None,
            max_tokens: 0,
            n: 1,
            sampling: SamplerParams::from(&GenerateOptions::greedy(0)),
            logprobs: None,
            stop: Vec::new().into(),
            stop_token_ids: Vec::new(),
            seed: 0,
            ignore_eos: false,
            cache_salt: None,
            submitted: Instant::now(),
            deadline: None,
            cancel: None,
            dropped: CancelToken::new(),
            logits: Vec::new(),
            events,
        };
        (request, receiver)
    }

    fn submit(&self, (request, events): (Request, Receiver<Result<Event>>)) -> Result<Stream> {
        let (prompt_tokens, seed, n) = (request.prompt.len(), request.seed, request.n);
        let dropped = request.dropped.clone();
        self.inner.engine.submit(request)?;
        let events = Local::new(events);
        Ok(Stream { model: self.clone(), events, dropped, n, open: n, seed, prompt_tokens })
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

/// Pieces of a request as they come; an iterator that ends when all `n` sequences have.
///
/// Dropping it cancels the request. An error is the last item.
pub struct Stream {
    model: Model,
    events: Local<Receiver<Result<Event>>>,
    dropped: CancelToken,
    n: usize,    // sequences
    open: usize, // of which have not ended
    seed: u64,
    prompt_tokens: usize,
}

impl Stream {
    /// The seed that is used; the same request with this seed gives the same bits.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// A generation of as many sequences, with no piece in it yet: for those who [`Generation::push`] the pieces
    /// themselves.
    pub fn generation(&self) -> Generation {
        let choice = Choice {
            text: String::new(),
            tokens: Vec::new(),
            finish_reason: FinishReason::Length,
            end_token: None,
        };
        let usage = Usage { prompt_tokens: self.prompt_tokens, ..Usage::default() };
        Generation { choices: vec![choice; self.n], seed: self.seed, usage }
    }

    /// Ends the request; pieces that are under way still come, and then the last ones.
    pub fn cancel(&self) {
        self.canceller()();
    }

    /// As [`Stream::cancel`], for another thread while this one waits for a piece.
    pub fn canceller(&self) -> impl Fn() + Send + Sync + 'static {
        let (model, dropped) = (self.model.clone(), self.dropped.clone());
        move || {
            dropped.cancel();
            model.inner.engine.wake();
        }
    }

    /// As the iterator's `next`, but waits no longer than this: `Pending` if nothing came, and the request goes on.
    /// For those who must look at something else from time to time, such as signals.
    ///
    /// ```
    /// # fn main() -> welm_core::Result<()> {
    /// use std::task::Poll;
    /// use std::time::Duration;
    /// use welm_core::{GenerateOptions, LoadOptions, Model};
    /// let model = Model::load("../examples/welm-nano", &LoadOptions::default())?;
    /// let mut stream = model.stream("床前明月光，", &GenerateOptions::greedy(18))?;
    /// loop {
    ///     match stream.next_timeout(Duration::from_millis(20)) {
    ///         Poll::Ready(Some(piece)) => print!("{}", piece?.text),
    ///         Poll::Ready(None) => break,
    ///         Poll::Pending => {} // the place to look at something else
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn next_timeout(&mut self, timeout: Duration) -> Poll<Option<Result<Piece>>> {
        if self.open == 0 {
            return Poll::Ready(None);
        }
        let event = match self.events.get().map(|events| events.recv_timeout(timeout)) {
            Ok(Ok(event)) => event,
            Ok(Err(RecvTimeoutError::Timeout)) => return Poll::Pending,
            Ok(Err(RecvTimeoutError::Disconnected)) => Err(self.model.inner.engine.fault()),
            Err(forked) => Err(forked),
        };
        Poll::Ready(self.pass(event))
    }

    fn receive(&self) -> Result<Event> {
        self.events.get()?.recv().unwrap_or_else(|_| Err(self.model.inner.engine.fault()))
    }

    /// An event as an item; keeps count of what is open.
    fn pass(&mut self, event: Result<Event>) -> Option<Result<Piece>> {
        match event {
            Ok(Event::Piece(piece)) => {
                self.open -= usize::from(piece.finish.is_some());
                Some(Ok(piece))
            }
            Ok(Event::Logits(_)) => self.next(),
            Err(error) => {
                self.open = 0;
                Some(Err(error))
            }
        }
    }
}

impl Iterator for Stream {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.open == 0 {
            return None;
        }
        let event = self.receive();
        self.pass(event)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.open > 0 {
            self.cancel();
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("open", &self.open).field("seed", &self.seed).finish_non_exhaustive()
    }
}

/// A seed from the system's randomness.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_with_a_timeout_loses_nothing() {
        let model = Model::load("../examples/welm-nano", &LoadOptions::default()).unwrap();
        let options = GenerateOptions { n: 3, ignore_eos: true, seed: Some(1), ..GenerateOptions::default() };
        let want: Vec<_> = model.stream("春", &options).unwrap().map(Result::unwrap).collect();
        let mut stream = model.stream("春", &options).unwrap();
        let (mut pieces, mut waits) = (Vec::new(), 0);
        loop {
            match stream.next_timeout(Duration::ZERO) {
                Poll::Ready(Some(piece)) => pieces.push(piece.unwrap()),
                Poll::Ready(None) => break,
                Poll::Pending => waits += 1,
            }
        }
        assert_eq!(pieces, want);
        assert!(waits > 0, "the first step takes longer than no time");
        assert_eq!((stream.next_timeout(Duration::MAX), stream.next()), (Poll::Ready(None), None));
    }

    #[test]
    fn a_deadline_and_a_cancel_reach_the_tokenizer() {
        let model = Model::load("../examples/welm-nano", &LoadOptions::default()).unwrap();
        let text = "春".repeat(500);
        let cancel = CancelToken::new();
        cancel.cancel();
        let late = GenerateOptions { n: 2, deadline: Some(Duration::ZERO), ..GenerateOptions::default() };
        let cancelled = GenerateOptions { n: 2, cancel: Some(cancel), ..GenerateOptions::default() };
        for (options, want) in [(late, FinishReason::Deadline), (cancelled, FinishReason::Cancelled)] {
            let answer = model.generate(text.as_str(), &options).unwrap();
            let reasons: Vec<_> = answer.choices.iter().map(|c| (c.finish_reason, c.tokens.len())).collect();
            assert_eq!(reasons, [(want, 0), (want, 0)]);
        }
        assert_eq!(model.stats().open, 0);
    }

    #[test]
    fn a_prompt_that_must_be_too_long_is_refused_before_all_of_it_is_looked_at() {
        let model = Model::load("../examples/welm-nano", &LoadOptions::default()).unwrap();
        let limit = model.context().0;
        for (n, exact) in [(limit + 1, true), (10_000_000, false)] {
            match model.generate("\n".repeat(n).as_str(), &GenerateOptions::greedy(1)) {
                Err(Error::TooLong { prompt, requested, .. }) => {
                    assert_eq!((requested, prompt > limit), (prompt + 1, true));
                    assert!(exact || prompt < n, "{prompt}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
