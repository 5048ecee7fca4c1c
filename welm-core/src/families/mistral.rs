//! Mistral and Ministral (arXiv 2310.06825): Llama with a sliding window, in all layers or in those that the settings name.

use super::settings::Fields;
use super::{Family, InFolder, InGguf, llama};
use crate::config::ModelConfig;
use crate::error::Result;

/// In GGUF files, where this is not Llama, it is called `mistral3`.
pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "mistral",
        classes: &["mistralforcausallm", "ministralforcausallm"],
        read: read_folder,
        names: llama::names_in_folder,
    },
    gguf: Some(InGguf { architecture: "mistral3", ..llama::IN_GGUF }),
};

/// The name in transformers of those whose layers differ.
pub(super) const MINISTRAL: Family =
    Family { folder: InFolder { model_type: "ministral", ..FAMILY.folder }, gguf: None };

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let mut config = llama::read_plain(f, 1e-6)?;
    let window = f.opt_size_or("sliding_window", 4096)?;
    let sliding = f.sliding(config.layers.len(), window, |_| window.is_some())?;
    config.slide(sliding.as_ref());
    Ok(config)
}
