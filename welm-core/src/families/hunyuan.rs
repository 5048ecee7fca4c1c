//! Hunyuan, its dense models: Llama with norms of the heads of q and k, after they were turned. Its `dynamic` scaling of the
//! rotary embedding has an `alpha`, and is fixed: `base * alpha^(d / (d - 2))`, `d` the width of a head.

use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, StoredAs, llama};
use crate::config::part::{LayerPart, ModelPart};
use crate::config::{ModelConfig, ModelSizes, QkNorm, Rope, RopePairing};
use crate::error::{Error, Result};

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "hunyuan_v1_dense",
        classes: &["hunyuandensev1for"],
        read: read_folder,
        names: names_in_folder,
    },
    gguf: Some(InGguf { architecture: "hunyuan-dense", read: read_gguf, ..llama::IN_GGUF }),
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let sizes = f.sizes()?;
    // Settings of their first code that other models do not have.
    f.fixed_size("attention_head_dim", sizes.head_dim)?;
    f.fixed_size("num_experts", 1)?;
    f.expect_text("norm_type", &["rms", "hf_rms"])?;
    for key in ["use_qk_norm", "use_rotary_pos_emb"] {
        if f.flag(key)? == Some(false) {
            return Err(Error::config(key, "expected true in this family, got false"));
        }
    }
    let rope = match stretched(f, &sizes)? {
        Some(rope) => rope,
        None => llama::rope_of_folder(f, 10_000.0, &sizes)?,
    };
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    let config = ModelConfig {
        attention_bias,
        attention_out_bias: attention_bias,
        ..llama::read_with(f, sizes, rope, 1e-5)?
    };
    f.refuse_window(config.max_context)?;
    if f.flag("mlp_bias")? == Some(true) {
        return Err(Error::config("mlp_bias", "expected false in this family, got true"));
    }
    Ok(with_norms(config))
}

/// The rotary embedding where the scaling is `dynamic` with an `alpha`.
fn stretched(f: &Fields, sizes: &ModelSizes) -> Result<Option<Rope>> {
    let (parameters, scaling) = (f.section("rope_parameters")?, f.section("rope_scaling")?);
    let Some(section) = scaling.or(parameters) else { return Ok(None) };
    let (kind, older) = (section.opt_text("rope_type")?, section.opt_text("type")?);
    let alpha = section.opt_number("alpha")?.filter(|&alpha| alpha != 0.0);
    let Some(alpha) = alpha.filter(|_| kind.or(older) == Some("dynamic")) else { return Ok(None) };
    if !(alpha.is_finite() && alpha > 0.0) || sizes.head_dim <= 2 {
        return Err(Error::config(section.path("alpha"), format!("expected a positive number, got {alpha}")));
    }
    // These are of another scaling, and have no effect here.
    for key in ["factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"] {
        section.opt_number(key)?;
    }
    let base = section.opt_number("rope_theta")?.or(f.number("rope_theta")?).unwrap_or(10_000.0);
    section.all_read("no such key where rope_type is dynamic with alpha")?;
    let width = sizes.head_dim as f64;
    Ok(Some(Rope::new(sizes.head_dim, (base * alpha.powf(width / (width - 2.0))) as f32)))
}

fn names_in_folder(part: ModelPart) -> StoredAs {
    match part {
        ModelPart::Layer(l, LayerPart::QNorm) => {
            StoredAs::One(format!("model.layers.{l}.self_attn.query_layernorm"))
        }
        ModelPart::Layer(l, LayerPart::KNorm) => {
            StoredAs::One(format!("model.layers.{l}.self_attn.key_layernorm"))
        }
        part => llama::names_in_folder(part),
    }
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    // Early files count the dense half of a layer as an expert.
    const EXPERTS: &str = "expert_count";
    if m.opt_size(EXPERTS)?.is_some_and(|n| n > 1) {
        return Err(m.error(EXPERTS, "expected at most 1: a mixture of experts is not supported"));
    }
    Ok(with_norms(llama::read_plain_gguf(m, RopePairing::HalfSplit)?))
}

fn with_norms(mut config: ModelConfig) -> ModelConfig {
    config.layers.iter_mut().for_each(|layer| layer.qk_norm = Some(QkNorm::TurnedHead));
    config
}
