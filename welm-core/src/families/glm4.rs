//! GLM-4 0414 (arXiv 2406.12793): Llama with biases of q, k and v, gate and up in one matrix, the first half of each head
//! turned in pairs of neighbours, and norms after each half of a layer, too.

use super::settings::rope::{self, Beside};
use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, StoredAs, llama};
use crate::config::part::{LayerPart, ModelPart};
use crate::config::{ModelConfig, Rope, RopePairing};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    folder: InFolder { model_type: "glm4", classes: &["glm4for"], read: read_folder, names: names_in_folder },
    gguf: Some(InGguf { architecture: "glm4", read: read_gguf, names: names_in_gguf, ..llama::IN_GGUF }),
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    Ok(with_post_norms(read_without_post_norms(f)?))
}

fn with_post_norms(mut config: ModelConfig) -> ModelConfig {
    config.layers.iter_mut().for_each(|layer| layer.post_norms = true);
    config
}

/// GLM-4's first generation has no norms after the halves of a layer.
pub(super) fn read_without_post_norms(f: &Fields) -> Result<ModelConfig> {
    let mut sizes = f.sizes_with(Some(128))?;
    sizes.n_kv_heads = f.opt_size_or("num_key_value_heads", 2)?.unwrap_or(sizes.n_heads);
    let beside = Beside {
        base: &["rope_theta"],
        default_base: 10_000.0,
        part: "partial_rotary_factor",
        default_part: 0.5,
    };
    let rope = Rope { pairing: RopePairing::Interleaved, ..rope::of_folder(f, &beside, &sizes)? };
    let attention_bias = f.flag("attention_bias")?.unwrap_or(true);
    Ok(ModelConfig { attention_bias, ..llama::read_with(f, sizes, rope, 1.5625e-7)? })
}

pub(super) fn names_in_folder(part: ModelPart) -> StoredAs {
    let ModelPart::Layer(l, inside) = part else { return llama::names_in_folder(part) };
    let name = |stem: &str| StoredAs::One(format!("model.layers.{l}.{stem}"));
    match inside {
        LayerPart::AttnPostNorm => name("post_self_attn_layernorm"),
        LayerPart::Up => name("mlp.gate_up_proj"),
        LayerPart::FfnPostNorm => name("post_mlp_layernorm"),
        _ => llama::names_in_folder(part),
    }
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    Ok(with_post_norms(llama::read_plain_gguf(m, RopePairing::Interleaved)?))
}

fn names_in_gguf(part: ModelPart) -> StoredAs {
    match part {
        ModelPart::Layer(l, LayerPart::Up) => StoredAs::One(format!("blk.{l}.ffn_up")),
        _ => llama::names_in_gguf(part),
    }
}
