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

/// OLMo 3, whose GGUF files have this name, too: every so many layers the last sees everything.
const PERIOD: usize = 4;

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    let mut config = llama::read_gguf_of_period(m, RopePairing::HalfSplit, Some(PERIOD))?;
    // Layers that slide are turned as they were trained.
    let global = &config.ropes[0];
    let base = m.opt_f32("rope.freq_base_swa")?.unwrap_or(global.base);
    if global.scaling != RopeScaling::None || global.base != base {
        let plain = Rope::new(global.rotary_dim, base);
        config.slide_with(m.sliding(config.layers.len(), Some(PERIOD))?.as_ref(), plain);
    }
    Ok(with_norms(config))
}

fn with_norms(mut config: ModelConfig) -> ModelConfig {
    for layer in &mut config.layers {
        (layer.qk_norm, layer.pre_norms, layer.post_norms) = (Some(QkNorm::AllHeads), false, true);
    }
    config
}
