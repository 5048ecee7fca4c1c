//! Qwen3 (arXiv 2505.09388): Qwen2 with norms of the heads of q and k, and without biases.

use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, llama, qwen2};
use crate::config::{ModelConfig, QkNorm, RopePairing};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "qwen3",
        classes: &["qwen3for"],
        read: read_folder,
        names: llama::names_in_folder,
    },
    gguf: Some(InGguf { architecture: "qwen3", read: read_gguf, ..llama::IN_GGUF }),
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let sizes = f.sizes_with(Some(128))?;
    let rope = llama::rope_of_folder(f, 10_000.0, &sizes)?;
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    let mut config = ModelConfig {
        attention_bias,
        attention_out_bias: attention_bias,
        ..llama::read_with(f, sizes, rope, 1e-6)?
    };
    qwen2::slide(f, &mut config)?;
    Ok(with_norms(config))
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    Ok(with_norms(llama::read_plain_gguf(m, RopePairing::HalfSplit)?))
}

fn with_norms(mut config: ModelConfig) -> ModelConfig {
    config.layers.iter_mut().for_each(|layer| layer.qk_norm = Some(QkNorm::Head));
    config
}
