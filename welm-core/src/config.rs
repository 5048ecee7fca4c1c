//! `config.json` or GGUF metadata to [`ModelConfig`]. Foreign names stop here.
//!
//! A checkpoint may have been trained with settings that this engine does not compute (another activation,
//! a mixture of experts, ...). Running it anyway would give plausible nonsense, so every setting that
//! changes the arithmetic is read, and one that is unknown is an error that names it.

use std::path::Path;

use serde_json::Value as Json;

use crate::error::{Error, Result};
use crate::weights::gguf::Gguf;

/// The formula that normalises a row before each half of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(x - mean) / sqrt(var + eps) * weight + bias` (arXiv 1607.06450).
    LayerNorm,
    /// `x / sqrt(mean(x^2) + eps) * weight` (arXiv 1910.07467).
    RmsNorm,
}

/// The nonlinearity of the feed-forward half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * (1 + erf(x / sqrt 2)) / 2` (arXiv 1606.08415).
    Gelu,
    /// GELU with the tanh approximation of the same paper.
    GeluTanh,
    /// `silu(gate) * up`, from two projections (arXiv 2002.05202).
    SwiGlu,
}

/// Which two values of a head a rotary embedding turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// `i` and `i + rotary_dim / 2`: GPT-NeoX, and Llama in Hugging Face folders.
    HalfSplit,
    /// `2 i` and `2 i + 1`: Llama in GGUF files, whose rows of q and k are permuted to match.
    Interleaved,
}

/// How rotary frequencies are stretched for contexts longer than the ones trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are low.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are high.
        high_freq_factor: f32,
        /// Context length of the first training, in tokens.
        original_context: usize,
    },
    /// One divisor per frequency, as a GGUF file may carry them; `rotary_dim / 2` of them.
    PerFrequency(Vec<f32>),
}

/// Rotary position embedding (arXiv 2104.09864).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Leading values of each head that are turned; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Frequencies are `base^(-2i / rotary_dim)`.
    pub base: f32,
    /// Which values form a pair.
    pub pairing: RopePairing,
    /// Stretching for long contexts.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Angle per position of each pair, in radians: `rotary_dim / 2` values.
    pub(crate) fn inv_freq(&self) -> Vec<f32> {
        let n = self.rotary_dim / 2;
        let plain = (0..n).map(|i| f64::from(self.base).powf(-2.0 * i as f64 / self.rotary_dim as f64));
        match &self.scaling {
            RopeScaling::None => plain.map(|f| f as f32).collect(),
            RopeScaling::Linear { factor } => plain.map(|f| (f / f64::from(*factor)) as f32).collect(),
            RopeScaling::PerFrequency(d) => plain.zip(d).map(|(f, &d)| (f / f64::from(d)) as f32).collect(),
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => plain
                .map(|f| {
                    let wavelengths = original_context as f64 * f / (2.0 * std::f64::consts::PI);
                    let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
                    // 0 at the low end (fully stretched), 1 at the high end (kept).
                    let keep = ((wavelengths - low) / (high - low)).clamp(0.0, 1.0);
                    (f * keep + f / f64::from(factor) * (1.0 - keep)) as f32
                })
                .collect(),
        }
    }
}

/// The shape of a model and everything that its arithmetic depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family as the file spells it: `welm`, `gpt_neox`, `llama`.
    pub family: String,
    /// Rows of the embedding, and length of the logits.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward half.
    pub hidden_dim: usize,
    /// Most tokens of a sequence.
    pub max_context: usize,
    /// Normalisation.
    pub norm: NormKind,
    /// Added to the variance, or the mean square.
    pub norm_eps: f32,
    /// Nonlinearity.
    pub activation: Activation,
    /// Rotary embedding.
    pub rope: Rope,
    /// Whether both halves of a layer read the same input, `x + att(norm1 x) + ffn(norm2 x)`.
    pub parallel_residual: bool,
    /// Whether the output projection is the embedding.
    pub tied_output: bool,
    /// Whether q, k, v and the attention's output have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// The token that starts a text, if there is one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// Sizes beyond these are damage, not models.
const MAX_DIM: usize = 1 << 17;
const MAX_VOCAB: usize = 1 << 22;
const MAX_LAYERS: usize = 1 << 10;
const MAX_CONTEXT: usize = 1 << 24;

impl ModelConfig {
    /// WeLM's smallest public size: 1.3 billion parameters.
    pub fn welm_medium() -> Self {
        Self::welm(24, 2048, 16)
    }

