//! What differs between models, and between the layers of one: data that `forward` hands to the operations.

use super::{MAX_CONTEXT, MAX_LAYERS, within};
use crate::error::{Error, Result};

/// An rmsnorm of q and of k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QkNorm {
    /// Of each head, before the rotary embedding: Qwen3, Gemma 3.
    Head,
    /// Of each head, after the rotary embedding: Hunyuan.
    TurnedHead,
    /// Of all heads of a token together, before the rotary embedding: OLMo 2.
    AllHeads,
}

/// A factor of q that grows with a token's position: `1 + beta ln(1 + floor(position / length))`.
///
/// Attention over very many keys becomes flat; the factor sharpens it again. Llama 4 has it as "attention temperature
/// tuning" (arXiv 2501.19399 gives the reason), and Ministral 3 as `llama_4_scaling_beta`.
///
/// ```
/// let scale = welm_core::QueryScale { beta: 0.1, length: 16_384 };
/// assert_eq!(scale.factor(16_383), 1.0);
/// assert_eq!(scale.factor(16_384), 1.0 + 0.1 * 2f32.ln());
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryScale {
    /// How strongly it grows.
    pub beta: f32,
    /// After how many tokens it grows: usually the context length of the first training.
    pub length: usize,
}

impl QueryScale {
    /// The factor at a position, which counts from 0. It is 1 if `length` is 0, which no model may have.
    pub fn factor(&self, position: u32) -> f32 {
        let times = (position as usize).checked_div(self.length).unwrap_or(0);
        if times == 0 {
            return 1.0;
        }
        // Not the system's: the bits of its last digit are not the same everywhere.
        (1.0 + f64::from(self.beta) * libm::log(1.0 + times as f64)) as f32
    }

    fn validate(&self) -> Result<()> {
        if !(self.beta.is_finite() && self.beta >= 0.0) {
            let reason = format!("expected a number of at least 0, got {}", self.beta);
            return Err(Error::config("query scale's beta", reason));
        }
        within("query scale's length", self.length, MAX_CONTEXT)
    }
}

/// How one layer computes.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LayerConfig {
    /// The sliding window of attention, in tokens: how many keys a token sees, its own included. None: all up to its own.
    pub window: Option<usize>,
    /// Attention scores are `scale * q k^T`; in most models `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// The factor of q in long texts, after norm and rotary embedding, if there is one.
    pub query_scale: Option<QueryScale>,
    /// `c`, if scores become `c tanh(score / c)` before the softmax.
    pub soft_cap: Option<f32>,
    /// Which of [`ModelConfig::ropes`](super::ModelConfig::ropes) rotates q and k. None: they are not rotated.
    pub rope: Option<usize>,
    /// The norm of q and k, if they take one.
    pub qk_norm: Option<QkNorm>,
    /// Whether the inputs of attention and of the feed-forward half are normalised.
    pub pre_norms: bool,
    /// Whether the outputs of attention and of the feed-forward half are normalised before they are added to the residual.
    pub post_norms: bool,
}

impl LayerConfig {
    /// As in Llama and GPT-NeoX: all keys, a scale of `1 / sqrt(head_dim)`, the first rotary embedding, and nothing else.
    ///
    /// ```
    /// let layer = welm_core::LayerConfig::new(64);
    /// assert_eq!((layer.window, layer.scale, layer.soft_cap), (None, 0.125, None));
    /// ```
    pub fn new(head_dim: usize) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        LayerConfig {
            window: None,
            scale,
            query_scale: None,
            soft_cap: None,
            rope: Some(0),
            qk_norm: None,
            pre_norms: true,
            post_norms: false,
        }
    }

    /// `n_layers` of these, for [`ModelConfig::layers`](super::ModelConfig::layers). At most 1,024 are made: a damaged file
    /// may state any number, and must not take memory before it is refused.
    pub fn all(head_dim: usize, n_layers: usize) -> Vec<Self> {
        vec![Self::new(head_dim); n_layers.min(MAX_LAYERS)]
    }

    /// Checks what `forward` relies on.
    pub(super) fn validate(&self, n_ropes: usize) -> Result<()> {
        positive("attention scale", self.scale)?;
        self.query_scale.map_or(Ok(()), |scale| scale.validate())?;
        self.soft_cap.map_or(Ok(()), |cap| positive("attention soft cap", cap))?;
        if self.window == Some(0) {
            return Err(Error::config("attention window", "expected at least 1, got 0"));
        }
        match self.rope.filter(|&rope| rope >= n_ropes) {
            Some(rope) => {
                let reason = format!("expected one of {n_ropes}, got that of index {rope}");
                Err(Error::config("rotary embedding", reason))
            }
            None => Ok(()),
        }
    }
}

/// Refuses a setting that is not a positive number.
pub(super) fn positive(setting: &str, value: f32) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(Error::config(setting, format!("expected a positive number, got {value}")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::ModelConfig;
    use super::*;

    #[test]
    fn a_layer_is_checked() {
        let check = |change: &dyn Fn(&mut ModelConfig)| {
            let mut config = ModelConfig::welm_medium();
            change(&mut config);
            config.validate().map_err(|e| e.to_string())
        };
        assert_eq!(check(&|_| {}), Ok(()));
        assert_eq!(check(&|c| c.layers[3].window = Some(1)), Ok(()));
        let query_scale = |beta, length| Some(QueryScale { beta, length });
        assert_eq!(check(&|c| c.layers[3].query_scale = query_scale(0.0, 1)), Ok(()));
        let wrong: [(&dyn Fn(&mut ModelConfig), &str); 12] = [
            (&|c| c.layers[3].window = Some(0), "attention window"),
            (&|c| c.layers[3].scale = 0.0, "attention scale"),
            (&|c| c.layers[3].query_scale = query_scale(-0.1, 16), "query scale's beta"),
            (&|c| c.layers[3].query_scale = query_scale(0.1, 0), "query scale's length"),
            (&|c| c.layers[3].soft_cap = Some(f32::INFINITY), "attention soft cap"),
            (&|c| c.layers[3].rope = Some(1), "rotary embedding"),
            (&|c| c.ropes.clear(), "rotary embedding"),
            (&|c| (c.layers[3].pre_norms, c.parallel_residual) = (false, true), "parallel residual"),
            (&|c| c.layers.truncate(3), "layers"),
            (&|c| c.embed_scale = f32::NAN, "embed_scale"),
            (&|c| c.logit_soft_cap = Some(-1.0), "logit_soft_cap"),
            (&|c| c.norm_offset = f32::INFINITY, "norm_offset"),
        ];
        for (change, setting) in wrong {
            let error = check(change).unwrap_err();
            assert!(error.contains(&format!("`{setting}`")), "{setting}: {error}");
        }
    }
}
