//! `config.json` or GGUF metadata to [`ModelConfig`]. Foreign names stop here.
//!
//! A checkpoint may have been trained with settings that this engine does not compute (another activation,
//! a mixture of experts, ...). Running it anyway would give plausible nonsense, so every setting that
//! changes the arithmetic is read, and one that is unknown is an error that names it.

mod fields;
mod keys;
mod rope;
#[cfg(test)]
mod tests;

use std::path::Path;

use crate::error::{Error, Result};
use crate::side_file::{CONFIG, GENERATION_CONFIG};
use crate::weights::gguf::Gguf;
use fields::Fields;
use rope::Beside;

/// The key of `config.json` that names the family.
pub(crate) const FAMILY: &str = "model_type";

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
    /// Whether any of q, k, v and the attention's output has a bias.
    pub attention_bias: bool,
    /// Whether any of the feed-forward projections has a bias.
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
    ///
    /// Every setting of `config.json` is read, or is known to have no effect, or is off; one that nobody knows is told
    /// to the log. The tokens that end a text are those of `generation_config.json` if it names some, as in
    /// transformers.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let missing = || Error::io(folder.join(CONFIG.name), "no such file");
        let fields = Fields::new(&folder.join(CONFIG.name), CONFIG.json(folder)?.ok_or_else(missing)?)?;
        let mut config = match fields.text(FAMILY)? {
            family @ ("gpt_neox" | "welm") => Self::from_neox(&fields, family),
            "llama" => Self::from_llama(&fields),
            other => Err(Error::config(FAMILY, format!("`{other}` is none of gpt_neox, llama, welm"))),
        }?;
        fields.account_for_rest()?;
        if let Some(json) = GENERATION_CONFIG.json(folder)? {
            let fields = Fields::new(&folder.join(GENERATION_CONFIG.name), json)?;
            let eos = fields.token_ids("eos_token_id")?;
            if !eos.is_empty() {
                config.eos_token_ids = eos;
            }
            config.bos_token_id = fields.token_id("bos_token_id")?.or(config.bos_token_id);
        }
        config.forget_ends_outside();
        config.validate()?;
        Ok(config)
    }

    fn from_neox(f: &Fields, family: &str) -> Result<Self> {
        refuse_foreign(f, &["gptneox", "welm"])?;
        let (dim, n_heads) = (f.size("hidden_size")?, f.size("num_attention_heads")?);
        let head_dim = divide("hidden_size", dim, "num_attention_heads", n_heads)?;
        f.fixed_size("head_dim", head_dim)?;
        f.fixed_size("num_key_value_heads", n_heads)?;
        let max_context = f.size("max_position_embeddings")?;
        refuse_window(f, max_context)?;
        // `welm` differs from `gpt_neox` in two defaults, and takes both names of the base.
        let is_welm = family == "welm";
        let beside = Beside {
            base: if is_welm { &["rotary_emb_base", "rope_theta"] } else { &["rotary_emb_base"] },
            part: "rotary_pct",
            default_part: if is_welm { 1.0 } else { 0.25 },
        };
        Ok(ModelConfig {
            family: family.into(),
            vocab_size: f.size("vocab_size")?,
            dim,
            n_layers: f.size("num_hidden_layers")?,
            n_heads,
            n_kv_heads: n_heads,
            head_dim,
            hidden_dim: f.size("intermediate_size")?,
            max_context,
            norm: NormKind::LayerNorm,
            norm_eps: f.number("layer_norm_eps")?.unwrap_or(1e-5) as f32,
            activation: match f.opt_text("hidden_act")? {
                None | Some("gelu" | "gelu_python") => Activation::Gelu,
                Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh") => Activation::GeluTanh,
                Some(other) => {
                    let known = "gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh";
                    return Err(Error::config("hidden_act", format!("`{other}` is none of {known}")));
                }
            },
            rope: rope::of_folder(f, &beside, head_dim, max_context)?,
            parallel_residual: f.flag("use_parallel_residual")?.unwrap_or(!is_welm),
            tied_output: f.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: f.flag("attention_bias")?.unwrap_or(true),
            mlp_bias: true,
            bos_token_id: f.token_id("bos_token_id")?,
            eos_token_ids: f.token_ids("eos_token_id")?,
        })
    }

    fn from_llama(f: &Fields) -> Result<Self> {
        refuse_foreign(f, &["llama"])?;
        let (dim, n_heads) = (f.size("hidden_size")?, f.size("num_attention_heads")?);
        let head_dim = match f.opt_size("head_dim")? {
            Some(head_dim) => head_dim,
            None => divide("hidden_size", dim, "num_attention_heads", n_heads)?,
        };
        match f.opt_text("hidden_act")? {
            None | Some("silu" | "swish") => {}
            Some(other) => return Err(Error::config("hidden_act", format!("expected silu, got `{other}`"))),
        }
        let max_context = f.size("max_position_embeddings")?;
        refuse_window(f, max_context)?;
        let beside = Beside { base: &["rope_theta"], part: "partial_rotary_factor", default_part: 1.0 };
        let rope = rope::of_folder(f, &beside, head_dim, max_context)?;
        if rope.rotary_dim != head_dim {
            return Err(Error::config("partial_rotary_factor", "only 1 is supported for llama"));
        }
        Ok(ModelConfig {
            family: "llama".into(),
            vocab_size: f.size("vocab_size")?,
            dim,
            n_layers: f.size("num_hidden_layers")?,
            n_heads,
            n_kv_heads: f.opt_size("num_key_value_heads")?.unwrap_or(n_heads),
            head_dim,
            hidden_dim: f.size("intermediate_size")?,
            max_context,
            norm: NormKind::RmsNorm,
            norm_eps: f.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            activation: Activation::SwiGlu,
            rope,
            parallel_residual: false,
            tied_output: f.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: f.flag("attention_bias")?.unwrap_or(false),
            mlp_bias: f.flag("mlp_bias")?.unwrap_or(false),
            bos_token_id: f.token_id("bos_token_id")?,
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
                let types = g.tensors.unsupported_types_too();
                let reason = format!("`{other}` is none of gptneox, llama{types}");
                return Err(Error::config("general.architecture", reason));
            }
        };
        if let Some(kind) = g.opt_str("general.type")?.filter(|&kind| kind != "model") {
            return Err(Error::config("general.type", format!("expected model, got `{kind}`")));
        }
        let key = |name: &str| format!("{arch}.{name}");
        let size = |name: &str| g.u64(&key(name)).map(size_of);
        let (dim, n_heads) = (size("embedding_length")?, size("attention.head_count")?);
        let by_heads = || divide(&key("embedding_length"), dim, &key("attention.head_count"), n_heads);
        let width = |name: &str| g.opt_u64(&key(name))?.map_or_else(by_heads, |x| Ok(size_of(x)));
        let (head_dim, value_dim) = (width("attention.key_length")?, width("attention.value_length")?);
        if value_dim != head_dim {
            let reason = format!("expected that of keys, {head_dim}, got {value_dim}");
            return Err(Error::config(key("attention.value_length"), reason));
        }
        let scale = 1.0 / (head_dim as f32).sqrt();
        if let Some(other) =
            g.opt_f32(&key("attention.scale"))?.filter(|x| *x != 0.0 && (x - scale).abs() > 1e-6)
        {
            return Err(Error::config(key("attention.scale"), format!("expected {scale}, got {other}")));
        }
        let eps = if neox { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
        let vocab_size = g.tensors.get("token_embd.weight")?.rows();
        if let Some(other) = g.opt_u64(&key("vocab_size"))?.filter(|&n| n != vocab_size as u64) {
            // llama.cpp does not look at the key either.
            tracing::warn!(
                rows = vocab_size,
                key = other,
                "vocab_size is not the rows of token_embd.weight, which count"
            );
        }
        let mut config = ModelConfig {
            family: arch.clone(),
            vocab_size,
            dim,
            n_layers: size("block_count")?,
            n_heads,
            n_kv_heads: g.opt_u64(&key("attention.head_count_kv"))?.map_or(n_heads, size_of),
            head_dim,
            hidden_dim: size("feed_forward_length")?,
            max_context: size("context_length")?,
            norm: if neox { NormKind::LayerNorm } else { NormKind::RmsNorm },
            norm_eps: g
                .opt_f32(&key(eps))?
                .ok_or_else(|| Error::config(key(eps), "missing from the file"))?,
            activation: if neox { Activation::Gelu } else { Activation::SwiGlu },
            rope: rope::of_gguf(g, &arch, head_dim)?,
            parallel_residual: match g.opt_bool(&key("use_parallel_residual"))? {
                Some(true) if !neox => {
                    return Err(Error::config(
                        key("use_parallel_residual"),
                        "expected false for llama, got true",
                    ));
                }
                parallel => neox && parallel.unwrap_or(true),
            },
            tied_output: !g.tensors.contains("output.weight"),
            // A Llama's parts have their biases or not, each by itself; see `weights::load`.
            attention_bias: neox,
            mlp_bias: neox,
            bos_token_id: g.opt_u64("tokenizer.ggml.bos_token_id")?.map(token_id),
            eos_token_ids: ["eos", "eot", "eom"]
                .iter()
                .filter_map(|t| g.opt_u64(&format!("tokenizer.ggml.{t}_token_id")).transpose())
                .map(|id| id.map(token_id))
                .collect::<Result<_>>()?,
        };
        account_for_gguf(g, &arch)?;
        config.forget_ends_outside();
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
        match self.bos_token_id.filter(|&id| id as usize >= self.vocab_size) {
            Some(id) => {
                let reason = format!("expected a token below vocab_size, {}, got {id}", self.vocab_size);
                Err(Error::config("bos_token_id", reason))
            }
            None => Ok(()),
        }
    }

    /// Forgets end tokens that the model has no row for: it cannot generate them.
    fn forget_ends_outside(&mut self) {
        let rows = self.vocab_size;
        self.eos_token_ids.retain(|&id| {
            let inside = (id as usize) < rows;
            if !inside {
                tracing::warn!(id, rows, "an end token is outside of the vocabulary, and never comes");
            }
            inside
        });
    }
}

