//! Rotary position embedding (arXiv 2104.09864), and how it is stretched for contexts longer than the one trained on.
//!
//! # Stretching that depends on the length
//!
//! Two kinds have frequencies that depend on the length of the sequence: [`RopeScaling::Dynamic`] and
//! [`RopeScaling::LongRope`]. transformers computes them anew when a sequence grows beyond a limit. The keys that are
//! in its cache by then stay as they were turned before, so that the rest of the text mixes both, and a text depends on
//! where its prompt ended. Here keys are also shared by sequences of any length (the prefix cache), and a request must
//! have the same bits beside any others. So the frequencies are chosen once, when the model is loaded: they are those
//! that transformers uses for a prompt as long as the context that the model is loaded with. llama.cpp and vLLM choose
//! by the loaded context, too.
//!
//! A model that shall only read short texts is best loaded with a context that is no longer than the one trained on.

use super::layer::positive;
use super::within;
use crate::error::{Error, Result};

/// Which two values of a head a rotary embedding turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RopePairing {
    /// `i` and `i + rotary_dim / 2`: GPT-NeoX, and Llama in Hugging Face folders.
    HalfSplit,
    /// `2 i` and `2 i + 1`: GLM, and Llama in GGUF files, whose rows of q and k are permuted to match.
    Interleaved,
}

/// How rotary frequencies are stretched for contexts longer than the ones trained on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// A larger base, by how far the loaded context exceeds the one trained on ("dynamic NTK"). Within the latter, as
    /// trained.
    Dynamic {
        /// How much longer a context may be.
        factor: f32,
        /// Context length of the training, in tokens.
        original_context: usize,
    },
    /// YaRN (arXiv 2309.00071): frequencies that turn often within the trained context are kept, those that turn seldom
    /// are divided by `factor`, a ramp between.
    Yarn {
        /// The divisor of low frequencies.
        factor: f32,
        /// Context length of the first training, in tokens.
        original_context: usize,
        /// Turns within that context from which on a frequency is kept.
        beta_fast: f32,
        /// Turns within that context below which it is divided.
        beta_slow: f32,
        /// Whether the ends of the ramp are rounded outwards, to whole frequencies.
        truncate: bool,
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
    /// LongRoPE (arXiv 2402.13753): one divisor per frequency, `rotary_dim / 2` of them, from one of two lists.
    LongRope {
        /// Where the loaded context is at most `original_context`.
        short: Vec<f32>,
        /// Where it is longer.
        long: Vec<f32>,
        /// Context length of the first training, in tokens.
        original_context: usize,
    },
    /// One divisor per frequency, as a GGUF file may carry them; `rotary_dim / 2` of them.
    PerFrequency(Vec<f32>),
}

impl RopeScaling {
    /// The kind of stretching as one lower-case word; `None` without any.
    pub fn as_str(&self) -> Option<&'static str> {
        match self {
            RopeScaling::None => None,
            RopeScaling::Linear { .. } => Some("linear"),
            RopeScaling::Dynamic { .. } => Some("dynamic"),
            RopeScaling::Yarn { .. } => Some("yarn"),
            RopeScaling::Llama3 { .. } => Some("llama3"),
            RopeScaling::LongRope { .. } => Some("longrope"),
            RopeScaling::PerFrequency(_) => Some("per_frequency"),
        }
    }
}

/// Rotary position embedding (arXiv 2104.09864).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Rope {
    /// Leading values of each head that are turned; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Frequencies are `base^(-2i / rotary_dim)`.
    pub base: f32,
    /// Which values form a pair.
    pub pairing: RopePairing,
    /// Stretching for long contexts.
    pub scaling: RopeScaling,
    /// Factor of what is turned, that is of cosines and sines: YaRN and LongRoPE have one.
    pub attention_factor: f32,
}

impl Rope {
    /// The embedding of most models: halves paired, frequencies as trained.
    pub fn new(rotary_dim: usize, base: f32) -> Self {
        let (pairing, scaling) = (RopePairing::HalfSplit, RopeScaling::None);
        Rope { rotary_dim, base, pairing, scaling, attention_factor: 1.0 }
    }

