//! Times a whole model: WeLM with 10 billion parameters, with random int8 weights, through the engine's public
//! interface.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use welm_core::{Activations, GenerateOptions, LoadOptions, Model, ModelConfig};
use welm_kernels::Device;
use welm_kernels::gemm::{RowOrder, int8_bytes};

use crate::timing::Times;
use crate::work::{attention_ops, output_ops, product_ops};

/// WeLM with 10 billion parameters, with twice its context, so that 2,048 tokens of a prompt leave room for others.
pub fn welm_xl() -> ModelConfig {
    let mut config = ModelConfig::welm_xl();
    config.max_context = 4096;
    config
}

/// A measurement of a model.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Tokens of the prompt that is timed.
    pub prompt: usize,
    /// Generated tokens that are timed.
    pub tokens: usize,
    /// Number of samples; the median is reported.
    pub samples: usize,
}

/// The times and sizes of a whole model.
#[derive(Debug, Clone, Copy)]
pub struct Whole {
    /// Time of one generated token of one sequence.
    pub decode: Times,
    /// Bytes that this reads: the weights, without the embedding, and the keys and values.
    pub decode_bytes: u64,
    /// Time of a prompt, with the first generated token.
    pub prefill: Times,
    /// Operations of the prompt.
    pub prefill_ops: u64,
    /// Bytes of all weights on the device.
    pub weight_bytes: u64,
    /// Seconds of loading.
    pub load_seconds: f64,
}

/// Tokens of the short prompt, and as many of the first generated tokens, which are not timed.
const LEAD: usize = 8;

/// When the tokens of an answer came, in seconds from the request.
struct Came {
    first: f64,
    /// How many had come when the lead was over, and when that was.
    lead: (usize, f64),
    last: f64,
}

/// Loads a folder of [`crate::random_model::write`] onto a device, and times it. Prompts are cut into chunks of the
/// engine's default size.
///
/// # Errors
/// Whatever the model meets.
pub fn measure(folder: &Path, device: &Device, activations: Activations, request: Request) -> Result<Whole> {
    let options = LoadOptions {
        activations,
        cache_tokens: Some((request.prompt + request.tokens + 2 * LEAD).next_multiple_of(16)),
        max_running: 1,
        prefix_cache: false,
        ..LoadOptions::default()
    };
    let start = Instant::now();
    let model = Model::load_on_device(folder, &options, device.clone())?;
    let load_seconds = start.elapsed().as_secs_f64();
    let c = model.config().clone();

    let run = |prompt: usize, tokens: usize, seed: usize| -> Result<Came> {
        let prompt: Vec<u32> =
            (0..prompt).map(|i| ((i * 7919 + seed * 104_729) % c.vocab_size) as u32).collect();
        let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(tokens) };
        let start = Instant::now();
        let (mut got, mut first, mut lead) = (0, None, None);
        for piece in model.stream(&prompt, &options)? {
            let (new, now) = (piece?.tokens.len(), start.elapsed().as_secs_f64());
            got += new;
            if new > 0 {
                first.get_or_insert(now);
            }
            if got >= LEAD {
                lead.get_or_insert((got, now));
            }
        }
        ensure!(got == tokens, "expected {tokens} tokens, got {got}");
        let last = start.elapsed().as_secs_f64();
        Ok(Came { first: first.unwrap_or(last), lead: lead.unwrap_or((got, last)), last })
    };
    let samples = 0..request.samples.max(1);
    // Seconds of `request.tokens` tokens after the lead. Of two tokens that come at once, both count.
    let decode = |seed| {
        let Came { lead: (early, at), last, .. } = run(LEAD, LEAD + request.tokens, seed)?;
        let late = LEAD + request.tokens - early;
        ensure!(late > 0, "expected tokens one after another, got all at once");
        Ok((last - at) * request.tokens as f64 / late as f64)
    };
    let prefill = |seed| Ok(run(request.prompt, 1, seed)?.first);
    decode(0)?;
    let decode = samples.clone().map(decode).collect::<Result<Vec<_>>>()?;
    prefill(0)?;
    let prefill = samples.map(prefill).collect::<Result<Vec<_>>>()?;

    let weight_bytes = model.memory().mapped_bytes + model.memory().converted_bytes;
    let embedding = if c.tied_output { 0 } else { int8_bytes(c.vocab_size, c.dim, RowOrder::Plain) };
    let mean_len = 2 * LEAD + request.tokens / 2;
    let keys = 2 * 2 * c.n_layers * c.n_kv_heads * c.head_dim * mean_len;
    let n = request.prompt;
    let prefill_ops = n as u64 * product_ops(&c) + attention_ops(&c, n) + output_ops(&c);
    Ok(Whole {
        decode: Times::of(decode, request.tokens),
        decode_bytes: weight_bytes - embedding + keys as u64,
        prefill: Times::of(prefill, 1),
        prefill_ops,
        weight_bytes,
        load_seconds,
    })
}
