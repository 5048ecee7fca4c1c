//! Granite 4 (arXiv 2502.20204) where it is dense: all layers have attention, and the only expert is the one that all
//! tokens share. It is [Granite](super::granite) under other names, and turns nothing if it likes. With other layers it is
//! refused.

use super::settings::Fields;
use super::{Family, InFolder, StoredAs, granite, llama};
use crate::config::ModelConfig;
use crate::config::part::{LayerPart, ModelPart};
use crate::error::{Error, Result};

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "granitemoehybrid",
        classes: &["granitemoehybridfor"],
        read: read_folder,
        names: names_in_folder,
    },
    // Such files are of the architecture granite.
    gguf: None,
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    refuse_other_layers(f)?;
    let mut sizes = f.sizes()?;
    sizes.hidden_dim = f.size("shared_intermediate_size")?;
    let rope = llama::rope_of_folder(f, 10_000.0, &sizes)?;
    let mut config = llama::read_with(f, sizes, rope, 1e-6)?;
    f.expect_text("normalization_function", &["rmsnorm"])?;
    // What its layers of the other kind would be like.
    f.skip(&["mamba_", "time_step_"]);
    if f.nullable_text("position_embedding_type")? != Some("rope") {
        config.layers.iter_mut().for_each(|layer| layer.rope = None);
    }
    granite::with_multipliers(f, config)
}

/// Refuses layers that are not attention, and experts that a token chooses.
fn refuse_other_layers(f: &Fields) -> Result<()> {
    const LAYERS: &str = "layer_types";
    let is_attention =
        |kind: &serde_json::Value| matches!(kind.as_str(), Some("attention" | "full_attention"));
    let list = f.find(LAYERS).or(f.find("layers_block_type"));
    if !list.and_then(|list| list.as_array()).is_some_and(|list| list.iter().all(is_attention)) {
        let reason = "expected only attention: a model with state-space layers is not supported";
        return Err(Error::config(LAYERS, reason));
    }
    match f.opt_size("num_local_experts")? {
        Some(0) => Ok(()),
        _ => Err(Error::config("num_local_experts", "expected 0: a mixture of experts is not supported")),
    }
}

fn names_in_folder(part: ModelPart) -> StoredAs {
    let name = |l: usize, stem: &str| StoredAs::One(format!("model.layers.{l}.shared_mlp.{stem}"));
    match part {
        ModelPart::Layer(l, LayerPart::Up) => name(l, "input_linear"),
        ModelPart::Layer(l, LayerPart::Down) => name(l, "output_linear"),
        _ => llama::names_in_folder(part),
    }
}
