//! Gemma 3, its language model (arXiv 2503.19786): norms before and after each half of a layer, whose weights are stored less
//! 1, and of the heads of q and k; gated GELU; an embedding scaled by the root of its width. Five layers slide, one sees
//! everything, and so on; those that slide are turned by a rotary embedding of their own.

use super::settings::rope::{self, Beside};
use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, llama};
use crate::config::{Activation, LayerConfig, ModelConfig, ModelSizes, NormKind, QkNorm, Rope, RopePairing};
use crate::error::{Error, Result};

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "gemma3_text",
        classes: &["gemma3forcausallm"],
        read: read_folder,
        names: llama::names_with_post_norms,
    },
    gguf: Some(InGguf { architecture: "gemma3", read: read_gguf, ..llama::IN_GGUF }),
};

/// Of layers, the last does not slide.
const PERIOD: usize = 6;
const LOCAL_BASE: f32 = 10_000.0;

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let sizes = f.sizes_with(Some(256))?;
    f.expect_text("hidden_activation", &["gelu_pytorch_tanh"])?;
    f.expect_text("hidden_act", &["gelu_pytorch_tanh"])?;
    let eps = f.number("rms_norm_eps")?.unwrap_or(1e-6) as f32;
    let (global, local) = ropes_of_folder(f, &sizes)?;
    let mut config = ModelConfig::plain(sizes, NormKind::RmsNorm, eps, Activation::GeGlu, global);
    let period = f.opt_size("sliding_window_pattern")?.unwrap_or(PERIOD);
    let slides = |l: usize| period == 0 || !(l + 1).is_multiple_of(period);
    let window = f.opt_size_or("sliding_window", 4096)?;
    let sliding = f.sliding(config.layers.len(), window, slides)?;
    config.slide(sliding.as_ref());
    config.slide_with(sliding.as_ref(), local);
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    (config.attention_bias, config.attention_out_bias) = (attention_bias, attention_bias);
    config.logit_soft_cap = f.opt_number("final_logit_softcapping")?.map(|cap| cap as f32);
    config.norm_offset = 1.0;
    config.tied_output = true;
    let scale = 1.0 / f.opt_number("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt();
    Ok(with_layers(config, scale as f32))
}

/// The rotary embedding of layers that see everything, and of those that slide. Each has its section; before transformers 5
/// the only section and `rope_theta` were of the first, and `rope_local_base_freq` of the second.
fn ropes_of_folder(f: &Fields, sizes: &ModelSizes) -> Result<(Rope, Rope)> {
    let beside =
        |base, default_base| Beside { base, default_base, part: "partial_rotary_factor", default_part: 1.0 };
    let global = beside(&["rope_theta"], 1_000_000.0);
    let local = beside(&["rope_local_base_freq"], f64::from(LOCAL_BASE));
    let parameters = f.section("rope_parameters")?;
    let of = |kind: &str| match &parameters {
        Some(parameters) => parameters.section(kind),
        None => Ok(None),
    };
    let (full, sliding) = (of("full_attention")?, of("sliding_attention")?);
    if let Some(parameters) = &parameters {
        parameters.all_read("full_attention and sliding_attention")?;
    }
    let full = f.section("rope_scaling")?.or(full);
    // For this family transformers does not read `original_max_position_embeddings` above the sections, and computes YaRN
    // as if `truncate` were true. So anything else is refused.
    f.refuse("original_max_position_embeddings")?;
    for section in [&full, &sliding].into_iter().flatten() {
        if section.flag("truncate")? == Some(false) {
            return Err(Error::config(section.path("truncate"), "expected true in this family, got false"));
        }
    }
    let ropes = (
        rope::of_section(f, full.as_ref(), &global, sizes)?,
        rope::of_section(f, sliding.as_ref(), &local, sizes)?,
    );
    if ropes.0.rotary_dim != sizes.head_dim || ropes.1.rotary_dim != sizes.head_dim {
        return Err(Error::config("partial_rotary_factor", "only 1 is supported in this family"));
    }
    Ok(ropes)
}

/// Sets what all layers have, and the scale of the embedding.
fn with_layers(mut config: ModelConfig, scale: f32) -> ModelConfig {
    config.embed_scale = (config.dim as f64).sqrt() as f32;
    for layer in &mut config.layers {
        (layer.qk_norm, layer.post_norms, layer.scale) = (Some(QkNorm::Head), true, scale);
    }
    config
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    let sizes = m.sizes()?;
    // As llama.cpp: the largest model, of 27 billion parameters, is told by its layers.
    let scaled = if sizes.n_layers == 62 { sizes.dim / sizes.n_heads.max(1) } else { sizes.head_dim };
    let scale = LayerConfig::new(scaled).scale;
    m.refuse_scale(scale)?;
    let global = rope::of_gguf(m, RopePairing::HalfSplit, sizes.head_dim)?;
    let base = m.opt_f32("rope.freq_base_swa")?.unwrap_or(LOCAL_BASE);
    let local = Rope::new(global.rotary_dim, base);
    let eps = m.f32("attention.layer_norm_rms_epsilon")?;
    let mut config = ModelConfig::plain(sizes, NormKind::RmsNorm, eps, Activation::GeGlu, global);
    let sliding = m.sliding(config.layers.len(), Some(PERIOD))?;
    config.slide(sliding.as_ref());
    config.slide_with(sliding.as_ref(), local);
    config.logit_soft_cap = m.opt_f32("final_logit_softcapping")?.filter(|&cap| cap != 0.0);
    Ok(with_layers(config, scale))
}
