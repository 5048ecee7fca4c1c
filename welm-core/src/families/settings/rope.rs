//! The rotary embedding of a folder or a GGUF file, in all of their spellings.
//!
//! Folders follow transformers 5. A `rope_scaling` that is not empty takes the place of `rope_parameters` as a whole.
//! What it does not say of the base and of the part of a head that is turned, older keys beside it say, and then the
//! family. `rope_type` goes before `type`. GGUF files follow llama.cpp. A section that says something else is an error:
//! each of its keys is there to change the frequencies.

use super::fields::Fields;
use super::metadata::Metadata;
use crate::config::{ModelSizes, Rope, RopePairing, RopeScaling};
use crate::error::{Error, Result};

/// How a family spells what stands beside the section, and what holds where nothing does.
pub(crate) struct Beside {
    /// Keys of the base; the first one that is there counts.
    pub(crate) base: &'static [&'static str],
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
    let inside = |key: &str| section.as_ref().map_or(Ok(None), |section| section.opt_number(key));
    let first = |keys: &[&str]| {
        keys.iter().try_fold(None, |found: Option<f64>, key| Ok::<_, Error>(found.or(f.number(key)?)))
    };
    let base = inside("rope_theta")?.or(first(beside.base)?);
    let part = inside("partial_rotary_factor")?.or(first(&[beside.part])?);
    let (base, part) = (base.unwrap_or(10_000.0), part.unwrap_or(beside.default_part));
    // A spelling that the family does not know is not used, so it may not say anything else.
    for (keys, own, used) in [(BASES, beside.base[0], base), (PARTS, beside.part, part)] {
        for key in keys.into_iter().filter(|&key| key != own) {
            if let Some(other) = f.opt_number(key)?.filter(|&other| other != used) {
                return Err(Error::config(key, format!("expected {used}, which is used here, got {other}")));
            }
        }
    }
    // Also above the section, where it goes before what the section says.
    let outside = f.opt_number("original_max_position_embeddings")?;
    let scaling =
        section.map_or(Ok(RopeScaling::None), |section| scaling_of(&section, outside, sizes.max_context))?;
    // In double precision, as Python multiplies.
    let rotary_dim = (sizes.head_dim as f64 * part) as usize;
    Ok(Rope { rotary_dim, base: base as f32, pairing: RopePairing::HalfSplit, scaling })
}

fn scaling_of(section: &Fields, outside: Option<f64>, max_context: usize) -> Result<RopeScaling> {
    let (kind, older) = (section.opt_text("rope_type")?, section.opt_text("type")?);
    let kind = kind.or(older).unwrap_or("default");
    // Says how the model came about; what follows from it is in the other settings.
    section.find("finetuned");
    let trained = section.opt_number("original_max_position_embeddings")?;
    let need = |key: &str| section.need_number(key).map(|x| x as f32);
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: need("factor")? },
        // Stretches contexts beyond `max_position_embeddings`, and there are none here.
        "dynamic" => {
            need("factor")?;
            RopeScaling::None
        }
        "llama3" => {
            let original = outside.or(trained).unwrap_or(max_context as f64);
            if !(original >= 1.0 && original.fract() == 0.0 && original < 1e9) {
                let key = section.path("original_max_position_embeddings");
                return Err(Error::config(key, format!("expected a number of tokens, got {original}")));
            }
            RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_context: original as usize,
            }
        }
        other => {
            let reason = format!("`{other}` is none of default, linear, dynamic, llama3");
            return Err(Error::config(section.path("rope_type"), reason));
        }
    };
    section.all_read(&format!("no such key where rope_type is {kind}"))?;
    Ok(scaling)
}

/// Reads the settings of a GGUF file. Those of its keys that nobody reads here are looked at when all settings are read.
pub(crate) fn of_gguf(m: &Metadata, pairing: RopePairing, head_dim: usize) -> Result<Rope> {
    let rotary_dim = m.opt_size("rope.dimension_count")?.unwrap_or(head_dim);
    // The type may be left out, and the factor has an older name. 0 is none.
    let (newer, older) = (m.opt_f32("rope.scaling.factor")?, m.opt_f32("rope.scale_linear")?);
    let factor = newer.or(older);
    let factor = match m.opt_text("rope.scaling.type")? {
        None | Some("linear") => factor.filter(|&factor| factor != 0.0).unwrap_or(1.0),
        Some("none") => 1.0,
        Some(other) => {
            let reason = format!("`{other}` is none of none, linear");
            return Err(m.error("rope.scaling.type", reason));
        }
    };
    // These scale what is turned, or are parts of other types of scaling.
    for (name, off) in [
        ("rope.scaling.attn_factor", 1.0),
        ("rope.scaling.yarn_ext_factor", 0.0),
        ("rope.scaling.yarn_attn_factor", 1.0),
    ] {
        if let Some(other) = m.opt_f32(name)?.filter(|&x| x != off) {
            return Err(m.error(name, format!("expected {off} (not supported), got {other}")));
        }
    }
    // These have an effect with other types only, or tell how the model came about.
    for name in
        ["original_context_length", "finetuned", "yarn_beta_fast", "yarn_beta_slow", "yarn_log_multiplier"]
    {
        m.mark_read(&format!("rope.scaling.{name}"));
    }
    let scaling = if factor == 1.0 { RopeScaling::None } else { RopeScaling::Linear { factor } };
    let base = m.opt_f32("rope.freq_base")?.unwrap_or(10_000.0);
    Ok(Rope { rotary_dim, base, pairing, scaling })
}

/// Adds the divisors that a GGUF file may have as a tensor; they multiply a factor.
pub(crate) fn with_divisors(m: &Metadata, mut rope: Rope) -> Result<Rope> {
    let Some(divisors) = m.tensor("rope_freqs.weight")? else { return Ok(rope) };
    divisors.expect_shape(&[rope.rotary_dim / 2])?;
    let factor = if let RopeScaling::Linear { factor } = rope.scaling { factor } else { 1.0 };
    rope.scaling = RopeScaling::PerFrequency(divisors.finite()?.into_iter().map(|d| d * factor).collect());
    Ok(rope)
}
