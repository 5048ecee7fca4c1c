//! Mistral and Ministral (arXiv 2310.06825): Llama with a sliding window, in all layers or in those that the settings name.
//! Ministral 3 scales q in long texts, too.

use super::settings::rope::{self, Beside};
use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, llama};
use crate::config::{ModelConfig, QueryScale, RopePairing};
use crate::error::{Error, Result};

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
    slide(f, llama::read_plain(f, 1e-6)?, Some(4096))
}

/// A window of this many tokens in all layers where none is stated.
fn slide(f: &Fields, mut config: ModelConfig, default: Option<usize>) -> Result<ModelConfig> {
    let window = match default {
        Some(default) => f.opt_size_or("sliding_window", default)?,
        None => f.opt_size("sliding_window")?,
    };
    let sliding = f.sliding(config.layers.len(), window, |_| window.is_some())?;
    config.slide(sliding.as_ref());
    Ok(config)
}

fn read_ministral3(f: &Fields) -> Result<ModelConfig> {
    const SECTION: &str = "rope_parameters";
    let sizes = f.sizes_with(Some(128))?;
    let section = f.section(SECTION)?.ok_or_else(|| Error::config(SECTION, "missing from config.json"))?;
    let beta = section.need_number("llama_4_scaling_beta")? as f32;
    let length = section.size("original_max_position_embeddings")?;
    // That of the whole file, which counts, once more.
    section.find("max_position_embeddings");
    let beside = Beside {
        base: &["rope_theta"],
        default_base: 10_000.0,
        part: "partial_rotary_factor",
        default_part: 1.0,
    };
    let rope = rope::of_section(f, Some(&section), &beside, &sizes)?;
    let config = llama::read_with(f, sizes, rope, 1e-5)?;
    slide(f, scaled(config, QueryScale { beta, length }), None)
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    // Rows of q and k are permuted to match.
    let config = llama::read_plain_gguf(m, RopePairing::Interleaved)?;
    match m.opt_f32("attention.temperature_scale")?.filter(|&beta| beta != 0.0) {
        Some(beta) => Ok(scaled(config, QueryScale { beta, length: rope::original_context(m)? })),
        None => Ok(config),
    }
}

fn scaled(mut config: ModelConfig, scale: QueryScale) -> ModelConfig {
    config.layers.iter_mut().for_each(|layer| layer.query_scale = Some(scale));
    config
}
