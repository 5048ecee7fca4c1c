//! Granite (arXiv 2408.13359): Llama with four multipliers, of the embedding, of what each half of a layer adds, of the
//! attention's scores, and (a divisor) of the logits.

use super::settings::{Fields, Metadata, rope};
use super::{Family, InFolder, InGguf, llama};
use crate::config::{Activation, LayerConfig, ModelConfig, NormKind, RopePairing};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "granite",
        classes: &["granitefor"],
        read: read_folder,
        names: llama::names_in_folder,
    },
    gguf: Some(InGguf { architecture: "granite", read: read_gguf, ..llama::IN_GGUF }),
};

/// What multiplies; [`Multipliers::logits`] divides.
pub(super) struct Multipliers {
    pub(super) embedding: f64,
    pub(super) residual: f64,
    pub(super) logits: f64,
}

impl Multipliers {
    pub(super) fn apply(&self, config: &mut ModelConfig) -> Result<()> {
        config.embed_scale = self.embedding as f32;
        config.logit_scale = (1.0 / self.logits) as f32;
        config.multiply_residual(self.residual as f32)
    }
}

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let config = llama::read_plain(f, 1e-6)?;
    with_multipliers(f, ModelConfig { mlp_bias: f.flag("mlp_bias")?.unwrap_or(false), ..config })
}

/// With the multipliers of a folder, and the biases of attention.
pub(super) fn with_multipliers(f: &Fields, mut config: ModelConfig) -> Result<ModelConfig> {
    config.attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    config.attention_out_bias = config.attention_bias;
    let number = |key: &str| Ok::<f64, crate::Error>(f.number(key)?.unwrap_or(1.0));
    let scale = number("attention_multiplier")? as f32;
    config.layers.iter_mut().for_each(|layer| layer.scale = scale);
    let multipliers = Multipliers {
        embedding: number("embedding_multiplier")?,
        residual: number("residual_multiplier")?,
        logits: number("logits_scaling")?,
    };
    multipliers.apply(&mut config)?;
    Ok(config)
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    if m.opt_flag("rope.scaling.finetuned")? == Some(false) {
        // So llama.cpp reads it in this architecture alone.
        return Err(
            m.error("rope.scaling.finetuned", "false: without a rotary embedding, which is not supported")
        );
    }
    let sizes = m.sizes()?;
    // Files of Granite 4 that are dense: all layers have heads of keys, so nothing is of these sizes.
    for name in ["conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank"] {
        m.mark_read(&format!("ssm.{name}"));
    }
    m.mark_read("expert_shared_feed_forward_length");
    let rope = rope::with_divisors(m, rope::of_gguf(m, RopePairing::Interleaved, sizes.head_dim)?)?;
    let eps = m.f32("attention.layer_norm_rms_epsilon")?;
    let usual = LayerConfig::new(sizes.head_dim).scale;
    let mut config = ModelConfig::plain(sizes, NormKind::RmsNorm, eps, Activation::SwiGlu, rope);
    // Zero is absence.
    let scale = m.opt_f32("attention.scale")?.filter(|&scale| scale != 0.0).unwrap_or(usual);
    config.layers.iter_mut().for_each(|layer| layer.scale = scale);
    multipliers_of_gguf(m, &Multipliers { embedding: 1.0, residual: 1.0, logits: 1.0 })?
        .apply(&mut config)?;
    Ok(config)
}

/// Those of a GGUF file, where the family has these for files that state none.
pub(super) fn multipliers_of_gguf(m: &Metadata, usual: &Multipliers) -> Result<Multipliers> {
    let number = |name: &str, usual: f64| {
        let stated = m.opt_f32(name)?.filter(|&x| x != 0.0);
        Ok::<f64, crate::Error>(stated.map_or(usual, f64::from))
    };
    Ok(Multipliers {
        embedding: number("embedding_scale", usual.embedding)?,
        residual: number("residual_scale", usual.residual)?,
        logits: number("logit_scale", usual.logits)?,
    })
}
