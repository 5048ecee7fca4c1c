//! Phi-3, Phi-3.5 and Phi-4-mini (arXiv 2404.14219, 2503.01743): Llama with q, k and v in one matrix and gate and up in
//! another. Where a configuration says so, a part of each head is turned, by LongRoPE, and all layers have a sliding
//! window.

use super::settings::rope::{self, Beside};
use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, StoredAs, llama};
use crate::config::part::{LayerPart, ModelPart};
use crate::config::{ModelConfig, RopePairing, RopeScaling};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    folder: InFolder { model_type: "phi3", classes: &["phi3for"], read: read_folder, names: names_in_folder },
    gguf: Some(InGguf {
        architecture: "phi3",
        read: read_gguf,
        names: llama::fused_names_in_gguf,
        biases_as_stored: false,
    }),
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let sizes = f.sizes()?;
    let beside = Beside {
        base: &["rope_theta"],
        default_base: 10_000.0,
        part: "partial_rotary_factor",
        default_part: 1.0,
    };
    let rope = rope::of_folder(f, &beside, &sizes)?;
    if matches!(rope.scaling, RopeScaling::LongRope { .. }) {
        // Here transformers has a number of its own where it is absent.
        f.size("original_max_position_embeddings")?;
    }
    let mut config = llama::read_with(f, sizes, rope, 1e-5)?;
    let window = f.opt_size("sliding_window")?;
    config.slide(f.sliding(config.layers.len(), window, |_| window.is_some())?.as_ref());
    Ok(config)
}

fn names_in_folder(part: ModelPart) -> StoredAs {
    match part {
        ModelPart::Layer(l, LayerPart::Qkv) => StoredAs::One(format!("model.layers.{l}.self_attn.qkv_proj")),
        ModelPart::Layer(l, LayerPart::Up) => StoredAs::One(format!("model.layers.{l}.mlp.gate_up_proj")),
        _ => llama::names_in_folder(part),
    }
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    // llama.cpp ignores the window of these files; transformers does not.
    llama::read_plain_gguf(m, RopePairing::HalfSplit)
}
