//! Writes an int8 folder. It loads fast, because its file only has to be mapped.
//!
//! ```sh
//! cargo run --release --example quantize -- my-model my-model-int8
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use welm_examples::tell;

/// Quantises a Hugging Face folder to int8.
#[derive(Debug, Parser)]
struct Args {
    /// Folder with config.json and safetensors
    from: PathBuf,
    /// Folder to write: new, empty, or written by this program before
    to: PathBuf,
}

fn main() -> ExitCode {
    welm_examples::run(run)
}

fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    welm_core::quantize(&args.from, &args.to, |p| {
        let percent = 100 * p.done_bytes / p.total_bytes.max(1);
        tell(&format!("\r{percent:3} % of {} MB", p.total_bytes >> 20));
        true
    })?;
    let size = std::fs::metadata(args.to.join("model.safetensors"))?.len();
    tell(&format!("\r{} MB in {}\n", size >> 20, args.to.display()));
    Ok(())
}