    /// WeLM's middle public size: 2.7 billion parameters; its heads are 80 wide.
    pub fn welm_large() -> Self {
        Self::welm(32, 2560, 32)
    }

    /// WeLM itself: 10 billion parameters.
    ///
    /// ```
    /// let xl = welm_core::ModelConfig::welm_xl();
    /// assert_eq!((xl.dim, xl.head_dim, xl.n_params() / 100_000_000), (5120, 128, 107));
    /// ```
    pub fn welm_xl() -> Self {
        Self::welm(32, 5120, 40)
    }

    /// A WeLM of any size, untied, with the published context and vocabulary.
    fn welm(n_layers: usize, dim: usize, n_heads: usize) -> Self {
        let head_dim = dim / n_heads;
        ModelConfig {
            family: "welm".into(),
            vocab_size: 62_080,
            dim,
            n_layers,
            n_heads,
            n_kv_heads: n_heads,
            head_dim,
            hidden_dim: 4 * dim,
            max_context: 2048,
            norm: NormKind::LayerNorm,
            norm_eps: 1e-5,
            activation: Activation::Gelu,
            rope: Rope {
                rotary_dim: head_dim,
                base: 10_000.0,
                pairing: RopePairing::HalfSplit,
                scaling: RopeScaling::None,
            },
            parallel_residual: false,
            tied_output: false,
            attention_bias: true,
            mlp_bias: true,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        }
    }

    /// Rows of the fused query, key and value projection.
    pub fn qkv_dim(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Rows of the first feed-forward projection: gate and up together where there is a gate.
    pub fn up_dim(&self) -> usize {
        if self.activation == Activation::SwiGlu { 2 * self.hidden_dim } else { self.hidden_dim }
    }

    /// Weights and biases in all; a tied output counts once.
    pub fn n_params(&self) -> u64 {
        let att = self.n_heads * self.head_dim;
        let norm = if self.norm == NormKind::LayerNorm { 2 * self.dim } else { self.dim };
        let matrices = self.dim * (self.qkv_dim() + att + self.up_dim() + self.hidden_dim);
        let biases = usize::from(self.attention_bias) * (self.qkv_dim() + self.dim)
            + usize::from(self.mlp_bias) * (self.up_dim() + self.dim);
        let tables = self.vocab_size * self.dim * if self.tied_output { 1 } else { 2 };
        ((matrices + biases + 2 * norm) * self.n_layers + tables + norm) as u64
    }

    /// Reads `config.json`, and `generation_config.json` where there is one, of a Hugging Face folder.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let fields = Fields(read_json(&path)?);
        let mut config = match fields.text("model_type")?.as_str() {
            family @ ("gpt_neox" | "welm") => Self::from_neox(&fields, family),
            "llama" => Self::from_llama(&fields),
            other => Err(Error::config("model_type", format!("`{other}` is none of gpt_neox, llama, welm"))),
        }?;
        let generation = folder.join("generation_config.json");
        if generation.is_file() {
            let fields = Fields(read_json(&generation)?);
            let eos = fields.token_ids("eos_token_id")?;
            if !eos.is_empty() {
                config.eos_token_ids = eos;
            }
        }
        config.validate()?;
        Ok(config)
    }

    fn from_neox(f: &Fields, family: &str) -> Result<Self> {
        f.refuse("quantization_config")?;
        let (dim, n_heads) = (f.size("hidden_size")?, f.size("num_attention_heads")?);
        let head_dim = f.divide("hidden_size", dim, "num_attention_heads", n_heads)?;
        // `welm` differs from `gpt_neox` in these two defaults only.
        let is_welm = family == "welm";
        let partial = f.rope_number("partial_rotary_factor", &["rotary_pct"])?;
        let partial = partial.unwrap_or(if is_welm { 1.0 } else { 0.25 });
        Ok(ModelConfig {
            family: family.into(),
            vocab_size: f.size("vocab_size")?,
            dim,
            n_layers: f.size("num_hidden_layers")?,
            n_heads,
            n_kv_heads: n_heads,
            head_dim,
            hidden_dim: f.size("intermediate_size")?,
            max_context: f.size("max_position_embeddings")?,
            norm: NormKind::LayerNorm,
            norm_eps: f.number("layer_norm_eps")?.unwrap_or(1e-5),
            activation: match f.opt_text("hidden_act")?.as_deref() {
                None | Some("gelu" | "gelu_python") => Activation::Gelu,
                Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh") => Activation::GeluTanh,
                Some(other) => {
                    let known = "gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh";
                    return Err(Error::config("hidden_act", format!("`{other}` is none of {known}")));
                }
            },
            rope: Rope {
                rotary_dim: (head_dim as f32 * partial) as usize,
                base: f.rope_number("rope_theta", &["rotary_emb_base", "rope_theta"])?.unwrap_or(10_000.0),
                pairing: RopePairing::HalfSplit,
                scaling: f.rope_scaling()?,
            },
            parallel_residual: f.flag("use_parallel_residual")?.unwrap_or(!is_welm),
            tied_output: f.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: f.flag("attention_bias")?.unwrap_or(true),
            mlp_bias: true,
            bos_token_id: f.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: f.token_ids("eos_token_id")?,
        })
    }

