//! What the example programs share: where the model is, and how it is loaded.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use welm_core::{Activations, CacheDtype, Device, Dtype, LoadOptions, Model};

/// Flags of every program that loads a model.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Hugging Face folder, int8 folder or GGUF file
    #[arg(long, default_value_os_t = nano())]
    pub model: PathBuf,
    /// Element type of the weights
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub dtype: DtypeArg,
    /// Activations before int8 weights
    #[arg(long, value_enum, default_value_t = ActivationsArg::Auto)]
    pub activations: ActivationsArg,
    /// auto, cpu, cuda, or cuda:N for the device of that number (with the feature `cuda`)
    #[arg(long, default_value = "auto", value_parser = parse_device)]
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

/// [`Dtype`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// As stored, or more exact
    Auto,
    /// 32-bit floats
    F32,
    /// bfloat16
    Bf16,
    /// int8 in groups of 32
    Int8,
}

/// [`Activations`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActivationsArg {
    /// What the device does best
    Auto,
    /// 8 bits, a scale per 32 values
    Int8,
    /// 8 bits, rotated, a scale per token; CUDA only
    Int8Rotated,
    /// 16 bits
    Int16,
}

/// `auto`, `cpu`, `cuda` or `cuda:N`.
fn parse_device(text: &str) -> Result<Device, String> {
    let wrong = || format!("expected auto, cpu, cuda or cuda:N, got {text}");
    match text.split_once(':') {
        None if text == "auto" => Ok(Device::Auto),
        None if text == "cpu" => Ok(Device::Cpu),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", ordinal)) => ordinal.parse().map(Device::Cuda).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
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
            dtype: match self.dtype {
                DtypeArg::Auto => Dtype::Auto,
                DtypeArg::F32 => Dtype::F32,
                DtypeArg::Bf16 => Dtype::Bf16,
                DtypeArg::Int8 => Dtype::Int8,
            },
            activations: match self.activations {
                ActivationsArg::Auto => Activations::Auto,
                ActivationsArg::Int8 => Activations::Int8,
                ActivationsArg::Int8Rotated => Activations::Int8Rotated,
                ActivationsArg::Int16 => Activations::Int16,
            },
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
