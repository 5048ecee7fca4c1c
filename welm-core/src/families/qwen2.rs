//! Qwen2 and Qwen2.5 (arXiv 2407.10671): Llama with biases of q, k and v, and if they are switched on with sliding windows
//! from some layer on.

use super::settings::{Fields, Metadata};
use super::{Family, InFolder, InGguf, llama};
use crate::config::{ModelConfig, RopePairing};
use crate::error::{Error, Result};

pub(super) const FAMILY: Family = Family {
    folder: InFolder {
        model_type: "qwen2",
        classes: &["qwen2for"],
        read: read_folder,
        names: llama::names_in_folder,
    },
    gguf: Some(InGguf { architecture: "qwen2", read: read_gguf, ..llama::IN_GGUF }),
};

fn read_folder(f: &Fields) -> Result<ModelConfig> {
    let mut config = ModelConfig { attention_bias: true, ..llama::read_plain(f, 1e-6)? };
    slide(f, &mut config)?;
    // Qwen2.5-1M (arXiv 2501.15383): in texts that are no longer than a chunk, this attention is the ordinary one.
    if let Some(chunks) = f.section("dual_chunk_attention_config")? {
        let (chunk, local) = (chunks.size("chunk_size")?, chunks.size("local_size")?);
        if local >= chunk {
            let reason = format!("expected more than local_size, {local}, got {chunk}");
            return Err(Error::config("dual_chunk_attention_config.chunk_size", reason));
        }
        config.max_context = config.max_context.min(chunk - local);
    }
    Ok(config)
}

/// Gives layers their windows, as Qwen3 does, too.
pub(super) fn slide(f: &Fields, config: &mut ModelConfig) -> Result<()> {
    let used = f.flag("use_sliding_window")?.unwrap_or(false);
    let window = f.opt_size_or("sliding_window", 4096)?.filter(|_| used);
    let first = f.opt_size("max_window_layers")?.unwrap_or(28);
    let sliding = f.sliding(config.layers.len(), window, |l| window.is_some() && l >= first)?;
    config.slide(sliding.as_ref());
    Ok(())
}

fn read_gguf(m: &Metadata) -> Result<ModelConfig> {
    llama::read_plain_gguf(m, RopePairing::HalfSplit)
}
