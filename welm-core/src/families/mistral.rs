//! Mistral and Ministral (arXiv 2310.06825): Llama with a sliding window, in all layers or in those that the settings name.
//! Ministral 3 scales q in long texts, too.

use super::settings::rope::{self, Beside};
use super::settings::windows::Sliding;
use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, llama};
use crate::config::{ModelConfig, QueryScale, RopePairing};
use crate::error::{Error, Result};

const PART: &str = "partial_rotary_factor";

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "mistral",
        classes: &["mistralforcausallm", "ministralforcausallm"],
        read: read_folder,
        names: llama::names_in_folder,
    },
    gguf: None,
};

/// The name in transformers of those whose layers differ.
pub(super) const MINISTRAL: Family =
    Family { folder: InFolder { model_type: "ministral", ..FAMILY.folder }, gguf: None };

/// Ministral 3. GGUF files of it are called `mistral3`, and so are those of Mistral that are not called Llama.
pub(super) const MINISTRAL3: Family = Family {
    folder: InFolder {
        model_type: "ministral3",
        classes: &["ministral3forcausallm"],
        read: read_ministral3,
        ..FAMILY.folder
    },
    gguf: Some(InGguf { architecture: "mistral3", read: read_gguf, ..llama::IN_GGUF }),
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let mut config = llama::read_plain(f, 1e-6)?;
    let window = f.opt_size_or("sliding_window", 4096)?;
    let sliding = f.sliding(config.layers.len(), window, |_| window.is_some())?;
    config.slide(sliding.as_ref());
    Ok(config)
}

fn read_ministral3(f: &Fields) -> Result<ModelConfig> {
    const SECTION: &str = "rope_parameters";
    const ORIGINAL: &str = "original_max_position_embeddings";
    let sizes = f.sizes_with(Some(128))?;
    let section = f.section(SECTION)?.ok_or_else(|| Error::config(SECTION, "missing from config.json"))?;
    let beta = section.need_number("llama_4_scaling_beta")? as f32;
    // If the whole file has this key as well, that one counts, as in transformers.
    let length = f.opt_size(ORIGINAL)?.map_or_else(|| section.size(ORIGINAL), Ok)?;
    // The section repeats this key of the whole file, which is the one that counts.
    section.find("max_position_embeddings");
    let beside = Beside { base: &["rope_theta"], default_base: 10_000.0, part: PART, default_part: 1.0 };
    let rope = rope::of_section(f, Some(&section), &beside, &sizes)?;
    if rope.rotary_dim != sizes.head_dim {
        return Err(Error::config(PART, "only 1 is supported in this family"));
    }
    let mut config = scaled(llama::read_with(f, sizes, rope, 1e-5)?, QueryScale { beta, length });
    let window = f.opt_size("sliding_window")?;
    // transformers does not read `layer_types` here: all layers slide, or none.
    let sliding = window.map(|window| Sliding::all(window, config.layers.len()));
    config.slide(sliding.as_ref());
    Ok(config)
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    // Rows of q and k are permuted to match.
    let config = llama::read_plain_gguf(m, RopePairing::Interleaved)?;
    match m.opt_f32("attention.temperature_scale")? {
        Some(beta) => Ok(scaled(config, QueryScale { beta, length: rope::original_context(m)? })),
        None => Ok(config),
    }
}

/// Gives all layers the scale, unless it is always 1.
fn scaled(mut config: ModelConfig, scale: QueryScale) -> ModelConfig {
    let scale = Some(scale).filter(|scale| scale.beta != 0.0);
    config.layers.iter_mut().for_each(|layer| layer.query_scale = scale);
    config
}
