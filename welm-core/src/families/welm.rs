//! WeLM (arXiv 2209.10372): GPT-NeoX with two other defaults. Whole heads are turned, and the halves of a layer follow each
//! other. Both names of the base of the rotary embedding are taken.

use super::settings::Fields;
use super::settings::rope::Beside;
use super::{Family, InFolder, gpt_neox};
use crate::config::ModelConfig;
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "welm",
        classes: gpt_neox::CLASSES,
        read: read_folder,
        names: gpt_neox::names_in_folder,
    },
    gguf: None,
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let beside = Beside {
        base: &["rotary_emb_base", "rope_theta"],
        default_base: 10_000.0,
        part: "rotary_pct",
        default_part: 1.0,
    };
    gpt_neox::read_with(f, &beside, false)
}
