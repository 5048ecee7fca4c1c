//! MiniCPM 1, 2 and 4 (arXiv 2404.06395, 2506.07900): Llama with three of [Granite's multipliers](super::granite), which
//! follow from the depth and the width. MiniCPM 3 has latent attention and is another family; MiniCPM 5 is stored as Llama.

use super::granite::{Multipliers, multipliers_of_gguf};
use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, llama};
use crate::config::{ModelConfig, RopePairing};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "minicpm",
        classes: &["minicpmfor"],
        read: read_folder,
        names: llama::names_in_folder,
    },
    gguf: Some(InGguf { architecture: "minicpm", read: read_gguf, ..llama::IN_GGUF }),
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let mut config = ModelConfig { tied_output: true, ..llama::read_plain(f, 1e-6)? };
    config.attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    config.attention_out_bias = config.attention_bias;
    let number = |key: &str| Ok::<f64, crate::Error>(f.number(key)?.unwrap_or(1.0));
    let multipliers = Multipliers {
        embedding: number("scale_emb")?,
        residual: number("scale_depth")? / (config.n_layers as f64).sqrt(),
        logits: config.dim as f64 / number("dim_model_base")?,
    };
    multipliers.apply(&mut config)?;
    if let Some(sparse) = f.section("sparse_config")? {
        // Of MiniCPM 4.1. Below this length all keys are seen.
        let dense = sparse.size("dense_len")?.saturating_sub(1);
        if dense < config.max_context {
            tracing::warn!(dense, "sparse attention is not supported: the context ends where it would begin");
        }
        config.max_context = config.max_context.min(dense);
    }
    Ok(config)
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    let mut config = llama::read_plain_gguf(m, RopePairing::Interleaved)?;
    // The first files state none: they are of MiniCPM 1, which has these.
    let (depth, width) = (config.n_layers as f64, config.dim as f64);
    let first = Multipliers { embedding: 12.0, residual: 1.4 / depth.sqrt(), logits: width / 256.0 };
    multipliers_of_gguf(m, &first)?.apply(&mut config)?;
    Ok(config)
}
