//! Models of random weights in the engine's own int8 format, of any shape.
//!
//! The output of such a model is noise, but finite. Its speed is that of a real model, because neither int8 arithmetic
//! nor memory accesses depend on the values.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use half::f16;
use safetensors::tensor::{Dtype as Stored, View};
use serde_json::{Value, json};
use welm_core::{Activation, ModelConfig, ModelSizes, NormKind, Rope};

/// Bytes of a random pattern that tensors repeat. It is prime, so that rows are not equal.
const PERIOD: usize = 1_048_573;

/// The names of the shapes.
pub const SHAPES: [&str; 4] = ["welm-medium", "welm-large", "welm-xl", "qwen-0.5b"];

/// A shape by name.
///
/// `qwen-0.5b` is that of Qwen2.5-0.5B, with one difference: if a model of this engine's Llama family has biases in the
/// attention, it also has one on the attention's output, `dim` values a layer.
pub fn shape(name: &str) -> Option<ModelConfig> {
    Some(match name {
        "welm-medium" => ModelConfig::welm_medium(),
        "welm-large" => ModelConfig::welm_large(),
        "welm-xl" => ModelConfig::welm_xl(),
        "qwen-0.5b" => qwen_half_billion(),
        _ => return None,
    })
}

fn qwen_half_billion() -> ModelConfig {
    let sizes = ModelSizes {
        vocab_size: 151_936,
        dim: 896,
        n_layers: 24,
        n_heads: 14,
        n_kv_heads: 2,
        head_dim: 64,
        hidden_dim: 4864,
        max_context: 32_768,
    };
    let rope = Rope::new(sizes.head_dim, 1e6);
    let mut config = ModelConfig::plain(sizes, NormKind::RmsNorm, 1e-6, Activation::SwiGlu, rope);
    config.family = "llama".into();
    (config.tied_output, config.attention_bias, config.attention_out_bias) = (true, true, true);
    config
}

/// `config.json` of a shape.
fn describe(c: &ModelConfig) -> Result<Value> {
    let shared = json!({
        "vocab_size": c.vocab_size, "hidden_size": c.dim, "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads, "intermediate_size": c.hidden_dim,
        "max_position_embeddings": c.max_context, "rope_theta": c.ropes[0].base, "tie_word_embeddings": c.tied_output,
    });
    let own = match c.norm {
        NormKind::LayerNorm => {
            ensure!(c.attention_bias && c.mlp_bias, "expected a GPT-NeoX with biases");
            ensure!(c.n_heads == c.n_kv_heads, "expected as many heads of keys as of queries");
            ensure!(c.activation == Activation::Gelu, "expected gelu, got {:?}", c.activation);
            json!({
                "model_type": "welm", "hidden_act": "gelu", "layer_norm_eps": c.norm_eps,
                "use_parallel_residual": c.parallel_residual,
            })
        }
        _ => {
            ensure!(c.norm == NormKind::RmsNorm, "expected layernorm or rmsnorm, got {:?}", c.norm);
            ensure!(c.activation == Activation::SwiGlu, "expected swiglu, got {:?}", c.activation);
            json!({
                "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": c.norm_eps, "head_dim": c.head_dim,
                "num_key_value_heads": c.n_kv_heads, "attention_bias": c.attention_bias, "mlp_bias": c.mlp_bias,
            })
        }
    };
    let (Value::Object(mut all), Value::Object(own)) = (shared, own) else {
        unreachable!("both are objects")
    };
    all.extend(own);
    Ok(Value::Object(all))
}

/// A tensor of a file. Its values are made when it is written.
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

/// The format that [`write`] writes.
const FORMAT: &str = "welm-int8-2";

/// Whether there is a file of weights in this format, by its first bytes.
fn is_current(file: &Path) -> bool {
    let mut head = [0; 256];
    let read = fs::File::open(file).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && String::from_utf8_lossy(&head).contains(FORMAT)
}

/// Writes a model of this shape and of random weights as an int8 folder (11.4 GB for WeLM's 10 billion parameters),
/// unless `folder` has it already.
///
/// # Errors
/// Those of the file system; a model that is neither a GPT-NeoX with biases nor of the Llama family.
pub fn write(folder: &Path, config: &ModelConfig) -> Result<()> {
    let c = config;
    let description = describe(c)?.to_string();
    let (file, described) = (folder.join("model.safetensors"), folder.join("config.json"));
    if is_current(&file) && fs::read_to_string(&described).is_ok_and(|text| text == description) {
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
    // A byte of 128 is the value 0. The value -128 is not used.
    let weights: Vec<u8> = (0..PERIOD).map(|_| (bits() % 255) as u8 + 1).collect();
    // With these scales, products over `cols` columns have the size of their inputs. Random int8 values have a standard
    // deviation of 73.
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
    // With the names and shapes of `welm_core::quantize`.
    let mut matrix = |name: &str, rows: usize, cols: usize, bias: bool| {
        let (down, across) = (rows.div_ceil(16), cols.div_ceil(32));
        let groups = if cols.is_multiple_of(64) { cols.div_ceil(128) } else { across };
        let first = tensors.len() * 104_729 % PERIOD; // each tensor begins elsewhere in the pattern
        let weight =
            Tensor { dtype: Stored::U8, shape: vec![down, across, 8, 16, 4], pattern: &weights, first };
        let scale =
            Tensor { dtype: Stored::F16, shape: vec![down, groups, 16], pattern: &scales[&cols], first: 0 };
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
        matrix(&format!("layers.{l}.qkv"), c.qkv_dim(), c.dim, c.attention_bias);
        matrix(&format!("layers.{l}.out"), c.dim, c.n_heads * c.head_dim, c.attention_out_bias);
        matrix(&format!("layers.{l}.up"), c.up_dim(), c.dim, c.mlp_bias);
        matrix(&format!("layers.{l}.down"), c.dim, c.hidden_dim, c.mlp_bias);
    }
    let of_layer = |l| ["attn_norm", "ffn_norm"].map(|part| format!("layers.{l}.{part}"));
    for name in (0..c.n_layers).flat_map(of_layer).chain(["final_norm".to_string()]) {
        tensors.push(vector(format!("{name}.weight"), c.dim, &one));
        if c.norm == NormKind::LayerNorm {
            tensors.push(vector(format!("{name}.bias"), c.dim, &small));
        }
    }
    let metadata = HashMap::from([("format".to_string(), FORMAT.to_string())]);
    let tensors = tensors.iter().map(|(name, tensor)| (name, tensor));
    safetensors::serialize_to_file(tensors, Some(metadata), &file)
        .with_context(|| file.display().to_string())?;
    // This file is written last: with it the folder counts as complete.
    fs::write(&described, description).with_context(|| described.display().to_string())
}
