//! [`ModelConfig`]: the shape of a model and everything that its arithmetic depends on. No name of a file's is known here;
//! those are in [`crate::families`].

mod layer;
pub(crate) mod part;
mod rope;

use crate::error::{Error, Result};
use layer::positive;
pub use layer::{LayerConfig, QkNorm, QueryScale};
pub use rope::{Rope, RopePairing, RopeScaling};

/// The formula that normalises a row before attention and before the feed-forward block of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormKind {
    /// `(x - mean) / sqrt(var + eps) * weight + bias` (arXiv 1607.06450).
    LayerNorm,
    /// `x / sqrt(mean(x^2) + eps) * weight` (arXiv 1910.07467).
    RmsNorm,
}

impl NormKind {
    /// The formula as one lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            NormKind::LayerNorm => "layernorm",
            NormKind::RmsNorm => "rmsnorm",
        }
    }
}

/// The nonlinearity of the feed-forward half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x * (1 + erf(x / sqrt 2)) / 2` (arXiv 1606.08415).
    Gelu,
    /// GELU with the tanh approximation of the same paper.
    GeluTanh,
    /// `silu(gate) * up`, from two projections (arXiv 2002.05202).
    SwiGlu,
    /// `gelu(gate) * up`, likewise, with the tanh approximation.
    GeGlu,
}

impl Activation {
    /// The nonlinearity as one lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::SwiGlu => "swiglu",
            Activation::GeGlu => "geglu",
        }
    }

    /// Whether it takes two projections, a gate and what goes through it.
    pub fn is_gated(self) -> bool {
        matches!(self, Activation::SwiGlu | Activation::GeGlu)
    }
}

/// The shape of a model and everything that its arithmetic depends on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
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
    /// Width inside the feed-forward block.
    pub hidden_dim: usize,
    /// Most tokens of a sequence, unless [`LoadOptions::context_tokens`](crate::LoadOptions::context_tokens) asks for more
    /// than these, which [`RopeScaling::Dynamic`] and [`RopeScaling::Yarn`] allow.
    pub max_context: usize,
    /// Normalisation.
    pub norm: NormKind,
    /// Added to the variance, or the mean square.
    pub norm_eps: f32,
    /// Nonlinearity.
    pub activation: Activation,
    /// Rotary embeddings; each layer says which of them is its own.
    pub ropes: Vec<Rope>,
    /// What differs between layers, `(n_layers)`.
    pub layers: Vec<LayerConfig>,
    /// Factor of the embedding, where it enters the first layer.
    pub embed_scale: f32,
    /// Factor of the logits, before the soft cap.
    pub logit_scale: f32,
    /// `c`, if logits become `c tanh(logit / c)`.
    pub logit_soft_cap: Option<f32>,
    /// Added to the weight of every norm when it is loaded from floats: 1 if the file stores `weight - 1`, as Gemma's do,
    /// else 0.
    pub norm_offset: f32,
    /// Whether attention and feed-forward block of a layer read the same input, `x + att(norm1 x) + ffn(norm2 x)`.
    pub parallel_residual: bool,
    /// Whether the output projection is the embedding.
    pub tied_output: bool,
    /// Whether the projection of q, k and v has a bias. True also if only the attention's output has one.
    pub attention_bias: bool,
    /// Whether the attention's output projection has a bias. False with `attention_bias`: q, k and v only, as in Qwen2.
    pub attention_out_bias: bool,
    /// Whether any of the feed-forward projections has a bias.
    pub mlp_bias: bool,
    /// The token that starts a text, if there is one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// The sizes of a model, from which [`ModelConfig::plain`] makes one.
#[derive(Debug, Clone, Copy)]
pub struct ModelSizes {
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
    /// Width inside the feed-forward block.
    pub hidden_dim: usize,
    /// Most tokens of a sequence.
    pub max_context: usize,
}

/// Sizes beyond these are damage, not models.
const MAX_DIM: usize = 1 << 17;
/// Also of tokens in the files of a tokenizer: a damaged file must not make tables large.
pub(crate) const MAX_VOCAB: usize = 1 << 22;
const MAX_LAYERS: usize = 1 << 10;
const MAX_CONTEXT: usize = 1 << 24;

impl ModelConfig {
    /// WeLM's smallest public size: 1.5 billion parameters with both embeddings, 1.3 billion as its authors count.
    pub fn welm_medium() -> Self {
        Self::welm(24, 2048, 16)
    }

