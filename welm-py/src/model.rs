//! `welm.Model`.

use std::collections::VecDeque;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList};
use welm_core::{self as core, Error};

use crate::argument::Argument;
use crate::chat;
use crate::engine::{Owned, collect, wait_aside};
use crate::error::{OrRaise, exception};
use crate::exit::{detached, enter};
use crate::log;
use crate::options::{self, Progress, generate_options, load_options, model_path, score_options};
use crate::output;
use crate::prompt::{OnePrompt, Prompts};
use crate::request::Request;
use crate::score::{Pairs, Scoring};
use crate::stream::Stream;

/// A loaded model.
///
/// Any number of threads may use one at the same time. Their requests are computed together, and none changes the text
/// of another.
///
/// ``path`` is a Hugging Face folder, an int8 folder of :func:`welm.quantize`, or a GGUF file. Without it, the small
/// model in this package is loaded, which writes verse. Files are mapped: they must not change as long as the model
/// exists. What was loaded, and where it runs, is logged by the logger ``welm`` of :mod:`logging`.
///
/// >>> import welm
/// >>> model = welm.Model()
/// >>> model.generate("床前明月光，", max_tokens=12, temperature=0).text  # doctest: +ELLIPSIS
/// '...'
///
/// Options:
///
/// - ``device``: where the model runs; auto is the first CUDA device that can run it, else the CPU (auto, cpu, cuda
///   or cuda:N; default: auto).
/// - ``dtype``: element type of the weights in memory; auto is never less exact than the file (auto, f32, bf16 or
///   int8; default: auto).
/// - ``cache_dtype``: element type of the cached keys and values; auto is f16 on the CPU and bf16 on CUDA, which has
///   no other (auto, f32, bf16 or f16; default: auto).
/// - ``activations``: precision of activations where they are multiplied by int8 or four-bit weights (auto, int8,
///   int8_rotated or int16; default: auto).
/// - ``threads``: compute threads (1 to 1024; default: as many as CPU affinity and cgroup quota allow).
/// - ``isa``: instruction set to use at most, such as avx2 or neon (default: what WELM_ISA says, or else the best
///   that the machine has).
/// - ``context_tokens``: most tokens of one sequence (1 to 16777216; default: the limit of the model).
/// - ``cache_tokens``: tokens that the KV cache holds, over all sequences (1 to 4294967296; default: eight full
///   contexts, but no more than 32768).
/// - ``chunk_tokens``: most prompt tokens computed in one step, so that other requests wait at most one step for a
///   long prompt (1 to 65536; default: 256 on the CPU, up to 2048 on CUDA).
/// - ``max_running``: most sequences that run at once (1 to 4096; default: 64).
/// - ``queue_limit``: most sequences that wait; a request beyond them is refused (1 to 1048576; default: 1024).
/// - ``prefix_cache``: whether beginnings that prompts have in common are computed once and shared (default: True).
/// - ``copy_weights``: whether weights are copied out of the mapped file into memory of the process (default: False).
/// - ``memory_limit``: most bytes that weights, KV cache and scratch may take together (default: what the machine has
///   available).
/// - ``allow_unread_tensors``: whether a model may have tensors that nothing reads, such as heads for other tasks
///   (default: False).
/// - ``guard_mapped_files``: whether a mapped file that is truncated while in use is an error instead of the end of
///   the process (default: True).
/// - ``progress``: called while weights are read or quantised, with the bytes that are ready and the bytes in all
///   (``False`` from it ends the loading with :class:`welm.Cancelled`; default: none).
#[pyclass(frozen, module = "welm", weakref)]
pub(crate) struct Model {
    core: Owned<core::Model>,
}

/// Takes `progress`, which is no option of the core, out of the keyword arguments.
fn take_progress(options: Option<&Bound<'_, PyDict>>) -> PyResult<Progress> {
    let Some(options) = options else { return Progress::new(None) };
    let call = options.get_item("progress")?;
    if call.is_some() {
        options.del_item("progress")?;
    }
    Progress::new(call.as_ref())
}

