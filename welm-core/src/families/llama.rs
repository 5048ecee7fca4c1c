//! Llama (arXiv 2302.13971): rmsnorm, SwiGLU, q, k and v by themselves, fewer heads of keys than of queries if it likes.

use super::settings::rope::{self, Beside};
use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, StoredAs};
use crate::config::part::{LayerPart, ModelPart};
use crate::config::{Activation, ModelConfig, NormKind, RopePairing};
use crate::error::{Error, Result};

pub(super) const FAMILY: Family = Family {
    folder: InFolder { model_type: "llama", classes: &["llama"], read: read_folder, names: names_in_folder },
    gguf: Some(InGguf {
        architecture: "llama",
        read: read_gguf,
        names: names_in_gguf,
        biases_as_stored: true,
    }),
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let sizes = f.sizes()?;
    match f.opt_text("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => return Err(Error::config("hidden_act", format!("expected silu, got `{other}`"))),
    }
    f.refuse_window(sizes.max_context)?;
    let beside = Beside { base: &["rope_theta"], part: "partial_rotary_factor", default_part: 1.0 };
    let rope = rope::of_folder(f, &beside, &sizes)?;
    if rope.rotary_dim != sizes.head_dim {
        return Err(Error::config("partial_rotary_factor", "only 1 is supported for llama"));
    }
    let eps = f.number("rms_norm_eps")?.unwrap_or(1e-6) as f32;
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    Ok(ModelConfig {
        attention_bias,
        attention_out_bias: attention_bias,
        mlp_bias: f.flag("mlp_bias")?.unwrap_or(false),
        ..ModelConfig::plain(sizes, NormKind::RmsNorm, eps, Activation::SwiGlu, rope)
    })
}

fn names_in_folder(part: ModelPart) -> StoredAs {
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
        LayerPart::QNorm | LayerPart::KNorm | LayerPart::AttnPostNorm | LayerPart::FfnPostNorm => {
            StoredAs::Nowhere
        }
    }
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    let sizes = m.sizes()?;
    m.refuse_scale(sizes.head_dim)?;
    // Rows of q and k are permuted to match.
    let rope = rope::with_divisors(m, rope::of_gguf(m, RopePairing::Interleaved, sizes.head_dim)?)?;
    let eps = m.f32("attention.layer_norm_rms_epsilon")?;
    Ok(ModelConfig::plain(sizes, NormKind::RmsNorm, eps, Activation::SwiGlu, rope))
}

fn names_in_gguf(part: ModelPart) -> StoredAs {
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
        LayerPart::QNorm | LayerPart::KNorm | LayerPart::AttnPostNorm | LayerPart::FfnPostNorm => {
            StoredAs::Nowhere
        }
    }
}