    /// Checks the sizes, and that no frequency is stretched by what is not a positive number.
    pub(super) fn validate(&self, head_dim: usize) -> Result<()> {
        within("rotary_dim", self.rotary_dim, head_dim)?;
        if !self.rotary_dim.is_multiple_of(2) {
            let reason = format!("expected an even number, got {}", self.rotary_dim);
            return Err(Error::config("rotary_dim", reason));
        }
        positive("rope_theta", self.base)?;
        positive("rope_scaling.attention_factor", self.attention_factor)?;
        let divisors = |setting: &str, divisors: &[f32]| {
            if divisors.len() != self.rotary_dim / 2 {
                let (expected, got) = (self.rotary_dim / 2, divisors.len());
                return Err(Error::config(setting, format!("expected {expected} numbers, got {got}")));
            }
            divisors.iter().try_for_each(|&d| positive(setting, d))
        };
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("rope_scaling.factor", *factor),
            RopeScaling::Dynamic { factor, .. } => {
                positive("rope_scaling.factor", *factor)?;
                // The exponent of the base is rotary_dim / (rotary_dim - 2).
                within("rotary_dim - 2", self.rotary_dim - 2, head_dim)
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, .. } => {
                positive("rope_scaling.factor", *factor)?;
                positive("rope_scaling.beta_fast", *beta_fast)?;
                positive("rope_scaling.beta_slow", *beta_slow)?;
                // The ramp's ends are logarithms to the base of frequencies.
                positive("rope_theta - 1", self.base - 1.0)
            }
            RopeScaling::PerFrequency(list) => divisors("rope_freqs", list),
            RopeScaling::LongRope { short, long, .. } => {
                divisors("rope_scaling.short_factor", short)?;
                divisors("rope_scaling.long_factor", long)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => {
                positive("rope_scaling.factor", *factor)?;
                positive("rope_scaling.low_freq_factor", *low_freq_factor)?;
                positive("rope_scaling.high_freq_factor", *high_freq_factor - *low_freq_factor)
            }
        }
    }

    /// Most tokens of a sequence of a model that has at most so many by itself.
    pub(super) fn stretched_context(&self, max_context: usize) -> usize {
        let (trained, factor) = match self.scaling {
            RopeScaling::Dynamic { factor, .. } => (max_context, factor),
            // Added to a config by hand, as Qwen's pages say, it leaves the model's own number as it was.
            RopeScaling::Yarn { factor, original_context, .. } => (original_context, factor),
            _ => return max_context,
        };
        max_context.max((trained as f64 * f64::from(factor)) as usize)
    }

    /// The length up to which transformers turns a text otherwise: it stretches each text by that text's own length, and
    /// this, as llama.cpp, all texts by the context that the model is loaded with. None if there is no difference.
    pub(crate) fn unstretched_in_transformers(&self, context: usize) -> Option<usize> {
        match self.scaling {
            RopeScaling::Dynamic { original_context, .. }
            | RopeScaling::LongRope { original_context, .. } => {
                Some(original_context).filter(|&original| original < context)
            }
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Yarn { .. }
            | RopeScaling::PerFrequency(_)
            | RopeScaling::Llama3 { .. } => None,
        }
    }

    /// Angle per position of each pair, in radians, where the model is loaded with a context of so many tokens:
    /// `rotary_dim / 2` values.
    pub(crate) fn inv_freq(&self, context: usize) -> Vec<f32> {
        let plain = self.frequencies(f64::from(self.base));
        let divided = |list: &[f32]| plain.iter().zip(list).map(|(f, &d)| f / f64::from(d)).collect();
        let stretched: Vec<f64> = match &self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain.iter().map(|f| f / f64::from(*factor)).collect(),
            &RopeScaling::Dynamic { factor, original_context } => {
                let (factor, dim) = (f64::from(factor), self.rotary_dim as f64);
                let times = context.max(original_context) as f64 / original_context as f64;
                let by = (factor * times - (factor - 1.0)).powf(dim / (dim - 2.0));
                self.frequencies(f64::from(self.base) * by)
            }
            &RopeScaling::Yarn { factor, .. } => {
                let (low, high) = self.yarn_ramp();
                let value = |(i, f): (usize, &f64)| {
                    // 0 at the fast end (kept), 1 at the slow end (divided).
                    let divide = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f * (1.0 - divide) + f / f64::from(factor) * divide
                };
                plain.iter().enumerate().map(value).collect()
            }
            RopeScaling::PerFrequency(list) => divided(list),
            RopeScaling::LongRope { short, long, original_context } => {
                divided(if context > *original_context { long } else { short })
            }
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
                let value = |f: &f64| {
                    let wavelengths = original_context as f64 * f / (2.0 * std::f64::consts::PI);
                    // 0 at the low end (fully stretched), 1 at the high end (kept).
                    let keep = ((wavelengths - low) / (high - low)).clamp(0.0, 1.0);
                    f * keep + f / f64::from(factor) * (1.0 - keep)
                };
                plain.iter().map(value).collect()
            }
        };
        stretched.into_iter().map(|f| f as f32).collect()
    }

    /// `base^(-2i / rotary_dim)`.
    fn frequencies(&self, base: f64) -> Vec<f64> {
        (0..self.rotary_dim / 2).map(|i| base.powf(-2.0 * i as f64 / self.rotary_dim as f64)).collect()
    }

    /// The first and the last frequency of YaRN's ramp, by index.
    fn yarn_ramp(&self) -> (f64, f64) {
        let RopeScaling::Yarn { original_context, beta_fast, beta_slow, truncate, .. } = self.scaling else {
            panic!("{:?} has no ramp", self.scaling)
        };
        let dim = self.rotary_dim as f64;
        // The frequency that turns so often within the trained context.
        let turning = |turns: f32| {
            let wavelength = original_context as f64 / (f64::from(turns) * 2.0 * std::f64::consts::PI);
            dim * wavelength.ln() / (2.0 * f64::from(self.base).ln())
        };
        let (low, high) = (turning(beta_fast), turning(beta_slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        (low, if low == high { high + 0.001 } else { high })
    }
}