#[pymethods]
impl Model {
    #[new]
    #[pyo3(
        signature = (path = None, **options),
        text_signature = "(path=None, *, device='auto', dtype='auto', cache_dtype='auto', activations='auto', \
            threads=None, isa=None, context_tokens=None, cache_tokens=None, chunk_tokens=None, max_running=64, \
            queue_limit=1024, prefix_cache=True, copy_weights=False, memory_limit=None, allow_unread_tensors=False, \
            guard_mapped_files=True, progress=None)"
    )]
    fn new(
        py: Python<'_>,
        path: Option<&Bound<'_, PyAny>>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let _inside = enter(py);
        let progress = take_progress(options)?;
        let mut load = load_options("Model", options)?;
        load.progress = Some(progress.callback());
        let path = model_path(py, path)?;
        let loaded = detached(py, || core::Model::load(&path, &load));
        let model = Model { core: Owned::new(progress.finish(py, loaded)?) };
        log::flush(py)?;
        Ok(model)
    }

    /// Continues a prompt, or several together.
    ///
    /// A prompt is a text, a sequence of token ids to which nothing is added, or a list of messages as for
    /// :meth:`chat`. A list of prompts gives a list of generations. Each is the same as if its prompt were alone. If
    /// one fails, the others are cancelled.
    ///
    /// >>> a, b = model.generate(["春眠不觉晓，", "白日依山尽，"], max_tokens=8, temperature=0)
    /// >>> b.text == model.generate("白日依山尽，", max_tokens=8, temperature=0).text
    /// True
    ///
    /// Options:
    ///
    /// - ``max_tokens``: most tokens generated for each sequence (default: 16).
    /// - ``temperature``: divides the logits; 0 is greedy: the likeliest token is always taken (0 to 100; default:
    ///   0.85).
    /// - ``top_p``: keeps the likeliest tokens whose probabilities add up to this; 0 is greedy, 1 is off (0 to 1;
    ///   default: 0.95).
    /// - ``top_k``: keeps this many of the likeliest tokens; 0 is off (default: 50).
    /// - ``n``: sequences returned; the prompt is computed once (1 to 128; default: 1).
    /// - ``echo``: whether the prompt is part of the text, and of the log-probabilities if those are asked for
    ///   (default: False).
    /// - ``min_p``: drops tokens less likely than this share of the likeliest token's probability; 0 is off (0 to 1;
    ///   default: 0.0).
    /// - ``repetition_penalty``: divides positive and multiplies negative logits of tokens that prompt or text
    ///   contain; 1 is off (0.01 to 100; default: 1.0).
    /// - ``frequency_penalty``: subtracted from a token's logit for each time that the generated text has it; 0 is
    ///   off (-100 to 100; default: 0.0).
    /// - ``presence_penalty``: subtracted once from the logits of tokens that the generated text has; 0 is off (-100
    ///   to 100; default: 0.0).
    /// - ``logit_bias``: added to the logits of these tokens; -infinity rules a token out (a dict by token id, -100
    ///   to 100, or -infinity; default: none).
    /// - ``stop``: strings that end a sequence; they are never part of the text (a string or several, at most 256,
    ///   each of 1 to 256 bytes; default: none).
    /// - ``stop_token_ids``: tokens that end a sequence as the model's own end tokens do (at most 256; default:
    ///   none).
    /// - ``ignore_eos``: whether the model's end tokens are ignored, so that the text goes on up to max_tokens
    ///   (default: False).
    /// - ``logprobs``: how many of the likeliest tokens are reported at each place, with log-probabilities (at most
    ///   100; default: none is reported).
    /// - ``seed``: seed of the random numbers; the same request with the same seed gives the same text (default:
    ///   drawn, and reported with the result).
    /// - ``deadline``: time after which the request ends with what it has, counted from the call (seconds or a
    ///   ``timedelta``; default: never).
    /// - ``cancel``: token that ends the request from another thread (a :class:`welm.CancelToken`; default: none).
    /// - ``parse_special``: whether spellings of special tokens in the prompt become these tokens; otherwise they are
    ///   ordinary text (default: False).
    /// - ``cache_salt``: prefix-cache entries are shared only between requests with the same salt (1 to 256 bytes;
    ///   default: shared by all that have none).
    ///
    /// Raises :class:`welm.InvalidOption`, :class:`welm.TooLong`, :class:`welm.EmptyPrompt`,
    /// :class:`welm.TokenizerError`, :class:`welm.ChatTemplateError`, :class:`welm.QueueFull`, :class:`welm.ForkError` for the
    /// request; :class:`welm.NotFinite`, :class:`welm.DeviceError` if it fails; :class:`welm.DeviceLost`,
    /// :class:`welm.InvalidFile` (a mapped file was cut short), :class:`welm.EngineStopped` if the engine has ended. Ctrl-C
    /// cancels.
    #[pyo3(
        signature = (prompt, /, **options),
        text_signature = "($self, prompt, /, *, max_tokens=16, temperature=0.85, top_p=0.95, top_k=50, n=1, \
            echo=False, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0, \
            logit_bias=None, stop=None, stop_token_ids=None, ignore_eos=False, logprobs=None, seed=None, \
            deadline=None, cancel=None, parse_special=False, cache_salt=None)"
    )]
    fn generate<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let options = generate_options("generate", options)?;
        match Prompts::new(model, prompt)? {
            Prompts::One(prompt) => whole(py, &prompt, model, &options),
            Prompts::Many(prompts) => {
                let whole = PyList::empty(py);
                for generation in batch(py, model, &prompts, &options)? {
                    whole.append(output::generation(py, model, &generation)?)?;
                }
                Ok(whole.into_any())
            }
        }
    }

    /// As :meth:`generate`, but returns the text piece by piece.
    ///
    /// >>> for piece in model.stream("床前明月光，", max_tokens=20, seed=7):
    /// ...     print(piece.text, end="", flush=True)  # doctest: +SKIP
    #[pyo3(
        signature = (prompt, /, **options),
        text_signature = "($self, prompt, /, *, max_tokens=16, temperature=0.85, top_p=0.95, top_k=50, n=1, \
            echo=False, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0, \
            logit_bias=None, stop=None, stop_token_ids=None, ignore_eos=False, logprobs=None, seed=None, \
            deadline=None, cancel=None, parse_special=False, cache_salt=None)"
    )]
    fn stream(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Stream> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let options = generate_options("stream", options)?;
        pieces(py, &OnePrompt::new(model, prompt)?, model, &options)
    }

    /// As :meth:`generate`, for ``asyncio``: the event loop goes on. Cancelling the task cancels the request.
    ///
    /// >>> import asyncio
    /// >>> async def two():
    /// ...     options = {"max_tokens": 8, "temperature": 0}
    /// ...     return await asyncio.gather(
    /// ...         model.generate_async("春眠不觉晓，", **options), model.generate_async("白日依山尽，", **options)
    /// ...     )
    /// >>> [len(generation.choices) for generation in asyncio.run(two())]
    /// [1, 1]
    #[pyo3(
        signature = (prompt, /, **options),
        text_signature = "($self, prompt, /, *, max_tokens=16, temperature=0.85, top_p=0.95, top_k=50, n=1, \
            echo=False, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0, \
            logit_bias=None, stop=None, stop_token_ids=None, ignore_eos=False, logprobs=None, seed=None, \
            deadline=None, cancel=None, parse_special=False, cache_salt=None)"
    )]
    fn generate_async<'py>(
        this: &Bound<'py, Self>,
        prompt: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = this.py();
        let _inside = enter(py);
        let (model, options) = (this.get().core.get(py)?, generate_options("generate_async", options)?);
        let submit = |prompt| Submit::new(model.clone(), prompt, options.clone(), true);
        let asyncio = py.import("welm._aio")?;
        match Prompts::new(model, prompt)? {
            Prompts::One(prompt) => asyncio.getattr("generate")?.call1((submit(prompt),)),
            Prompts::Many(prompts) => {
                let submits = prompts.into_iter().map(submit).collect::<Vec<_>>();
                asyncio.getattr("generate_all")?.call1((submits,))
            }
        }
    }

    /// As :meth:`stream`, for ``asyncio``: ``async for piece in model.stream_async(prompt)``.
    ///
    /// The request is sent when the iteration begins, or on entering ``async with``. Cancelling the task that
    /// iterates cancels the request.
    ///
    /// >>> async def text(prompt):
    /// ...     async with model.stream_async(prompt, max_tokens=8, temperature=0) as stream:
    /// ...         return "".join([piece.text async for piece in stream])
    /// >>> asyncio.run(text("床前明月光，")) == model.generate("床前明月光，", max_tokens=8, temperature=0).text
    /// True
    #[pyo3(
        signature = (prompt, /, **options),
        text_signature = "($self, prompt, /, *, max_tokens=16, temperature=0.85, top_p=0.95, top_k=50, n=1, \
            echo=False, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0, \
            logit_bias=None, stop=None, stop_token_ids=None, ignore_eos=False, logprobs=None, seed=None, \
            deadline=None, cancel=None, parse_special=False, cache_salt=None)"
    )]
    fn stream_async<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let options = generate_options("stream_async", options)?;
        let submit = Submit::new(model.clone(), OnePrompt::new(model, prompt)?, options, false);
        py.import("welm._aio")?.getattr("AsyncStream")?.call1((submit,))
    }

    /// The model's answer to a conversation, with its own chat template.
    ///
    /// Messages, ``tools``, ``documents``, ``add_generation_prompt``, ``continue_final_message`` and ``chat_template`` are
    /// those of :meth:`chat_prompt`; ``variables`` is a dict of further variables of the template, such as
    /// ``{"enable_thinking": False}``. All other options are those of :meth:`generate`. The answer is what
    /// :meth:`generate` gives for :meth:`chat_tokens`. It ends at the model's end tokens; a chat model has one for the
    /// end of a turn. With ``echo`` the text begins with that of :meth:`chat_prompt`.
    ///
    /// For several conversations, give a list of them to :meth:`generate`.
    ///
    /// >>> template = "{% for m in messages %}{{ m.content }}{% endfor %}"  # this model has none of its own
    /// >>> answer = model.chat([{"role": "user", "content": "床前明月光，"}], chat_template=template, seed=7)
    /// >>> answer.text == model.generate("床前明月光，", seed=7).text
    /// True
    /// >>> answer.finish_reason
    /// 'length'
    #[pyo3(
        signature = (messages, /, **options),
        text_signature = "($self, messages, /, *, add_generation_prompt=None, tools=None, documents=None, \
            continue_final_message=None, chat_template=None, variables=None, max_tokens=16, temperature=0.85, \
            top_p=0.95, top_k=50, n=1, echo=False, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0, \
            presence_penalty=0.0, logit_bias=None, stop=None, stop_token_ids=None, ignore_eos=False, logprobs=None, \
            seed=None, deadline=None, cancel=None, parse_special=False, cache_salt=None)"
    )]
    fn chat<'py>(
        &self,
        py: Python<'py>,
        messages: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let (request, options) = chat::request_and_options("chat", messages, options)?;
        whole(py, &OnePrompt::Chat(request), model, &options)
    }

    /// As :meth:`chat`, but returns the text piece by piece.
    ///
    /// >>> messages = [{"role": "user", "content": "床前明月光，"}]
    /// >>> template = "{{ messages[0].content }}"
    /// >>> with model.chat_stream(messages, chat_template=template, max_tokens=8, temperature=0) as stream:
    /// ...     text = "".join(piece.text for piece in stream)
    /// >>> text == model.chat(messages, chat_template=template, max_tokens=8, temperature=0).text
    /// True
    #[pyo3(
        signature = (messages, /, **options),
        text_signature = "($self, messages, /, *, add_generation_prompt=None, tools=None, documents=None, \
            continue_final_message=None, chat_template=None, variables=None, max_tokens=16, temperature=0.85, \
            top_p=0.95, top_k=50, n=1, echo=False, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0, \
            presence_penalty=0.0, logit_bias=None, stop=None, stop_token_ids=None, ignore_eos=False, logprobs=None, \
            seed=None, deadline=None, cancel=None, parse_special=False, cache_salt=None)"
    )]
    fn chat_stream(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Stream> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let (request, options) = chat::request_and_options("chat_stream", messages, options)?;
        pieces(py, &OnePrompt::Chat(request), model, &options)
    }

    /// As :meth:`chat`, for ``asyncio``: the event loop goes on. Cancelling the task cancels the request.
    ///
    /// >>> async def answer(messages):
    /// ...     return await model.chat_async(messages, chat_template="{{ messages[0].content }}", temperature=0)
    /// >>> messages = [{"role": "user", "content": "床前明月光，"}]
    /// >>> asyncio.run(answer(messages)).text == model.generate("床前明月光，", temperature=0).text
    /// True
    #[pyo3(
        signature = (messages, /, **options),
        text_signature = "($self, messages, /, *, add_generation_prompt=None, tools=None, documents=None, \
            continue_final_message=None, chat_template=None, variables=None, max_tokens=16, temperature=0.85, \
            top_p=0.95, top_k=50, n=1, echo=False, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0, \
            presence_penalty=0.0, logit_bias=None, stop=None, stop_token_ids=None, ignore_eos=False, logprobs=None, \
            seed=None, deadline=None, cancel=None, parse_special=False, cache_salt=None)"
    )]
    fn chat_async<'py>(
        &self,
        py: Python<'py>,
        messages: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let (request, options) = chat::request_and_options("chat_async", messages, options)?;
        let submit = Submit::new(model.clone(), OnePrompt::Chat(request), options, true);
        py.import("welm._aio")?.getattr("generate")?.call1((submit,))
    }

    /// As :meth:`chat_stream`, for ``asyncio``: ``async for piece in model.chat_stream_async(messages)``. It works as
    /// :meth:`stream_async`.
    ///
    /// >>> async def text(messages):
    /// ...     stream = model.chat_stream_async(messages, chat_template="{{ messages[0].content }}", temperature=0)
    /// ...     return "".join([piece.text async for piece in stream])
    /// >>> messages = [{"role": "user", "content": "床前明月光，"}]
    /// >>> asyncio.run(text(messages)) == model.generate("床前明月光，", temperature=0).text
    /// True
    #[pyo3(
        signature = (messages, /, **options),
        text_signature = "($self, messages, /, *, add_generation_prompt=None, tools=None, documents=None, \
            continue_final_message=None, chat_template=None, variables=None, max_tokens=16, temperature=0.85, \
            top_p=0.95, top_k=50, n=1, echo=False, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0, \
            presence_penalty=0.0, logit_bias=None, stop=None, stop_token_ids=None, ignore_eos=False, logprobs=None, \
            seed=None, deadline=None, cancel=None, parse_special=False, cache_salt=None)"
    )]
    fn chat_stream_async<'py>(
        &self,
        py: Python<'py>,
        messages: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let (request, options) = chat::request_and_options("chat_stream_async", messages, options)?;
        let submit = Submit::new(model.clone(), OnePrompt::Chat(request), options, false);
        py.import("welm._aio")?.getattr("AsyncStream")?.call1((submit,))
    }

    /// Log-likelihoods of given continuations of a prompt, in their order. For a list of prompts, a list for each.
    ///
    /// Prompt and continuation are tokenized together. The longest beginning that these tokens have in common with
    /// those of the prompt alone is the context; the tokens after it are scored. If there is no such beginning, because
    /// the prompt is empty or its only token merged with the continuation, the context is the token that starts a text,
    /// or else the first end token. An empty continuation has no tokens, and log-probability 0. Another continuation
    /// without tokens raises :class:`welm.InvalidOption`.
    ///
    /// A prompt may be text, token ids or a list of messages; a continuation may be text or token ids. If either is
    /// ids, the two are not tokenized together.
    ///
    /// With a list of prompts, ``continuations`` is a list that is scored after every prompt, or a list of lists, one for
    /// each prompt. All are computed together, and equal beginnings once, so one call is much faster than many.
    ///
    /// ``deadline`` is in seconds, or a ``timedelta``; ``cancel`` is a :class:`welm.CancelToken`. Both end the scoring
    /// with :class:`welm.Cancelled`. Ctrl-C ends it with ``KeyboardInterrupt``. ``cache_salt`` is that of
    /// :meth:`generate`. ``logprobs`` is how many of the likeliest tokens are reported at each place, at most 100.
    ///
    /// >>> likely, unlikely = model.score("白日依山尽，", ["黄河入海流。", "黄河入电脑。"])
    /// >>> likely.logprob < 0
    /// True
    /// >>> prompts = ["白日依山尽，", "春眠不觉晓，"]
    /// >>> [len(scores) for scores in model.score(prompts, ["黄河入海流。", "处处闻啼鸟。", "一二三四五。"])]
    /// [3, 3]
    /// >>> [[a], [b, c]] = model.score(prompts, [["黄河入海流。"], ["处处闻啼鸟。", "一二三四五。"]])
    /// >>> a == likely
    /// True
    #[pyo3(
        signature = (prompt, continuations, /, **options),
        text_signature = "($self, prompt, continuations, /, *, deadline=None, cancel=None, logprobs=0, \
            cache_salt=None)"
    )]
    fn score<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        continuations: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let options = score_options("score", options)?;
        let pairs = Arc::new(Pairs::new(model, prompt, continuations)?);
        let (shared, shared_pairs) = (model.clone(), Arc::clone(&pairs));
        let scores = wait_aside(py, options.cancel.as_ref(), move |stop| {
            let options = core::ScoreOptions { cancel: Some(stop.clone()), ..options };
            shared_pairs.score(&shared, &options)
        })?;
        log::flush(py)?;
        pairs.shaped(py, model, &scores)
    }

    /// As :meth:`score`, for ``asyncio``: the event loop goes on. Cancelling the task ends the scoring.
    ///
    /// >>> async def scores():
    /// ...     return await model.score_async("床前明月光，", ["疑是地上霜。", "一二三四五。"])
    /// >>> asyncio.run(scores()) == model.score("床前明月光，", ["疑是地上霜。", "一二三四五。"])
    /// True
    #[pyo3(
        signature = (prompt, continuations, /, **options),
        text_signature = "($self, prompt, continuations, /, *, deadline=None, cancel=None, logprobs=0, \
            cache_salt=None)"
    )]
    fn score_async<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        continuations: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let options = score_options("score_async", options)?;
        let scoring = Scoring::new(model.clone(), Pairs::new(model, prompt, continuations)?, options);
        py.import("welm._aio")?.getattr("score")?.call1((scoring,))
    }

    /// Logits after each token of a prompt from position ``from_`` on: a numpy array of ``float32``,
    /// ``(prompt_tokens - from_, vocab_size)``. Only this method needs numpy.
    ///
    /// >>> model.logits("床前明月光，").shape[1] == model.config.vocab_size
    /// True
    #[pyo3(signature = (prompt, /, from_ = None), text_signature = "($self, prompt, /, from_=0)")]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        from_: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        let numpy = py.import("numpy")?;
        let model = self.core.get(py)?.clone();
        let prompt = OnePrompt::new(&model, prompt)?;
        let from = from_.map_or(Ok(0), |from| Argument::new("from_", from).count())?;
        let vocab_size = model.config().vocab_size;
        let logits = wait_aside(py, None, move |_| {
            prompt.logits(&model, from).map_err(|error| match error {
                Error::InvalidOption { option: "from", reason } => {
                    Error::InvalidOption { option: "from_", reason }
                }
                error => error,
            })
        })?;
        let bytes = PyByteArray::new_with(py, size_of_val(&logits[..]), |bytes| {
            for (to, logit) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&logits) {
                *to = logit.to_ne_bytes();
            }
            Ok(())
        })?;
        let flat = numpy.getattr("frombuffer")?.call1((bytes, numpy.getattr("float32")?))?;
        flat.call_method1("reshape", ((logits.len() / vocab_size, vocab_size),))
    }

    /// The tokens of a text, without the token that starts a text.
    ///
    /// >>> model.detokenize(model.tokenize("床前明月光，"))
    /// '床前明月光，'
    #[pyo3(
        signature = (text, /, parse_special = None),
        text_signature = "($self, text, /, parse_special=False)"
    )]
    fn tokenize(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyAny>,
        parse_special: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<u32>> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let text = Argument::new("text", text).text()?;
        let parse_special = parse_special.map_or(Ok(false), |v| Argument::new("parse_special", v).truth())?;
        detached(py, || model.tokenize(&text, parse_special)).or_raise(py)
    }

    /// The text of tokens. Bytes that are not UTF-8 become U+FFFD; special tokens are left out.
    #[pyo3(signature = (tokens, /))]
    fn detokenize(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<String> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let tokens = options::tokens("tokens", tokens)?;
        Ok(detached(py, || model.detokenize(&tokens)))
    }

    /// Whether the model has a chat template.
    #[getter]
    fn has_chat_template(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.core.get(py)?.has_chat_template())
    }

    /// The text of a conversation, made by the model's own chat template. It is the same as from
    /// ``apply_chat_template`` of transformers. If the template uses something that is not supported, the error names
    /// it.
    ///
    /// Messages are dicts with all the keys that the template reads. Values are those of JSON (a tuple is a list); a
    /// key whose value is ``None`` is left out. ``tools`` and ``documents`` are lists of dicts. ``chat_template`` is
    /// the name of one of the model's templates if it has several, or the source of another one. All other keywords are
    /// variables of the template, such as ``enable_thinking``.
    ///
    /// By default the text ends where the assistant's answer begins (``add_generation_prompt``). To have the model
    /// continue the last message instead, set ``continue_final_message`` to ``True``, or to the key of the message with
    /// the text.
    ///
    /// >>> model.chat_prompt([{"role": "user", "content": "你好"}])  # this model has no template
    /// Traceback (most recent call last):
    /// ...
    /// welm._errors.ChatTemplateError: chat template: this model has none
    /// >>> template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}{{ mood }}"
    /// >>> model.chat_prompt([{"role": "user", "content": "你好"}], chat_template=template, mood="fine")
    /// 'user: 你好 fine'
    #[pyo3(
        signature = (messages, /, add_generation_prompt = None, **arguments),
        text_signature = "($self, messages, /, add_generation_prompt=None, *, tools=None, documents=None, \
            continue_final_message=None, chat_template=None, **variables)"
    )]
    fn chat_prompt(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        add_generation_prompt: Option<&Bound<'_, PyAny>>,
        arguments: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<String> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let request = chat::request(messages, add_generation_prompt, arguments)?;
        detached(py, || model.chat_request_prompt(&request)).or_raise(py)
    }

    /// The tokens of :meth:`chat_prompt`, which :meth:`chat` continues. Spellings of special tokens become these
    /// tokens. None is added in front, because the template writes the token that starts a text.
    ///
    /// As in transformers, this includes special tokens in the text of a message, such as ``<|im_end|>``. So the writer
    /// of a message can end it and begin another one in any role.
    #[pyo3(
        signature = (messages, /, add_generation_prompt = None, **arguments),
        text_signature = "($self, messages, /, add_generation_prompt=None, *, tools=None, documents=None, \
            continue_final_message=None, chat_template=None, **variables)"
    )]
    fn chat_tokens(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        add_generation_prompt: Option<&Bound<'_, PyAny>>,
        arguments: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Vec<u32>> {
        let _inside = enter(py);
        let model = self.core.get(py)?;
        let request = chat::request(messages, add_generation_prompt, arguments)?;
        detached(py, || model.chat_request_tokens(&request)).or_raise(py)
    }

    /// The bytes of a token; none for a special one.
    #[pyo3(signature = (token, /))]
    fn token_bytes<'py>(&self, py: Python<'py>, token: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let model = self.core.get(py)?;
        Ok(PyBytes::new(py, model.token_bytes(Argument::new("token", token).count()?)))
    }

    /// The id of a token, special or not, from its name in the vocabulary; ``None`` if there is none.
    #[pyo3(signature = (token, /))]
    fn token_id(&self, py: Python<'_>, token: &Bound<'_, PyAny>) -> PyResult<Option<u32>> {
        let model = self.core.get(py)?;
        Ok(model.token_id(&Argument::new("token", token).text()?))
    }

    /// Whether a token is a control token, which is not part of a text.
    #[pyo3(signature = (token, /))]
    fn is_special(&self, py: Python<'_>, token: &Bound<'_, PyAny>) -> PyResult<bool> {
        let model = self.core.get(py)?;
        Ok(model.is_special(Argument::new("token", token).count()?))
    }

    /// Raises the error with which the engine ended, if it has: for the liveness probe of a service.
    ///
    /// It computes nothing, and returns at once. It looks for no faults: a lost device, or a file that was cut short, is
    /// noticed by the next request that computes, and from then on this raises the error. An engine that has ended does not
    /// come back: load the model again, or start the process again.
    ///
    /// Raises :class:`DeviceLost`, :class:`InvalidFile` for a mapped file that was cut short, :class:`EngineStopped` after an
    /// internal fault, and :class:`ForkError` in a child that was forked after the model was loaded.
    fn check_health(&self, py: Python<'_>) -> PyResult<()> {
        let _inside = enter(py);
        self.core.get(py)?.check_health().or_raise(py)
    }

    /// Counters of the engine, at this moment.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        output::stats(py, self.core.get(py)?.stats())
    }

    /// What a model's files contain, and whether they can be loaded; if not, why.
    ///
    /// >>> files = welm.Model.describe()
    /// >>> files.format, files.family, files.unsupported
    /// ('safetensors', 'welm', None)
    #[staticmethod]
    #[pyo3(signature = (path = None))]
    fn describe<'py>(py: Python<'py>, path: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        let path = model_path(py, path)?;
        let description = detached(py, || core::Model::describe(&path)).or_raise(py)?;
        output::description(py, &description)
    }

    /// Memory that loading with these options would take, computed from the headers of the files and, on the CPU, from
    /// the tokenizer.
    ///
    /// >>> welm.Model.estimate(cache_tokens=1024).cache_tokens
    /// 1024
    #[staticmethod]
    #[pyo3(
        signature = (path = None, **options),
        text_signature = "(path=None, *, device='auto', dtype='auto', cache_dtype='auto', activations='auto', \
            threads=None, isa=None, context_tokens=None, cache_tokens=None, chunk_tokens=None, max_running=64, \
            queue_limit=1024, prefix_cache=True, copy_weights=False, memory_limit=None, allow_unread_tensors=False, \
            guard_mapped_files=True)"
    )]
    fn estimate<'py>(
        py: Python<'py>,
        path: Option<&Bound<'py, PyAny>>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        let (path, options) = (model_path(py, path)?, load_options("estimate", options)?);
        let estimate = detached(py, || core::Model::estimate(&path, &options)).or_raise(py)?;
        output::estimate(py, &estimate)
    }

    /// Shapes and settings of the model.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        output::config(py, self.core.get(py)?.config())
    }

    /// The memory that the model takes.
    #[getter]
    fn memory<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        output::estimate(py, &self.core.get(py)?.memory())
    }

    /// Where the model runs: device, threads, instruction set.
    #[getter]
    fn backend(&self, py: Python<'_>) -> PyResult<&str> {
        Ok(self.core.get(py)?.backend())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let model = self.core.get(py)?;
        let (config, backend) = (model.config(), model.backend());
        Ok(format!("<welm.Model {}, {} parameters, {backend}>", config.family, config.n_params()))
    }
}

