//! Fuzzes options, prompts and messages through the C interface.

use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use serde_json::json;
use welm::chat::{welm_message, welm_model_chat_prompt};
use welm::error::welm_status::{self, *};
use welm::error::{welm_error, welm_error_code, welm_error_free, welm_error_message};
use welm::generate::*;
use welm::list::welm_finish_reason::WELM_FINISH_NONE;
use welm::load::{welm_load_options, welm_model_load};
use welm::model::welm_model;
use welm::request::*;
use welm::score::*;
use welm::stats::{welm_model_stats, welm_stats};
use welm::stream::*;
use welm::text::welm_string_free;
use welm::tokens::*;

use super::files::{BYTE_LEVEL_ROWS, Folder, byte_level, config, weights};

#[derive(Arbitrary)]
struct Input {
    call: u8,
    prompt: Prompt,
    options: Options,
    texts: Vec<Vec<u8>>,
    from: usize,
    flag: bool,
}

#[derive(Arbitrary)]
enum Prompt {
    Text(Vec<u8>),
    Tokens(Vec<u16>),
}

/// True for one byte in sixteen: then a value may be invalid. So most requests are valid.
fn wild(how: u8) -> bool {
    how >= 240
}

/// A number that is mostly small, and sometimes at a border.
#[derive(Arbitrary, Clone, Copy)]
struct Size {
    how: u8,
    small: u8,
    any: usize,
}

impl Size {
    fn get(self) -> usize {
        match self.how {
            how if wild(how) => self.any,
            ..128 => self.small as usize % 4,
            _ => self.small as usize % 66,
        }
    }
}

/// A number that is mostly from 0 to 1.
#[derive(Arbitrary, Clone, Copy)]
struct Real {
    how: u8,
    share: u8,
    any: f32,
}

impl Real {
    fn get(self) -> f32 {
        if wild(self.how) { self.any } else { f32::from(self.share) / 255.0 }
    }
}

#[derive(Arbitrary)]
struct Options {
    size: (u8, usize),
    after: u8,
    max_tokens: Size,
    top_k: Size,
    n: Size,
    reals: [Real; 6],
    logit_bias: Vec<(u16, Real)>,
    /// Stop strings, mostly of ASCII letters.
    stop: (u8, Vec<Vec<u8>>),
    stop_lens: bool,
    seed: Option<u64>,
    logprobs: Size,
    flags: [bool; 3],
    deadline_ms: Size,
    cancel: Option<bool>,
    stop_token_ids: Vec<u16>,
    cache_salt: Option<Vec<u8>>,
}

/// Options as a caller has them in memory, with room for any size that they may claim.
struct Stored {
    memory: Box<[welm_generate_options; 40]>,
    _bias: Vec<welm_logit_bias>,
    _stop: Vec<Vec<u8>>,
    _pointers: (Vec<*const c_char>, Vec<usize>),
    _ids: Vec<u32>,
    _salt: Option<Vec<u8>>,
    cancel: *mut welm_cancel_token,
}