    fn from_llama(f: &Fields) -> Result<Self> {
        f.refuse("quantization_config")?;
        let (dim, n_heads) = (f.size("hidden_size")?, f.size("num_attention_heads")?);
        let head_dim = match f.opt_size("head_dim")? {
            Some(head_dim) => head_dim,
            None => f.divide("hidden_size", dim, "num_attention_heads", n_heads)?,
        };
        match f.opt_text("hidden_act")?.as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => return Err(Error::config("hidden_act", format!("expected silu, got `{other}`"))),
        }
        if f.rope_number("partial_rotary_factor", &["partial_rotary_factor"])?.is_some_and(|x| x != 1.0) {
            return Err(Error::config("partial_rotary_factor", "only 1 is supported for llama"));
        }
        let bias = f.flag("attention_bias")?.unwrap_or(false);
        Ok(ModelConfig {
            family: "llama".into(),
            vocab_size: f.size("vocab_size")?,
            dim,
            n_layers: f.size("num_hidden_layers")?,
            n_heads,
            n_kv_heads: f.opt_size("num_key_value_heads")?.unwrap_or(n_heads),
            head_dim,
            hidden_dim: f.size("intermediate_size")?,
            max_context: f.size("max_position_embeddings")?,
            norm: NormKind::RmsNorm,
            norm_eps: f.number("rms_norm_eps")?.unwrap_or(1e-6),
            activation: Activation::SwiGlu,
            rope: Rope {
                rotary_dim: head_dim,
                base: f.rope_number("rope_theta", &["rope_theta"])?.unwrap_or(10_000.0),
                pairing: RopePairing::HalfSplit,
                scaling: f.rope_scaling()?,
            },
            parallel_residual: false,
            tied_output: f.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: bias,
            mlp_bias: f.flag("mlp_bias")?.unwrap_or(false),
            bos_token_id: f.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: f.token_ids("eos_token_id")?,
        })
    }

    /// Reads the metadata of a GGUF file of architecture `llama` or `gptneox`.
    pub(crate) fn from_gguf(g: &Gguf) -> Result<Self> {
        let arch = g.str("general.architecture")?.to_string();
        let neox = match arch.as_str() {
            "llama" => false,
            "gptneox" => true,
            other => {
                let reason = format!("`{other}` is none of llama, gptneox");
                return Err(Error::config("general.architecture", reason));
            }
        };
        let key = |name: &str| format!("{arch}.{name}");
        let size = |name: &str| g.u64(&key(name)).map(|x| usize::try_from(x).unwrap_or(usize::MAX));
        if g.opt_u64(&key("expert_count"))?.is_some_and(|n| n > 0) {
            return Err(Error::config(key("expert_count"), "mixtures of experts are not supported"));
        }
        let (dim, n_heads) = (size("embedding_length")?, size("attention.head_count")?);
        let head_dim = match g.opt_u64(&key("attention.key_length"))? {
            Some(head_dim) => head_dim as usize,
            None => divide(&key("embedding_length"), dim, &key("attention.head_count"), n_heads)?,
        };
        let rotary_dim = g.opt_u64(&key("rope.dimension_count"))?.map_or(head_dim, |x| x as usize);
        let scaling = match g.opt_str(&key("rope.scaling.type"))? {
            None | Some("none") => match g.tensors.find("rope_freqs.weight") {
                None => RopeScaling::None,
                Some(t) => {
                    t.expect_shape(&[rotary_dim / 2])?;
                    RopeScaling::PerFrequency(t.to_f32())
                }
            },
            Some("linear") => {
                RopeScaling::Linear { factor: g.opt_f32(&key("rope.scaling.factor"))?.unwrap_or(1.0) }
            }
            Some(other) => {
                let reason = format!("`{other}` is none of none, linear");
                return Err(Error::config(key("rope.scaling.type"), reason));
            }
        };
        let eps = if neox { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
        let table = g.tensors.get("token_embd.weight")?;
        let has = |name: &str| g.tensors.find(name).is_some();
        let config = ModelConfig {
            family: arch.clone(),
            vocab_size: table.rows(),
            dim,
            n_layers: size("block_count")?,
            n_heads,
            n_kv_heads: g.opt_u64(&key("attention.head_count_kv"))?.map_or(n_heads, |x| x as usize),
            head_dim,
            hidden_dim: size("feed_forward_length")?,
            max_context: size("context_length")?,
            norm: if neox { NormKind::LayerNorm } else { NormKind::RmsNorm },
            norm_eps: g
                .opt_f32(&key(eps))?
                .ok_or_else(|| Error::config(key(eps), "missing from the file"))?,
            activation: if neox { Activation::Gelu } else { Activation::SwiGlu },
            rope: Rope {
                rotary_dim,
                base: g.opt_f32(&key("rope.freq_base"))?.unwrap_or(10_000.0),
                pairing: if neox { RopePairing::HalfSplit } else { RopePairing::Interleaved },
                scaling,
            },
            parallel_residual: neox && g.opt_bool(&key("use_parallel_residual"))?.unwrap_or(true),
            tied_output: !has("output.weight"),
            attention_bias: has("blk.0.attn_output.bias"),
            mlp_bias: has("blk.0.ffn_down.bias"),
            bos_token_id: g.opt_u64("tokenizer.ggml.bos_token_id")?.map(token_id),
            eos_token_ids: ["eos", "eot", "eom"]
                .iter()
                .filter_map(|t| g.opt_u64(&format!("tokenizer.ggml.{t}_token_id")).transpose())
                .map(|id| id.map(token_id))
                .collect::<Result<_>>()?,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that the sizes are possible together; afterwards none of their products overflows.
    pub(crate) fn validate(&self) -> Result<()> {
        let within = |setting: &str, value: usize, high: usize| {
            if (1..=high).contains(&value) {
                Ok(())
            } else {
                Err(Error::config(setting, format!("expected 1 to {high}, got {value}")))
            }
        };
        within("vocab_size", self.vocab_size, MAX_VOCAB)?;
        within("dim", self.dim, MAX_DIM)?;
        within("n_layers", self.n_layers, MAX_LAYERS)?;
        within("n_heads", self.n_heads, MAX_DIM)?;
        within("n_kv_heads", self.n_kv_heads, self.n_heads)?;
        within("head_dim", self.head_dim, 1024)?;
        within("n_heads * head_dim", self.n_heads.saturating_mul(self.head_dim), MAX_DIM)?;
        within("hidden_dim", self.hidden_dim, 4 * MAX_DIM)?;
        within("max_context", self.max_context, MAX_CONTEXT)?;
        within("rotary_dim", self.rope.rotary_dim, self.head_dim)?;
        if !self.rope.rotary_dim.is_multiple_of(2) {
            let reason = format!("expected an even number, got {}", self.rope.rotary_dim);
            return Err(Error::config("rotary_dim", reason));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let reason = format!("expected a divisor of {}, got {}", self.n_heads, self.n_kv_heads);
            return Err(Error::config("n_kv_heads", reason));
        }
        let positive = |setting: &str, value: f32| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(Error::config(setting, format!("expected a positive number, got {value}")))
            }
        };
        positive("norm_eps", self.norm_eps)?;
        positive("rope_theta", self.rope.base)?;
        match &self.rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => positive("rope_scaling.factor", *factor)?,
            RopeScaling::PerFrequency(divisors) => {
                divisors.iter().try_for_each(|&d| positive("rope_freqs", d))?;
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => {
                positive("rope_scaling.factor", *factor)?;
                positive("rope_scaling.low_freq_factor", *low_freq_factor)?;
                positive("rope_scaling.high_freq_factor", *high_freq_factor - *low_freq_factor)?;
            }
        }
        match self.eos_token_ids.iter().chain(&self.bos_token_id).find(|&&t| t as usize >= self.vocab_size) {
            Some(id) => {
                Err(Error::config("eos_token_id, bos_token_id", format!("{id} is outside the vocabulary")))
            }
            None => Ok(()),
        }
    }
}

