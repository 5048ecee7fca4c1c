//! The rotary embedding of a folder or a GGUF file, in all of their spellings.
//!
//! Folders follow transformers 5. A `rope_scaling` that is not empty takes the place of `rope_parameters` as a whole.
//! What it does not say of the base and of the part of a head that is turned, older keys beside it say, and then the
//! family. `rope_type` goes before `type`. GGUF files follow llama.cpp, in whose files the lists of divisors are tensors. A section that says something else is an error:
//! each of its keys is there to change the frequencies.

use super::fields::Fields;
use super::metadata::Metadata;
use crate::config::{ModelSizes, Rope, RopePairing, RopeScaling};
use crate::error::{Error, Result};
use crate::weights::tensor::StoredTensor;

/// How a family spells what stands beside the section, and what holds where nothing does.
pub(crate) struct Beside {
    /// Keys of the base; the first one that is there counts.
    pub(crate) base: &'static [&'static str],
    pub(crate) default_base: f64,
    /// Key of the part of a head that is turned.
    pub(crate) part: &'static str,
    pub(crate) default_part: f64,
}

/// The keys of all families, so that one of another family is seen.
const BASES: [&str; 2] = ["rope_theta", "rotary_emb_base"];
const PARTS: [&str; 2] = ["partial_rotary_factor", "rotary_pct"];

/// Reads the settings of a folder.
pub(crate) fn of_folder(f: &Fields, beside: &Beside, sizes: &ModelSizes) -> Result<Rope> {
    let (parameters, scaling) = (f.section("rope_parameters")?, f.section("rope_scaling")?);
    if parameters.is_some() && scaling.is_some() {
        tracing::warn!(
            "config.json has rope_parameters and rope_scaling; as in transformers, the second is used"
        );
    }
    let section = scaling.or(parameters);
    let (base, part) = base_and_part(f, section.as_ref(), beside)?;
    // A spelling that the family does not know is not used, so it may not say anything else.
    for (keys, own, used) in [(BASES, beside.base[0], base), (PARTS, beside.part, part)] {
        for key in keys.into_iter().filter(|&key| key != own) {
            if let Some(other) = f.opt_number(key)?.filter(|&other| other != used) {
                return Err(Error::config(key, format!("expected {used}, which is used here, got {other}")));
            }
        }
    }
    of_section(f, section.as_ref(), beside, sizes)
}

/// Reads one of several sections, where layers have rotary embeddings of their own.
pub(crate) fn of_section(
    f: &Fields,
    section: Option<&Fields>,
    beside: &Beside,
    sizes: &ModelSizes,
) -> Result<Rope> {
    let (base, part) = base_and_part(f, section, beside)?;
    // In double precision, as Python multiplies.
    let rotary_dim = (sizes.head_dim as f64 * part) as usize;
    let rope = Rope::new(rotary_dim, base as f32);
    // Also above the section, where it goes before what the section says.
    let outside = f.opt_number("original_max_position_embeddings")?;
    let Some(section) = section else { return Ok(rope) };
    let (scaling, attention_factor) = Scaled { section, outside, sizes }.read()?;
    Ok(Rope { scaling, attention_factor: attention_factor as f32, ..rope })
}

/// The base, and the part of a head that is turned.
fn base_and_part(f: &Fields, section: Option<&Fields>, beside: &Beside) -> Result<(f64, f64)> {
    let inside = |key: &str| section.map_or(Ok(None), |section| section.opt_number(key));
    let first = |keys: &[&str]| {
        keys.iter().try_fold(None, |found: Option<f64>, key| Ok::<_, Error>(found.or(f.number(key)?)))
    };
    let base = inside("rope_theta")?.or(first(beside.base)?);
    let part = inside("partial_rotary_factor")?.or(first(&[beside.part])?);
    Ok((base.unwrap_or(beside.default_base), part.unwrap_or(beside.default_part)))
}

/// A section that says how the frequencies are stretched, and what it takes from outside.
struct Scaled<'a> {
    section: &'a Fields,
    /// `original_max_position_embeddings`, as the whole file says it.
    outside: Option<f64>,
    sizes: &'a ModelSizes,
}