impl Stored {
    fn new(from: &Options) -> Self {
        let bias: Vec<welm_logit_bias> = from
            .logit_bias
            .iter()
            .map(|(token, bias)| welm_logit_bias { token: u32::from(*token) % 264, bias: 20.0 * bias.get() })
            .collect();
        let mut stop = from.stop.1.clone();
        if !wild(from.stop.0) {
            stop.iter_mut().flatten().for_each(|byte| *byte &= 0x7F);
            stop.retain(|s| !s.is_empty());
        }
        let lens: Vec<usize> = stop.iter().map(Vec::len).collect();
        // Without lengths they end at their first NUL.
        stop.iter_mut().for_each(|s| s.push(0));
        let pointers: Vec<*const c_char> = stop.iter().map(|s| s.as_ptr().cast()).collect();
        let cancel = from.cancel.map_or(ptr::null_mut(), |cancelled| {
            let token = welm_cancel_token_new();
            if cancelled {
                // SAFETY: a token that was just made.
                unsafe { welm_cancel_token_cancel(token) };
            }
            token
        });
        let ids: Vec<u32> = from.stop_token_ids.iter().map(|id| u32::from(*id) % 264).collect();
        let salt = from.cache_salt.clone();
        let mut options = welm_generate_options {
            max_tokens: from.max_tokens.get(),
            top_k: from.top_k.get(),
            n: from.n.get(),
            temperature: from.reals[0].get(),
            top_p: from.reals[1].get(),
            min_p: from.reals[2].get(),
            repetition_penalty: from.reals[3].get(),
            frequency_penalty: from.reals[4].get(),
            presence_penalty: from.reals[5].get(),
            logit_bias: bias.as_ptr(),
            n_logit_bias: bias.len(),
            stop: pointers.as_ptr(),
            stop_lens: if from.stop_lens { lens.as_ptr() } else { ptr::null() },
            n_stop: pointers.len(),
            seed: from.seed.unwrap_or(0),
            has_seed: from.seed.is_some().into(),
            logprobs: (from.logprobs.get() as i32).wrapping_sub(1),
            echo: from.flags[0].into(),
            parse_special: from.flags[1].into(),
            ignore_eos: from.flags[2].into(),
            deadline_ms: from.deadline_ms.get() as u64,
            cancel,
            stop_token_ids: ids.as_ptr(),
            n_stop_token_ids: ids.len(),
            cache_salt: salt.as_ref().map_or(ptr::null(), |s| s.as_ptr().cast()),
            cache_salt_len: salt.as_ref().map_or(welm::text::WELM_NUL_TERMINATED, Vec::len),
            ..Default::default()
        };
        options.struct_size = if wild(from.size.0) { from.size.1 % 4200 } else { options.struct_size };
        let mut memory = Box::new([options; 40]);
        if from.after & 1 == 0 {
            // The bytes after the end are zero.
            let rest = memory[1..].as_mut_ptr();
            // SAFETY: any bytes are a valid value, and these 39 lie in the box.
            unsafe { ptr::write_bytes(rest, 0, 39) };
        }
        Stored {
            memory,
            _bias: bias,
            _stop: stop,
            _pointers: (pointers, lens),
            _ids: ids,
            _salt: salt,
            cancel,
        }
    }

    fn get(&self) -> *const welm_generate_options {
        self.memory.as_ptr()
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        // SAFETY: NULL, or a token of this struct.
        unsafe { welm_cancel_token_free(self.cancel) };
    }
}

fn model() -> *mut welm_model {
    struct Loaded(*mut welm_model);
    // SAFETY: a model may be used from any thread.
    unsafe impl Send for Loaded {}
    // SAFETY: as above.
    unsafe impl Sync for Loaded {}
    static MODEL: OnceLock<Loaded> = OnceLock::new();
    let load = || {
        let config = config(&json!({"vocab_size": BYTE_LEVEL_ROWS})).to_string();
        let folder = Folder::with(&[
            ("config.json", config.as_bytes()),
            ("model.safetensors", &weights(BYTE_LEVEL_ROWS)),
            ("tokenizer.json", byte_level().to_string().as_bytes()),
            ("chat_template.jinja", b"{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"),
        ]);
        let options = welm_load_options {
            threads: 1,
            context_tokens: 64,
            cache_tokens: 256,
            max_running: 4,
            queue_limit: 64,
            ..Default::default()
        };
        let path = format!("{}\0", folder.path().display());
        let (mut model, mut error) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: sound arguments.
        let status = unsafe { welm_model_load(path.as_ptr().cast(), &options, &mut model, &mut error) };
        assert_eq!(status, WELM_OK);
        Loaded(model)
    };
    MODEL.get_or_init(load).0
}

