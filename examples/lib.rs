//! What the example programs share: where the model is, and how it is loaded.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use welm_core::{Activations, CacheDtype, Device, Dtype, LoadOptions, Model};

/// Flags of every program that loads a model.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Hugging Face folder, int8 folder or GGUF file
    #[arg(long, default_value_os_t = nano())]
    pub model: PathBuf,
    /// Element type of the weights: auto (as stored, or more exact), f32, bf16 or int8
    #[arg(long, default_value_t = Dtype::Auto)]
    pub dtype: Dtype,
    /// Activations before int8 weights: auto, int8, int8_rotated (CUDA only) or int16
    #[arg(long, default_value_t = Activations::Auto)]
    pub activations: Activations,
    /// auto, cpu, cuda, or cuda:N for the device of that number (with the feature `cuda`)
    #[arg(long, default_value_t = Device::Auto)]
    pub device: Device,
    /// f32 instead of bf16 keys and values
    #[arg(long)]
    pub f32_cache: bool,
    /// Compute threads [default: what affinity and cgroup allow]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Instruction set to use at most: scalar; avx2, avxvnni or avx512vnni; neon or neondot
    #[arg(long)]
    pub isa: Option<String>,
}

/// The small model of this repository.
pub fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("welm-nano")
}

impl LoadArgs {
    /// Loads the model, with progress on a terminal's stderr; `RUST_LOG` turns on the log.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load(&self) -> anyhow::Result<Model> {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
        let terminal = std::io::stderr().is_terminal();
        let options = LoadOptions {
            dtype: self.dtype,
            activations: self.activations,
            device: self.device,
            cache_dtype: if self.f32_cache { CacheDtype::F32 } else { CacheDtype::Bf16 },
            threads: self.threads,
            isa: self.isa.clone(),
            progress: terminal.then(|| {
                Arc::new(|p: welm_core::LoadProgress| {
                    let end = if p.done_bytes == p.total_bytes { "\r\x1b[K" } else { "" };
                    eprint!("\rloading: {} of {} MB{end}", p.done_bytes >> 20, p.total_bytes >> 20);
                    let _ = std::io::stderr().flush();
                    true
                }) as welm_core::ProgressFn
            }),
            ..LoadOptions::default()
        };
        Ok(Model::load(&self.model, &options)?)
    }
}