/// Refuses a model that says it is stored or computed in another way than its family.
fn refuse_foreign(f: &Fields, names: &[&str]) -> Result<()> {
    f.refuse("quantization_config")?;
    if let Some(value) = f.find("architectures") {
        let wrong =
            || f.wrong("architectures", &format!("names that begin with {}", names.join(" or ")), value);
        let list = value.as_array().ok_or_else(wrong)?;
        let own = |name: &str| names.iter().any(|own| name.to_lowercase().starts_with(own));
        if !list.iter().all(|name| name.as_str().is_some_and(own)) {
            return Err(wrong());
        }
    }
    if f.find("auto_map").is_some() {
        tracing::warn!("config.json names Python code of its own (auto_map), which is not run");
    }
    Ok(())
}

/// Refuses a window of positions that is narrower than the context, unless it is switched off.
fn refuse_window(f: &Fields, max_context: usize) -> Result<()> {
    let used = f.flag("use_sliding_window")?;
    match f.opt_size("sliding_window")? {
        Some(window) if window < max_context && used != Some(false) => {
            let reason = format!("expected nothing, or at least {max_context} (not supported), got {window}");
            Err(Error::config("sliding_window", reason))
        }
        None if used == Some(true) => Err(Error::config("use_sliding_window", "is not supported")),
        _ => Ok(()),
    }
}

/// Looks up what nobody has read of the architecture's own keys.
fn account_for_gguf(g: &Gguf, arch: &str) -> Result<()> {
    let mut unknown = Vec::new();
    for (key, value) in g.unread() {
        let Some(name) = key.strip_prefix(arch).and_then(|rest| rest.strip_prefix('.')) else { continue };
        match keys::of_gguf(name) {
            keys::Effect::None => {}
            keys::Effect::Off(off) if g.to_json(value).is_some_and(|value| off.is(&value)) => {}
            keys::Effect::Off(off) => {
                return Err(Error::config(key, format!("expected {off} (not supported), got {value}")));
            }
            keys::Effect::Unknown => unknown.push(key),
        }
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        tracing::warn!(keys = unknown.join(", "), "the file has settings that nothing reads");
    }
    Ok(())
}

/// A size that does not fit becomes one that no model has.
fn size_of(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
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