/// Checks what holds for every call: no panic inside, an error exactly if there is no answer, and the status in it.
fn check(status: welm_status, error: *mut welm_error, answered: bool) -> bool {
    let fault =
        matches!(status, WELM_PANIC | WELM_OTHER | WELM_DEVICE | WELM_DEVICE_LOST | WELM_ENGINE_STOPPED);
    // SAFETY: NULL, or an error that was just given, freed once.
    unsafe {
        let message = welm_error_message(error);
        let message = if message.is_null() { c"" } else { CStr::from_ptr(message) };
        assert!(!fault, "{status:?}: {message:?}");
        assert_eq!(status == WELM_OK, error.is_null(), "{status:?}");
        assert_eq!(status == WELM_OK, answered, "{status:?}");
        if !error.is_null() {
            assert_eq!(welm_error_code(error), status);
            assert!(!message.is_empty());
            welm_error_free(error);
        }
    }
    status == WELM_OK
}

/// Text and tokens of each sequence.
type Answer = Vec<(Vec<u8>, Vec<u32>)>;

/// # Safety
/// `len` values are at `data`.
unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    // SAFETY: by this function's contract.
    if len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(data, len) } }
}

fn generate(prompt: welm_prompt, options: &Stored) -> Option<Answer> {
    let (mut answer, mut error) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: prompt and options point to what lives; the answer is read before it is freed.
    unsafe {
        let status = welm_model_generate(model(), prompt, options.get(), &mut answer, &mut error);
        if !check(status, error, !answer.is_null()) {
            return None;
        }
        let n = welm_generation_n_choices(answer);
        assert!(n >= 1 && welm_generation_choice(answer, n).is_null());
        let usage = *welm_generation_usage(answer);
        let mut choices = Vec::new();
        for i in 0..n {
            let choice = &*welm_generation_choice(answer, i);
            let text = slice(choice.text.cast::<u8>(), choice.text_len);
            assert!(std::str::from_utf8(text).is_ok());
            assert_eq!(choice.text.add(choice.text_len).read(), 0);
            assert_ne!(choice.finish_reason, WELM_FINISH_NONE);
            let tokens = slice(choice.tokens, choice.n_tokens);
            assert!(tokens.iter().all(|t| (t.id as usize) < BYTE_LEVEL_ROWS && !t.logprob.is_nan()));
            choices.push((text.to_vec(), tokens.iter().map(|t| t.id).collect()));
        }
        assert!(usage.completion_tokens <= n * 64 && usage.cached_tokens <= usage.prompt_tokens);
        welm_generation_free(answer);
        Some(choices)
    }
}

fn stream(prompt: welm_prompt, options: &Stored) -> Option<Answer> {
    let (mut stream, mut error) = (ptr::null_mut(), ptr::null_mut());
    let mut choices: Answer = Vec::new();
    // SAFETY: as in `generate`.
    unsafe {
        let status = welm_model_stream(model(), prompt, options.get(), &mut stream, &mut error);
        if !check(status, error, !stream.is_null()) {
            return None;
        }
        loop {
            let mut piece = ptr::null();
            let status = welm_stream_next(stream, &mut piece, &mut error);
            if status == WELM_END {
                break;
            }
            if !check(status, error, !piece.is_null()) {
                panic!("a stream began and failed");
            }
            let piece = &*piece;
            choices.resize(choices.len().max(piece.index + 1), Default::default());
            choices[piece.index].0.extend(slice(piece.text.cast::<u8>(), piece.text_len));
            choices[piece.index].1.extend(slice(piece.tokens, piece.n_tokens).iter().map(|t| t.id));
        }
        welm_stream_free(stream);
    }
    Some(choices)
}

