//! A whole model: WeLM's 10 billion parameters, int8, of random weights, through the engine as a program uses it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use half::f16;
use safetensors::tensor::{Dtype as Stored, View};
use serde_json::json;
use welm_core::{Activations, GenerateOptions, LoadOptions, Model, ModelConfig};
use welm_kernels::Device;
use welm_kernels::gemm::{RowOrder, int8_bytes};

use crate::timing::Times;

/// Bytes of a random pattern that tensors repeat: prime, so that rows do not line up.
const PERIOD: usize = 1_048_573;

/// WeLM with 10 billion parameters, with twice its context, so that 2,048 tokens of a prompt leave room for others.
pub fn welm_xl() -> ModelConfig {
    ModelConfig { max_context: 4096, ..ModelConfig::welm_xl() }
}

/// A tensor of a file, made when it is written.
struct Tensor<'a> {
    dtype: Stored,
    shape: Vec<usize>,
    pattern: &'a [u8], // whole elements
    first: usize,      // byte of the pattern
}

impl View for &Tensor<'_> {
    fn dtype(&self) -> Stored {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut data = Vec::with_capacity(self.data_len());
        let mut rest = &self.pattern[self.first..];
        while data.len() < self.data_len() {
            data.extend_from_slice(&rest[..rest.len().min(self.data_len() - data.len())]);
            rest = self.pattern;
        }
        data.into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes a model of this shape and of random weights as an int8 folder (11.4 GB for WeLM's 10 billion parameters),
/// unless `folder` has it already. What the model says is noise, but finite, and its products are as dense as those
/// of any other.
///
/// # Errors
/// Those of the file system; a model that is not a GPT-NeoX with biases.
pub fn write_random(folder: &Path, config: &ModelConfig) -> Result<()> {
    let c = config;
    ensure!(c.attention_bias && c.mlp_bias && c.n_heads == c.n_kv_heads, "expected a GPT-NeoX with biases");
    let description = json!({
        "model_type": "welm", "vocab_size": c.vocab_size, "hidden_size": c.dim,
        "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads, "intermediate_size": c.hidden_dim,
        "hidden_act": "gelu", "max_position_embeddings": c.max_context, "layer_norm_eps": c.norm_eps,
        "use_parallel_residual": c.parallel_residual, "tie_word_embeddings": c.tied_output,
    })
    .to_string();
    let (file, described) = (folder.join("model.safetensors"), folder.join("config.json"));
    if file.is_file() && fs::read_to_string(&described).is_ok_and(|text| text == description) {
        return Ok(());
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;

    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bits = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    };
    // 128 stands for zero, and -128 is no value.
    let weights: Vec<u8> = (0..PERIOD).map(|_| (bits() % 255) as u8 + 1).collect();
    // Products of `cols` columns keep the size of what they multiply; int8 has a deviation of 73.
    let mut scales = |cols: usize| -> Vec<u8> {
        let size = 1.0 / 73.0 / (cols as f32).sqrt();
        let mut scale = || f16::from_f32(size * (0.5 + bits() as f32 / (1u64 << 31) as f32));
        (0..PERIOD).flat_map(|_| scale().to_le_bytes()).collect()
    };
    let scales: HashMap<usize, Vec<u8>> =
        [c.dim, c.n_heads * c.head_dim, c.hidden_dim].map(|cols| (cols, scales(cols))).into();
    let (one, small) = (1f32.to_le_bytes(), 0.01f32.to_le_bytes());

    let mut tensors = Vec::new();
    let vector = |name: String, len, pattern| {
        (name, Tensor { dtype: Stored::F32, shape: vec![len], pattern, first: 0 })
    };
    // As `welm_core::quantize` names and shapes them.
    let mut matrix = |name: &str, rows: usize, cols: usize, bias: bool| {
        let (down, across) = (rows.div_ceil(16), cols.div_ceil(32));
        let first = tensors.len() * 104_729 % PERIOD; // another beginning for each
        let weight =
            Tensor { dtype: Stored::U8, shape: vec![down, across, 8, 16, 4], pattern: &weights, first };
        let scale =
            Tensor { dtype: Stored::F16, shape: vec![down, across, 16], pattern: &scales[&cols], first: 0 };
        tensors.push((format!("{name}.weight"), weight));
        tensors.push((format!("{name}.scale"), scale));
        if bias {
            tensors.push(vector(format!("{name}.bias"), rows, &small));
        }
    };
    matrix("embed", c.vocab_size, c.dim, false);
    if !c.tied_output {
        matrix("output", c.vocab_size, c.dim, false);
    }
    for l in 0..c.n_layers {
        matrix(&format!("layers.{l}.qkv"), c.qkv_dim(), c.dim, true);
        matrix(&format!("layers.{l}.out"), c.dim, c.n_heads * c.head_dim, true);
        matrix(&format!("layers.{l}.up"), c.up_dim(), c.dim, true);
        matrix(&format!("layers.{l}.down"), c.dim, c.hidden_dim, true);
    }
    let of_layer = |l| ["attn_norm", "ffn_norm"].map(|part| format!("layers.{l}.{part}"));
    for name in (0..c.n_layers).flat_map(of_layer).chain(["final_norm".to_string()]) {
        tensors.push(vector(format!("{name}.weight"), c.dim, &one));
        tensors.push(vector(format!("{name}.bias"), c.dim, &small));
    }
    let metadata = HashMap::from([("format".to_string(), "welm-int8-1".to_string())]);
    let tensors = tensors.iter().map(|(name, tensor)| (name, tensor));
    safetensors::serialize_to_file(tensors, Some(metadata), &file)
        .with_context(|| file.display().to_string())?;
    // Last: with it the folder counts as complete.
    fs::write(&described, description).with_context(|| described.display().to_string())
}

/// How much is asked of a model.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Tokens of the prompt that is timed.
    pub prompt: usize,
    /// Generated tokens that are timed.
    pub tokens: usize,
    /// Times that are measured; the middle one is reported.
    pub samples: usize,
}

/// What a whole model takes.
#[derive(Debug, Clone, Copy)]
pub struct Whole {
    /// Of one generated token of one sequence.
    pub decode: Times,
    /// Bytes that this reads: the weights, but the embedding, and the keys and values.
    pub decode_bytes: u64,
    /// Of a prompt, the first generated token included.
    pub prefill: Times,
    /// Operations of that.
    pub prefill_ops: u64,
    /// Bytes of all weights on the device.
    pub weight_bytes: u64,
    /// Seconds of loading.
    pub load_seconds: f64,
}

/// Tokens of the short prompt before the generated ones, and of these the first, which are not timed.
const LEAD: usize = 8;

/// Loads a folder of [`write_random`] onto a device, and times it.
///
/// # Errors
/// Whatever the model meets.
pub fn measure(folder: &Path, device: &Device, activations: Activations, request: Request) -> Result<Whole> {
    let options = LoadOptions {
        activations,
        chunk_tokens: request.prompt,
        cache_tokens: Some((request.prompt + request.tokens + 2 * LEAD).next_multiple_of(16)),
        max_running: 1,
        prefix_cache: false,
        ..LoadOptions::default()
    };
    let start = Instant::now();
    let model = Model::load_on_device(folder, &options, device.clone())?;
    let load_seconds = start.elapsed().as_secs_f64();
    let c = model.config().clone();

    let run = |prompt: usize, tokens: usize, seed: usize| -> Result<f64> {
        let prompt: Vec<u32> =
            (0..prompt).map(|i| ((i * 7919 + seed * 104_729) % c.vocab_size) as u32).collect();
        let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(tokens) };
        let start = Instant::now();
        let answer = model.generate(&prompt, &options)?;
        let seconds = start.elapsed().as_secs_f64();
        let got = answer.usage.completion_tokens;
        ensure!(got == tokens, "expected {tokens} tokens, got {got}");
        Ok(seconds)
    };
    let samples = 0..request.samples.max(1);
    // The same prompt with a few tokens and with many: the difference is the many.
    let pair = |seed| Ok(run(LEAD, LEAD + request.tokens, seed)? - run(LEAD, LEAD, seed)?);
    pair(0)?;
    let decode = samples.clone().map(pair).collect::<Result<Vec<_>>>()?;
    run(request.prompt, 1, 0)?;
    let prefill = samples.map(|seed| run(request.prompt, 1, seed)).collect::<Result<Vec<_>>>()?;

    let weight_bytes = model.memory().mapped_bytes + model.memory().converted_bytes;
    let embedding = if c.tied_output { 0 } else { int8_bytes(c.vocab_size, c.dim, RowOrder::Plain) };
    let mean_len = 2 * LEAD + request.tokens / 2;
    let keys = 2 * 2 * c.n_layers * c.n_kv_heads * c.head_dim * mean_len;
    let att = c.n_heads * c.head_dim;
    let layer = c.dim * (c.qkv_dim() + att + c.up_dim() + c.hidden_dim);
    let n = request.prompt;
    let ops = c.n_layers * (2 * n * layer + 2 * n * (n + 1) * att) + 2 * c.vocab_size * c.dim;
    Ok(Whole {
        decode: Times::of(decode, request.tokens),
        decode_bytes: weight_bytes - embedding + keys as u64,
        prefill: Times::of(prefill, 1),
        prefill_ops: ops as u64,
        weight_bytes,
        load_seconds,
    })
}