/// Sends several prompts at once. They wait in the engine's queue like any others. When the queue is full, the first
/// answers are collected before the next prompts are sent. An error drops the streams, which cancels them.
fn batch(
    py: Python<'_>,
    model: &core::Model,
    prompts: &[OnePrompt],
    options: &core::GenerateOptions,
) -> PyResult<Vec<core::Generation>> {
    let mut open = VecDeque::new();
    let mut whole = Vec::new();
    for prompt in prompts {
        loop {
            match detached(py, || prompt.stream(model, options)) {
                Ok(stream) => break open.push_back(stream),
                Err(error @ Error::QueueFull { .. }) => match open.pop_front() {
                    Some(stream) => whole.push(collect(py, stream)?),
                    None => return Err(exception(py, &error)),
                },
                Err(error) => return Err(exception(py, &error)),
            }
        }
        py.check_signals()?;
    }
    log::flush(py)?;
    for stream in open {
        whole.push(collect(py, stream)?);
    }
    Ok(whole)
}

/// The whole answer to one prompt.
fn whole<'py>(
    py: Python<'py>,
    prompt: &OnePrompt,
    model: &core::Model,
    options: &core::GenerateOptions,
) -> PyResult<Bound<'py, PyAny>> {
    let stream = send(py, prompt, model, options)?;
    output::generation(py, model, &collect(py, stream)?)
}

