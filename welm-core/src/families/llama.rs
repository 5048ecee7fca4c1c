//! Llama (arXiv 2302.13971): rmsnorm, SwiGLU, q, k and v by themselves, fewer heads of keys than of queries if it likes.
//! Many families are relatives of it: their readers start from those here.

use super::settings::rope::{self, Beside};
use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, StoredAs};
use crate::config::part::{LayerPart, ModelPart};
use crate::config::{Activation, LayerConfig, ModelConfig, ModelSizes, NormKind, Rope, RopePairing};
use crate::error::{Error, Result};

pub(super) const FAMILY: Family = Family {
    folder: InFolder { model_type: "llama", classes: &["llama"], read: read_folder, names: names_in_folder },
    gguf: Some(IN_GGUF),
};

/// Relatives differ in the name of the architecture and in what is read.
pub(super) const IN_GGUF: InGguf = InGguf {
    architecture: "llama",
    read: read_gguf,
    names: names_in_gguf,
    // Also where a family has none: llama.cpp takes those it finds.
    biases_as_stored: true,
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let config = read_plain(f, 1e-6)?;
    f.refuse_window(config.max_context)?;
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    Ok(ModelConfig {
        attention_bias,
        attention_out_bias: attention_bias,
        mlp_bias: f.flag("mlp_bias")?.unwrap_or(false),
        ..config
    })
}

/// What a folder says of a relative that has no biases, and whose epsilon is this where none is stated.
pub(super) fn read_plain(f: &Fields, default_eps: f64) -> Result<ModelConfig> {
    let sizes = f.sizes()?;
    let rope = rope_of_folder(f, 10_000.0, &sizes)?;
    read_with(f, sizes, rope, default_eps)
}

/// The rotary embedding, whose base is this where none is stated.
pub(super) fn rope_of_folder(f: &Fields, default_base: f64, sizes: &ModelSizes) -> Result<Rope> {
    let part = "partial_rotary_factor";
    let rope =
        rope::of_folder(f, &Beside { base: &["rope_theta"], default_base, part, default_part: 1.0 }, sizes)?;
    if rope.rotary_dim != sizes.head_dim {
        return Err(Error::config(part, "only 1 is supported in this family"));
    }
    Ok(rope)
}

/// The same, where sizes and rotary embedding have been read.
pub(super) fn read_with(f: &Fields, sizes: ModelSizes, rope: Rope, default_eps: f64) -> Result<ModelConfig> {
    f.expect_text("hidden_act", &["silu", "swish"])?;
    let eps = f.number("rms_norm_eps")?.unwrap_or(default_eps) as f32;
    Ok(ModelConfig::plain(sizes, NormKind::RmsNorm, eps, Activation::SwiGlu, rope))
}

/// The names of all relatives. One that has other norms says so itself.
pub(super) fn names_in_folder(part: ModelPart) -> StoredAs {
    let (l, part) = match part {
        ModelPart::Embed => return StoredAs::One("model.embed_tokens".into()),
        ModelPart::FinalNorm => return StoredAs::One("model.norm".into()),
        ModelPart::Output => return StoredAs::One("lm_head".into()),
        ModelPart::Layer(l, part) => (l, part),
    };
    let name = |stem: &str| format!("model.layers.{l}.{stem}");
    match part {
        LayerPart::AttnNorm => StoredAs::One(name("input_layernorm")),
        LayerPart::Qkv => {
            StoredAs::Each(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(name).to_vec())
        }
        LayerPart::Out => StoredAs::One(name("self_attn.o_proj")),
        LayerPart::FfnNorm => StoredAs::One(name("post_attention_layernorm")),
        LayerPart::Up => StoredAs::Each(["mlp.gate_proj", "mlp.up_proj"].map(name).to_vec()),
        LayerPart::Down => StoredAs::One(name("mlp.down_proj")),
        LayerPart::QNorm => StoredAs::One(name("self_attn.q_norm")),
        LayerPart::KNorm => StoredAs::One(name("self_attn.k_norm")),
        LayerPart::AttnPostNorm | LayerPart::FfnPostNorm => StoredAs::Nowhere,
    }
}

