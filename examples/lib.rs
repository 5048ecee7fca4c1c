//! Code that the example programs share: where the model is, how it is loaded, and how a program ends.
//!
//! Programs write with `write!` and `writeln!`, because `print!` and `eprint!` panic if the reader has gone or the disk
//! is full.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use welm_core::{Activations, CacheDtype, Device, Dtype, LoadOptions, Model};

/// Runs a program. An error is written to stderr, except if the reader of the output has gone, as in `generate .. |
/// head`.
pub fn run(program: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    let Err(error) = program().and_then(|()| Ok(io::stdout().flush()?)) else {
        return ExitCode::SUCCESS;
    };
    let broken = |cause: &io::Error| cause.kind() == ErrorKind::BrokenPipe;
    if error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken)) {
        return ExitCode::from(141); // what a shell reports for a program that SIGPIPE ended
    }
    tell(&format!("Error: {error:#}\n"));
    ExitCode::FAILURE
}

/// Writes on stderr, if that can be written to.
pub fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

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
    /// Keys and values in f32 instead of 16 bits (CPU only)
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
            .with_writer(io::stderr)
            .init();
        let terminal = io::stderr().is_terminal();
        let options = LoadOptions {
            dtype: self.dtype,
            activations: self.activations,
            device: self.device,
            cache_dtype: if self.f32_cache { CacheDtype::F32 } else { CacheDtype::Auto },
            threads: self.threads,
            isa: self.isa.clone(),
            progress: terminal.then(|| {
                Arc::new(|p: welm_core::LoadProgress| {
                    let end = if p.done_bytes == p.total_bytes { "\r\x1b[K" } else { "" };
                    tell(&format!("\rloading: {} of {} MB{end}", p.done_bytes >> 20, p.total_bytes >> 20));
                    true
                }) as welm_core::ProgressFn
            }),
            ..LoadOptions::default()
        };
        Ok(Model::load(&self.model, &options)?)
    }
}