fn read_json(path: &Path) -> Result<Json> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not JSON: {e}")))
}

/// An id that does not fit becomes one that no vocabulary has.
fn token_id(id: u64) -> u32 {
    u32::try_from(id).unwrap_or(u32::MAX)
}

fn divide(what: &str, a: usize, by: &str, b: usize) -> Result<usize> {
    if b == 0 || !a.is_multiple_of(b) {
        return Err(Error::config(what, format!("{a} is not a multiple of {by}, {b}")));
    }
    Ok(a / b)
}

/// A JSON object whose fields are read with their type checked.
struct Fields(Json);

impl Fields {
    /// The field, unless it is absent or null.
    fn find(&self, key: &str) -> Option<&Json> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn wrong(key: &str, expected: &str, got: &Json) -> Error {
        let mut got = got.to_string();
        if got.len() > 80 {
            got = format!("{} ...", got.chars().take(80).collect::<String>());
        }
        Error::config(key, format!("expected {expected}, got {got}"))
    }

    fn opt_size(&self, key: &str) -> Result<Option<usize>> {
        let size = |v: &Json| v.as_u64().and_then(|x| usize::try_from(x).ok());
        self.find(key).map(|v| size(v).ok_or_else(|| Self::wrong(key, "a whole number", v))).transpose()
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.opt_size(key)?.ok_or_else(|| Error::config(key, "missing from config.json"))
    }