/// The names of relatives with norms after each half of a layer.
pub(super) fn names_with_post_norms(part: ModelPart) -> StoredAs {
    let ModelPart::Layer(l, inside) = part else { return names_in_folder(part) };
    let name = |stem: &str| StoredAs::One(format!("model.layers.{l}.{stem}"));
    match inside {
        LayerPart::AttnPostNorm => name("post_attention_layernorm"),
        LayerPart::FfnNorm => name("pre_feedforward_layernorm"),
        LayerPart::FfnPostNorm => name("post_feedforward_layernorm"),
        _ => names_in_folder(part),
    }
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    // Rows of q and k are permuted to match.
    read_plain_gguf(m, RopePairing::Interleaved)
}

/// What a GGUF file says of a relative: in the same keys, and with windows where it has some.
pub(super) fn read_plain_gguf(m: &Metadata, pairing: RopePairing) -> Result<ModelConfig> {
    read_gguf_of_period(m, pairing, None)
}

/// The same of a relative that has a period of windows, see [`Metadata::sliding`].
pub(super) fn read_gguf_of_period(
    m: &Metadata,
    pairing: RopePairing,
    period: Option<usize>,
) -> Result<ModelConfig> {
    let sizes = m.sizes()?;
    m.refuse_scale(LayerConfig::new(sizes.head_dim).scale)?;
    let rope = rope::with_divisors(m, rope::of_gguf(m, pairing, sizes.head_dim)?)?;
    let eps = m.f32("attention.layer_norm_rms_epsilon")?;
    let mut config = ModelConfig::plain(sizes, NormKind::RmsNorm, eps, Activation::SwiGlu, rope);
    config.slide(m.sliding(config.layers.len(), period)?.as_ref());
    Ok(config)
}

/// A part has one name, whoever has it.
pub(super) fn names_in_gguf(part: ModelPart) -> StoredAs {
    let (l, part) = match part {
        ModelPart::Embed => return StoredAs::One("token_embd".into()),
        ModelPart::FinalNorm => return StoredAs::One("output_norm".into()),
        ModelPart::Output => return StoredAs::One("output".into()),
        ModelPart::Layer(l, part) => (l, part),
    };
    let name = |stem: &str| format!("blk.{l}.{stem}");
    match part {
        LayerPart::AttnNorm => StoredAs::One(name("attn_norm")),
        LayerPart::Qkv => StoredAs::Each(["attn_q", "attn_k", "attn_v"].map(name).to_vec()),
        LayerPart::Out => StoredAs::One(name("attn_output")),
        LayerPart::FfnNorm => StoredAs::One(name("ffn_norm")),
        LayerPart::Up => StoredAs::Each(["ffn_gate", "ffn_up"].map(name).to_vec()),
        LayerPart::Down => StoredAs::One(name("ffn_down")),
        LayerPart::QNorm => StoredAs::One(name("attn_q_norm")),
        LayerPart::KNorm => StoredAs::One(name("attn_k_norm")),
        LayerPart::AttnPostNorm => StoredAs::One(name("post_attention_norm")),
        LayerPart::FfnPostNorm => StoredAs::One(name("post_ffw_norm")),
    }
}

/// The same where q, k and v are one matrix, and gates and ups, if there are gates.
pub(super) fn fused_names_in_gguf(part: ModelPart) -> StoredAs {
    match part {
        ModelPart::Layer(l, LayerPart::Qkv) => StoredAs::One(format!("blk.{l}.attn_qkv")),
        ModelPart::Layer(l, LayerPart::Up) => StoredAs::One(format!("blk.{l}.ffn_up")),
        _ => names_in_gguf(part),
    }
}