impl Scaled<'_> {
    /// The stretching, and the factor of cosines and sines.
    fn read(&self) -> Result<(RopeScaling, f64)> {
        let section = self.section;
        let (kind, older) = (section.opt_text("rope_type")?, section.opt_text("type")?);
        let kind = kind.or(older).unwrap_or("default");
        // Says how the model came about; what follows from it is in the other settings.
        section.find("finetuned");
        let trained = section.opt_number("original_max_position_embeddings")?;
        let need = |key: &str| section.need_number(key).map(|x| x as f32);
        let scaling = match kind {
            "default" => (RopeScaling::None, 1.0),
            "linear" => (RopeScaling::Linear { factor: need("factor")? }, 1.0),
            "dynamic" => {
                let original_context = self.sizes.max_context.max(1);
                (RopeScaling::Dynamic { factor: need("factor")?, original_context }, 1.0)
            }
            "llama3" => {
                let llama3 = RopeScaling::Llama3 {
                    factor: need("factor")?,
                    low_freq_factor: need("low_freq_factor")?,
                    high_freq_factor: need("high_freq_factor")?,
                    original_context: self.original_context(trained)?,
                };
                (llama3, 1.0)
            }
            "yarn" => self.yarn(trained)?,
            // The second is its name in the first files of Phi-3.
            "longrope" | "su" => self.longrope(trained)?,
            other => {
                let known = "default, linear, dynamic, yarn, longrope, llama3";
                return Err(Error::config(
                    section.path("rope_type"),
                    format!("`{other}` is none of {known}"),
                ));
            }
        };
        section.all_read(&format!("no such key where rope_type is {kind}"))?;
        Ok(scaling)
    }

    /// Tokens of the first training.
    fn original_context(&self, trained: Option<f64>) -> Result<usize> {
        let original = self.outside.or(trained).unwrap_or(self.sizes.max_context as f64);
        if !(original >= 1.0 && original.fract() == 0.0 && original < 1e9) {
            let key = self.section.path("original_max_position_embeddings");
            return Err(Error::config(key, format!("expected a number of tokens, got {original}")));
        }
        Ok(original as usize)
    }

    /// By how much the context is longer than that of the first training.
    fn factor(&self, original_context: usize) -> Result<f64> {
        let times = self.sizes.max_context as f64 / original_context as f64;
        Ok(self.section.opt_number("factor")?.unwrap_or(times))
    }

    fn yarn(&self, trained: Option<f64>) -> Result<(RopeScaling, f64)> {
        let section = self.section;
        let original_context = self.original_context(trained)?;
        let factor = self.factor(original_context)?;
        // Zero is absence, as Python takes it.
        let number = |key: &str| Ok::<_, Error>(section.opt_number(key)?.filter(|&x| x != 0.0));
        let (mscale, all_dim) = (number("mscale")?, number("mscale_all_dim")?);
        let usual = match mscale.zip(all_dim) {
            Some((mscale, all_dim)) => yarn_attention(factor, mscale) / yarn_attention(factor, all_dim),
            None => yarn_attention(factor, 1.0),
        };
        let scaling = RopeScaling::Yarn {
            factor: factor as f32,
            original_context,
            beta_fast: number("beta_fast")?.unwrap_or(32.0) as f32,
            beta_slow: number("beta_slow")?.unwrap_or(1.0) as f32,
            truncate: section.flag("truncate")?.unwrap_or(true),
        };
        // Of YaRN's first code. transformers passes over both. DeepSeek-R1-0528-Qwen3-8B has an `attn_factor` of 0.878:
        // times YaRN's own factor that would be 1.
        if let Some(other) = number("attn_factor")?.filter(|&other| other != 1.0) {
            let key = section.path("attn_factor");
            tracing::warn!(
                key,
                other,
                "as in transformers, this has no effect; `attention_factor` would have"
            );
        }
        if let Some(other) = number("extrapolation_factor")?.filter(|&other| other != 1.0) {
            let reason = format!("expected 1 (not supported), got {other}");
            return Err(Error::config(section.path("extrapolation_factor"), reason));
        }
        Ok((scaling, section.opt_number("attention_factor")?.unwrap_or(usual)))
    }

    fn longrope(&self, trained: Option<f64>) -> Result<(RopeScaling, f64)> {
        let section = self.section;
        let original_context = self.original_context(trained)?;
        let factor = self.factor(original_context)?;
        let list = |key: &str| {
            let numbers = section.need_numbers(key)?;
            Ok::<Vec<f32>, Error>(numbers.into_iter().map(|x| x as f32).collect())
        };
        let scaling = RopeScaling::LongRope {
            short: list("short_factor")?,
            long: list("long_factor")?,
            original_context,
        };
        let usual =
            if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_context as f64).ln()).sqrt() };
        Ok((scaling, section.opt_number("attention_factor")?.unwrap_or(usual)))
    }
}