    fn number(&self, key: &str) -> Result<Option<f32>> {
        let number = |v: &Json| v.as_f64().map(|x| x as f32);
        self.find(key).map(|v| number(v).ok_or_else(|| Self::wrong(key, "a number", v))).transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.find(key).map(|v| v.as_bool().ok_or_else(|| Self::wrong(key, "true or false", v))).transpose()
    }

    fn opt_text(&self, key: &str) -> Result<Option<String>> {
        let text = |v: &Json| v.as_str().map(str::to_string);
        self.find(key).map(|v| text(v).ok_or_else(|| Self::wrong(key, "a string", v))).transpose()
    }

    fn text(&self, key: &str) -> Result<String> {
        self.opt_text(key)?.ok_or_else(|| Error::config(key, "missing from config.json"))
    }

    /// One id, a list of ids, or nothing.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.find(key) else { return Ok(Vec::new()) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let id = |v: &Json| v.as_u64().and_then(|x| u32::try_from(x).ok());
        list.iter().map(|v| id(v).ok_or_else(|| Self::wrong(key, "token ids", value))).collect()
    }

    fn divide(&self, what: &str, a: usize, by: &str, b: usize) -> Result<usize> {
        divide(what, a, by, b)
    }

    /// A setting whose presence changes the arithmetic in ways that are not computed here.
    fn refuse(&self, key: &str) -> Result<()> {
        match self.find(key) {
            Some(value) => Err(Self::wrong(key, "nothing (not supported)", value)),
            None => Ok(()),
        }
    }

    /// A number of the newer `rope_parameters` object, else of one of the older top-level keys.
    fn rope_number(&self, key: &str, older: &[&str]) -> Result<Option<f32>> {
        if let Some(object) = self.find("rope_parameters")
            && let Some(x) = Fields(object.clone()).number(key)?
        {
            return Ok(Some(x));
        }
        for key in older {
            if let Some(x) = self.number(key)? {
                return Ok(Some(x));
            }
        }
        Ok(None)
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        let Some((key, object)) = ["rope_parameters", "rope_scaling"]
            .iter()
            .find_map(|key| self.find(key).map(|v| (*key, Fields(v.clone()))))
        else {
            return Ok(RopeScaling::None);
        };
        let kind = match object.opt_text("rope_type")? {
            Some(kind) => kind,
            None => object.opt_text("type")?.unwrap_or_else(|| "default".into()),
        };
        let need = |name: &str| {
            let missing = || Error::config(format!("{key}.{name}"), "missing from config.json");
            object.number(name)?.ok_or_else(missing)
        };
        match kind.as_str() {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: need("factor")? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_context: object.size("original_max_position_embeddings")?,
            }),
            other => {
                let reason = format!("`{other}` is none of default, linear, llama3");
                Err(Error::config(format!("{key}.rope_type"), reason))
            }
        }
    }
}