/// The answer to one prompt, piece by piece.
fn pieces(
    py: Python<'_>,
    prompt: &OnePrompt,
    model: &core::Model,
    options: &core::GenerateOptions,
) -> PyResult<Stream> {
    Ok(Stream::new(model.clone(), send(py, prompt, model, options)?))
}

/// Sends a request, and passes on what was logged.
fn send(
    py: Python<'_>,
    prompt: &OnePrompt,
    model: &core::Model,
    options: &core::GenerateOptions,
) -> PyResult<core::Stream> {
    let stream = detached(py, || prompt.stream(model, options)).or_raise(py)?;
    log::flush(py)?;
    Ok(stream)
}

/// A request that is not sent yet. `send` runs on another thread than the event loop's, because tokenizing a long text
/// takes too long for an event loop.
#[pyclass(frozen, module = "welm._welm")]
pub(crate) struct Submit {
    model: Owned<core::Model>,
    prompt: OnePrompt,
    options: core::GenerateOptions,
    whole: bool,
}

impl Submit {
    /// With `whole`, its pieces are returned as one generation.
    fn new(model: core::Model, prompt: OnePrompt, options: core::GenerateOptions, whole: bool) -> Self {
        Submit { model: Owned::new(model), prompt, options, whole }
    }
}

#[pymethods]
impl Submit {
    /// Sends it.
    fn send(&self, py: Python<'_>) -> PyResult<Request> {
        let _inside = enter(py);
        let model = self.model.get(py)?;
        let stream = send(py, &self.prompt, model, &self.options)?;
        Ok(Request::new(model.clone(), stream, self.whole))
    }
}
