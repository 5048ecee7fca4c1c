//! GPT-NeoX (arXiv 2204.06745): layernorm, GELU, both halves of a layer from the same input, biases everywhere.

use super::settings::rope::{self, Beside};
use super::settings::{Fields, Metadata, divide};
use super::{Family, InFolder, InGguf, StoredAs, llama};
use crate::config::part::{LayerPart, ModelPart};
use crate::config::{Activation, LayerConfig, ModelConfig, NormKind, RopePairing};
use crate::error::{Error, Result};

pub(super) const FAMILY: Family = Family {
    folder: InFolder { model_type: "gpt_neox", classes: CLASSES, read: read_folder, names: names_in_folder },
    gguf: Some(InGguf {
        architecture: "gptneox",
        read: read_gguf,
        names: llama::fused_names_in_gguf,
        biases_as_stored: false,
    }),
};

pub(super) const CLASSES: &[&str] = &["gptneox", "welm"];

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let beside =
        Beside { base: &["rotary_emb_base"], default_base: 10_000.0, part: "rotary_pct", default_part: 0.25 };
    read_with(f, &beside, true)
}

/// Reads the settings of a relative with these spellings and this default of `use_parallel_residual`.
pub(super) fn read_with(f: &Fields, beside: &Beside, parallel_residual: bool) -> Result<ModelConfig> {
    let sizes = f.sizes()?;
    let head_dim = divide("hidden_size", sizes.dim, "num_attention_heads", sizes.n_heads)?;
    f.fixed_size("head_dim", head_dim)?;
    f.fixed_size("num_key_value_heads", sizes.n_heads)?;
    f.refuse_window(sizes.max_context)?;
    let activation = match f.opt_text("hidden_act")? {
        None | Some("gelu" | "gelu_python") => Activation::Gelu,
        Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh") => Activation::GeluTanh,
        Some(other) => {
            let known = "gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh";
            return Err(Error::config("hidden_act", format!("`{other}` is none of {known}")));
        }
    };
    let eps = f.number("layer_norm_eps")?.unwrap_or(1e-5) as f32;
    let rope = rope::of_folder(f, beside, &sizes)?;
    let attention_bias = f.flag("attention_bias")?.unwrap_or(true);
    Ok(ModelConfig {
        parallel_residual: f.flag("use_parallel_residual")?.unwrap_or(parallel_residual),
        attention_bias,
        attention_out_bias: attention_bias,
        mlp_bias: true,
        ..ModelConfig::plain(sizes, NormKind::LayerNorm, eps, activation, rope)
    })
}

pub(super) fn names_in_folder(part: ModelPart) -> StoredAs {
    let (l, part) = match part {
        ModelPart::Embed => return StoredAs::One("gpt_neox.embed_in".into()),
        ModelPart::FinalNorm => return StoredAs::One("gpt_neox.final_layer_norm".into()),
        ModelPart::Output => return StoredAs::One("embed_out".into()),
        ModelPart::Layer(l, part) => (l, part),
    };
    let name = |stem: &str| format!("gpt_neox.layers.{l}.{stem}");
    match part {
        LayerPart::AttnNorm => StoredAs::One(name("input_layernorm")),
        LayerPart::Qkv => StoredAs::GroupByGroup(name("attention.query_key_value")),
        LayerPart::Out => StoredAs::One(name("attention.dense")),
        LayerPart::FfnNorm => StoredAs::One(name("post_attention_layernorm")),
        LayerPart::Up => StoredAs::One(name("mlp.dense_h_to_4h")),
        LayerPart::Down => StoredAs::One(name("mlp.dense_4h_to_h")),
        LayerPart::QNorm | LayerPart::KNorm | LayerPart::AttnPostNorm | LayerPart::FfnPostNorm => {
            StoredAs::Nowhere
        }
    }
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    let sizes = m.sizes()?;
    m.refuse_scale(LayerConfig::new(sizes.head_dim).scale)?;
    let rope = rope::of_gguf(m, RopePairing::HalfSplit, sizes.head_dim)?;
    let eps = m.f32("attention.layer_norm_epsilon")?;
    // No key has the activation. Of the published models GPT-NeoX-20B alone has the approximation by tanh (`gelu_fast`).
    let is_20b = (sizes.n_layers, sizes.dim) == (44, 6144);
    let activation = if is_20b { Activation::GeluTanh } else { Activation::Gelu };
    Ok(ModelConfig {
        parallel_residual: m.opt_flag("use_parallel_residual")?.unwrap_or(true),
        attention_bias: true,
        attention_out_bias: true,
        mlp_bias: true,
        ..ModelConfig::plain(sizes, NormKind::LayerNorm, eps, activation, rope)
    })
}