/// Makes one call, or the same request in two ways.
pub fn run(input: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(input)) else { return };
    let tokens: Vec<u32>;
    let prompt = match &input.prompt {
        Prompt::Text(text) => welm_prompt_text(text.as_ptr().cast(), text.len()),
        Prompt::Tokens(ids) => {
            tokens = ids.iter().map(|&id| u32::from(id) % 264).collect();
            welm_prompt_tokens(tokens.as_ptr(), tokens.len())
        }
    };
    let pointers: Vec<*const c_char> = input.texts.iter().map(|t| t.as_ptr().cast()).collect();
    let lens: Vec<usize> = input.texts.iter().map(Vec::len).collect();
    let mut error = ptr::null_mut();
    let text = input.texts.first().map_or(&[][..], |t| t);
    // SAFETY: everything points to what lives, with its true length.
    unsafe {
        match input.call % 8 {
            0 => {
                let (data, n) = (pointers.as_ptr(), pointers.len());
                let mut scores = ptr::null_mut();
                let status = welm_model_score(
                    model(),
                    text.as_ptr().cast(),
                    text.len(),
                    data,
                    lens.as_ptr(),
                    n,
                    &mut scores,
                    &mut error,
                );
                if check(status, error, !scores.is_null()) {
                    assert_eq!(welm_scores_len(scores), n);
                    welm_scores_free(scores);
                }
            }
            1 => {
                let mut logits = ptr::null_mut();
                let status = welm_model_logits(model(), prompt, input.from, &mut logits, &mut error);
                if check(status, error, !logits.is_null()) {
                    welm_logits_free(logits);
                }
            }
            2 => {
                let mut ids = ptr::null_mut();
                let (data, len) = (text.as_ptr().cast(), text.len());
                let status = welm_model_tokenize(model(), data, len, input.flag, &mut ids, &mut error);
                if check(status, error, !ids.is_null()) {
                    let mut len = 0;
                    let data = welm_tokens_data(ids, &mut len);
                    let mut back = ptr::null_mut();
                    let status = welm_model_detokenize(model(), data, len, &mut back, &mut error);
                    if check(status, error, !back.is_null()) {
                        welm_string_free(back);
                    }
                    welm_tokens_free(ids);
                }
            }
            3 => {
                let messages: Vec<welm_message> = input
                    .texts
                    .iter()
                    .map(|text| welm_message {
                        role: c"user".as_ptr(),
                        content: text.as_ptr().cast(),
                        content_len: text.len(),
                    })
                    .collect();
                let mut prompt = ptr::null_mut();
                let (data, n) = (messages.as_ptr(), messages.len());
                let status = welm_model_chat_prompt(model(), data, n, input.flag, &mut prompt, &mut error);
                if check(status, error, !prompt.is_null()) {
                    welm_string_free(prompt);
                }
            }
            _ => {
                let stored = Stored::new(&input.options);
                let at_once = generate(prompt, &stored);
                let in_pieces = stream(prompt, &stored);
                let timed = input.options.deadline_ms.get() > 0;
                assert!(timed || at_once.is_some() == in_pieces.is_some());
                // A smaller struct has no seed.
                let seeded = input.options.seed.is_some() && !wild(input.options.size.0);
                if let (Some(a), Some(b), true) = (at_once, in_pieces, seeded && !timed) {
                    assert_eq!(a, b);
                }
            }
        }
    }
    at_rest();
}

/// Waits until nothing is open. If something stays open, it is lost, and that is a finding.
fn at_rest() {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        // SAFETY: numbers alone, for which zero is a value.
        let mut stats: welm_stats = unsafe { std::mem::zeroed() };
        stats.struct_size = size_of::<welm_stats>();
        // SAFETY: sound arguments.
        let status = unsafe { welm_model_stats(model(), &mut stats, ptr::null_mut()) };
        assert_eq!(status, WELM_OK);
        if stats.open == 0 && stats.running == 0 && stats.blocks_used == 0 {
            return;
        }
        assert!(Instant::now() < until, "{} requests stay open", stats.open);
        std::thread::yield_now();
    }
}

/// Some bytes for options to be made of.
pub fn seeds() -> Vec<Vec<u8>> {
    let bytes = |i: usize| (0..400).map(|j| ((i * 131 + j * (2 * i + 1) * 29) >> (i % 3)) as u8).collect();
    (0..16).map(bytes).chain([vec![0; 300]]).collect()
}