/// YaRN's factor of cosines and sines, where a context is stretched so far.
fn yarn_attention(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// Reads the settings of a GGUF file. Those of its keys that nobody reads here are looked at when all settings are read.
pub(crate) fn of_gguf(m: &Metadata, pairing: RopePairing, head_dim: usize) -> Result<Rope> {
    let rotary_dim = m.opt_size("rope.dimension_count")?.unwrap_or(head_dim);
    // The type may be left out, and the factor has an older name. 0 is none.
    let (newer, older) = (m.opt_f32("rope.scaling.factor")?, m.opt_f32("rope.scale_linear")?);
    let factor = newer.or(older).filter(|&factor| factor != 0.0).unwrap_or(1.0);
    let number = |name: &str, absent: f32| {
        Ok::<_, Error>(m.opt_f32(&format!("rope.scaling.{name}"))?.unwrap_or(absent))
    };
    let mut attention_factor = number("attn_factor", 1.0)?;
    let kind = m.opt_text("rope.scaling.type")?.unwrap_or("linear");
    let (scaling, usual) = match kind {
        "none" => (RopeScaling::None, 1.0),
        // Of the second, the lists of divisors are tensors; see `with_divisors`.
        "linear" | "longrope" if factor == 1.0 => (RopeScaling::None, 1.0),
        "linear" | "longrope" => (RopeScaling::Linear { factor }, 1.0),
        "yarn" => {
            let all_dim = number("yarn_log_multiplier", 0.0)?;
            let of = |mscale: f32| yarn_attention(f64::from(factor), f64::from(mscale));
            let scaling = RopeScaling::Yarn {
                factor,
                original_context: original_context(m)?,
                beta_fast: number("yarn_beta_fast", 32.0)?,
                beta_slow: number("yarn_beta_slow", 1.0)?,
                truncate: true,
            };
            (scaling, if all_dim == 0.0 { of(1.0) } else { of(1.0) / of(all_dim) })
        }
        other => {
            let reason = format!("`{other}` is none of none, linear, yarn, longrope");
            return Err(m.error("rope.scaling.type", reason));
        }
    };
    if kind == "longrope" && m.tensor(LONG_FACTORS)?.is_none() {
        return Err(m.error("rope.scaling.type", format!("longrope, and the file has no `{LONG_FACTORS}`")));
    }
    let is_usual = |other: f32| (f64::from(other) / usual - 1.0).abs() < 1e-4;
    // Early files of OLMo 3 have config.json's factor here, which is YaRN's own, and not one more.
    if is_usual(attention_factor) {
        attention_factor = 1.0;
    }
    // These make something between YaRN and none. With YaRN, llama.cpp's readers compute the second themselves.
    let between: &[(&str, f32)] = match kind {
        "yarn" => &[("yarn_ext_factor", 1.0)],
        _ => &[("yarn_ext_factor", 0.0), ("yarn_attn_factor", 1.0)],
    };
    for &(name, off) in between {
        let other = number(name, off)?;
        if other != off {
            let reason = format!("expected {off} (not supported), got {other}");
            return Err(m.error(&format!("rope.scaling.{name}"), reason));
        }
    }
    // These have an effect with other types only, or tell how the model came about.
    for name in [
        "original_context_length",
        "finetuned",
        "yarn_attn_factor",
        "yarn_beta_fast",
        "yarn_beta_slow",
        "yarn_log_multiplier",
    ] {
        m.mark_read(&format!("rope.scaling.{name}"));
    }
    let base = m.opt_f32("rope.freq_base")?.unwrap_or(10_000.0);
    let attention_factor = (f64::from(attention_factor) * usual) as f32;
    Ok(Rope { rotary_dim, base, pairing, scaling, attention_factor })
}

/// Tokens of the first training of a GGUF file's model.
pub(crate) fn original_context(m: &Metadata) -> Result<usize> {
    const NAME: &str = "rope.scaling.original_context_length";
    match m.opt_size(NAME)?.filter(|&n| n != 0).or(m.opt_size("context_length")?) {
        Some(n) if n > 0 => Ok(n),
        _ => Err(m.error(NAME, "expected a number of tokens, got 0")),
    }
}

const LONG_FACTORS: &str = "rope_factors_long.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// Adds the divisors that a GGUF file may have as tensors; they multiply a factor.
pub(crate) fn with_divisors(m: &Metadata, mut rope: Rope) -> Result<Rope> {
    const DIVISORS: &str = "rope_freqs.weight";
    let factor = match rope.scaling {
        RopeScaling::None => Some(1.0),
        RopeScaling::Linear { factor } => Some(factor),
        _ => None,
    };
    let pairs = rope.rotary_dim / 2;
    let list = |tensor: &StoredTensor| {
        let factor = factor.ok_or_else(|| {
            let kind = rope.scaling.as_str().unwrap_or("none");
            Error::tensor(
                &tensor.name,
                format!("expected no divisors beside a rotary scaling of type {kind}"),
            )
        })?;
        tensor.expect_shape(&[pairs])?;
        Ok::<Vec<f32>, Error>(tensor.finite()?.into_iter().map(|d| d * factor).collect())
    };
    let scaling = match (m.tensor(DIVISORS)?, m.tensor(SHORT_FACTORS)?, m.tensor(LONG_FACTORS)?) {
        (None, None, None) => return Ok(rope),
        (Some(divisors), None, None) => RopeScaling::PerFrequency(list(divisors)?),
        (None, Some(short), Some(long)) => {
            let original_context = original_context(m)?;
            RopeScaling::LongRope { short: list(short)?, long: list(long)?, original_context }
        }
        _ => {
            let expected = format!("expected `{DIVISORS}`, or this and `{SHORT_FACTORS}`, or none of them");
            return Err(Error::tensor(LONG_FACTORS, expected));
        }
    };
    rope.scaling = scaling;
    Ok(rope)
}
