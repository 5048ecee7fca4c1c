//! Writes an int8 folder, which then loads by mapping alone.
//!
//! ```sh
//! cargo run --release --example quantize -- my-model my-model-int8
//! ```

use std::io::Write;
use std::path::PathBuf;

use clap::Parser;

/// Quantises a Hugging Face folder to int8.
#[derive(Debug, Parser)]
struct Args {
    /// Folder with config.json and safetensors
    from: PathBuf,
    /// Folder to write; new or empty
    to: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    welm_core::quantize(&args.from, &args.to, |p| {
        eprint!("\r{:3} % of {} MB", 100 * p.done_bytes / p.total_bytes.max(1), p.total_bytes >> 20);
        let _ = std::io::stderr().flush();
        true
    })?;
    let size = std::fs::metadata(args.to.join("model.safetensors"))?.len();
    eprintln!("\r{} MB in {}", size >> 20, args.to.display());
    Ok(())
}
