//! OLMo 2 (arXiv 2501.00656): Llama with norms after each half of a layer and none before, and norms of q and of k over all
//! heads.

use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, llama};
use crate::config::{ModelConfig, QkNorm, Rope, RopePairing, RopeScaling};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "olmo2",
        classes: &["olmo2for"],
        read: read_folder,
        names: llama::names_with_post_norms,
    },
    gguf: Some(InGguf { architecture: "olmo2", read: read_gguf, ..llama::IN_GGUF }),
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    let config =
        ModelConfig { attention_bias, attention_out_bias: attention_bias, ..llama::read_plain(f, 1e-5)? };
    f.refuse_window(config.max_context)?;
    Ok(with_norms(config))
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    let mut config = llama::read_plain_gguf(m, RopePairing::HalfSplit)?;
    // Layers that slide (OLMo 3) are turned as they were trained.
    if config.ropes[0].scaling != RopeScaling::None {
        let plain = Rope::new(config.ropes[0].rotary_dim, config.ropes[0].base);
        config.slide_with(m.sliding(config.layers.len(), None)?.as_ref(), plain);
    }
    Ok(with_norms(config))
}

fn with_norms(mut config: ModelConfig) -> ModelConfig {
    for layer in &mut config.layers {
        (layer.qk_norm, layer.pre_norms, layer.post_norms) = (Some(QkNorm::AllHeads), false, true);
    }
    config
}