    /// WeLM's middle public size: 2.8 billion parameters with both embeddings, 2.7 billion as its authors count. Its heads
    /// are 80 wide.
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
        let rope = Rope::new(head_dim, 10_000.0);
        let sizes = ModelSizes {
            vocab_size: 62_080,
            dim,
            n_layers,
            n_heads,
            n_kv_heads: n_heads,
            head_dim,
            hidden_dim: 4 * dim,
            max_context: 2048,
        };
        ModelConfig {
            family: "welm".into(),
            attention_bias: true,
            attention_out_bias: true,
            mlp_bias: true,
            ..Self::plain(sizes, NormKind::LayerNorm, 1e-5, Activation::Gelu, rope)
        }
    }

    /// The plainest decoder of these sizes. It has an output projection of its own (not tied to the embedding), no biases,
    /// the feed-forward half after attention (not parallel), and equal layers. A family's reader starts from it and sets
    /// what differs.
    ///
    /// A program can use it to learn how much memory a model of other sizes would take:
    ///
    /// ```
    /// use welm_core::{Activation, Estimate, LoadOptions, ModelConfig, ModelSizes, NormKind, Rope};
    /// let sizes = ModelSizes {
    ///     vocab_size: 32_000,
    ///     dim: 2048,
    ///     n_layers: 16,
    ///     n_heads: 32,
    ///     n_kv_heads: 8,
    ///     head_dim: 64,
    ///     hidden_dim: 8192,
    ///     max_context: 4096,
    /// };
    /// let rope = Rope::new(sizes.head_dim, 500_000.0);
    /// let mut config = ModelConfig::plain(sizes, NormKind::RmsNorm, 1e-5, Activation::SwiGlu, rope);
    /// config.tied_output = true;
    /// let estimate = Estimate::of_config(&config, &LoadOptions::default())?;
    /// assert_eq!(estimate.context_tokens, 4096);
    /// # Ok::<(), welm_core::Error>(())
    /// ```
    pub fn plain(
        sizes: ModelSizes,
        norm: NormKind,
        norm_eps: f32,
        activation: Activation,
        rope: Rope,
    ) -> Self {
        let ModelSizes { vocab_size, dim, n_layers, n_heads, n_kv_heads, head_dim, hidden_dim, max_context } =
            sizes;
        ModelConfig {
            family: String::new(),
            vocab_size,
            dim,
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim,
            hidden_dim,
            max_context,
            norm,
            norm_eps,
            activation,
            ropes: vec![rope],
            layers: LayerConfig::all(head_dim, n_layers),
            embed_scale: 1.0,
            logit_scale: 1.0,
            logit_soft_cap: None,
            norm_offset: 0.0,
            parallel_residual: false,
            tied_output: false,
            attention_bias: false,
            attention_out_bias: false,
            mlp_bias: false,
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
        if self.activation.is_gated() { 2 * self.hidden_dim } else { self.hidden_dim }
    }

    /// Has attention and feed-forward block of each layer add `multiplier` times their output to the residual stream, as
    /// Granite and MiniCPM do.
    ///
    /// The stream is kept divided by the multiplier, `x' = x / m`, so that no operation is needed for it:
    ///
    /// ```text
    /// x + m f(rmsnorm(x))  =  m (x' + f(rmsnorm(m x'))),    rmsnorm(m x') with eps  =  rmsnorm(x') with eps / m^2
    /// ```
    ///
    /// This holds for models whose only norms are those before each half and before the output.
    pub(crate) fn multiply_residual(&mut self, multiplier: f32) -> Result<()> {
        positive("residual multiplier", multiplier)?;
        assert!(
            !self.layers.iter().any(|layer| layer.qk_norm.is_some() || layer.post_norms),
            "of other values"
        );
        let m = f64::from(multiplier);
        self.embed_scale = (f64::from(self.embed_scale) / m) as f32;
        self.norm_eps = (f64::from(self.norm_eps) / (m * m)) as f32;
        Ok(())
    }

    /// Most tokens of a sequence that the rotary embeddings can be stretched to.
    pub(crate) fn longest_context(&self) -> usize {
        let stretched = self.ropes.iter().map(|rope| rope.stretched_context(self.max_context));
        stretched.min().unwrap_or(self.max_context).min(MAX_CONTEXT)
    }

    /// Checks that the sizes are possible together; afterwards none of their products overflows.
    pub(crate) fn validate(&self) -> Result<()> {
        within("vocab_size", self.vocab_size, MAX_VOCAB)?;
        within("dim", self.dim, MAX_DIM)?;
        within("n_layers", self.n_layers, MAX_LAYERS)?;
        within("n_heads", self.n_heads, MAX_DIM)?;
        within("n_kv_heads", self.n_kv_heads, self.n_heads)?;
        within("head_dim", self.head_dim, 1024)?;
        within("n_heads * head_dim", self.n_heads.saturating_mul(self.head_dim), MAX_DIM)?;
        within("hidden_dim", self.hidden_dim, 4 * MAX_DIM)?;
        within("max_context", self.max_context, MAX_CONTEXT)?;
        self.ropes.iter().try_for_each(|rope| rope.validate(self.head_dim))?;
        if self.layers.len() != self.n_layers {
            let reason = format!("expected one for each of {}, got {}", self.n_layers, self.layers.len());
            return Err(Error::config("layers", reason));
        }
        if self.ropes.is_empty() {
            return Err(Error::config("rotary embedding", "expected at least one, got none"));
        }
        self.layers.iter().try_for_each(|layer| layer.validate(self.ropes.len()))?;
        if self.parallel_residual && self.layers.iter().any(|layer| !layer.pre_norms) {
            let reason = "halves that read the same input need a norm before each, and a layer has none";
            return Err(Error::config("parallel residual", reason));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let reason = format!("expected a divisor of {}, got {}", self.n_heads, self.n_kv_heads);
            return Err(Error::config("n_kv_heads", reason));
        }
        positive("norm_eps", self.norm_eps)?;
        positive("embed_scale", self.embed_scale)?;
        positive("logit_scale", self.logit_scale)?;
        self.logit_soft_cap.map_or(Ok(()), |cap| positive("logit_soft_cap", cap))?;
        if !self.norm_offset.is_finite() {
            let reason = format!("expected a number, got {}", self.norm_offset);
            return Err(Error::config("norm_offset", reason));
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
    pub(crate) fn forget_ends_outside(&mut self) {
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

/// Refuses a size outside of `1..=high`.
fn within(setting: &str, value: usize, high: usize) -> Result<()> {
    if (1..=high).contains(&value) {
        Ok(())
    } else {
        Err(Error::config(setting, format!("expected 1 to {high}, got {value}")))
    }
}
