//! Times every kernel on a GPU, and the whole model if asked to.
//!
//! No GPU has run this program yet.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use welm_benches::cases::Shape;
use welm_benches::random_model;
use welm_benches::record::{self, Lines};
use welm_benches::timing::{Effort, copy_bandwidth};
use welm_benches::whole::{self, Request};
use welm_core::Activations;
use welm_kernels::Device;

/// Times the CUDA kernels, and the device's own copy bandwidth.
#[derive(Debug, Parser)]
struct Args {
    /// Number of the CUDA device
    #[arg(long, default_value_t = 0)]
    device: usize,
    /// File for the results, a line of JSON each
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only kernels whose line of the table contains this, such as "product w8a16"
    #[arg(long, default_value = "")]
    only: String,
    /// Only the few most important kernels, in short measurements
    #[arg(long)]
    quick: bool,
    /// Also the whole model; a folder with room for 11.4 GB, where its random weights are written, and stay
    #[arg(long)]
    model: Option<PathBuf>,
    /// Prints the device, and ends
    #[arg(long)]
    info: bool,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let device = Device::open(args.device).with_context(|| format!("CUDA device {}", args.device))?;
    println!("{:?}", device.info());
    if args.info {
        return Ok(());
    }
    let effort = if args.quick { Effort::quick() } else { Effort::full() };
    let mut lines = Lines::create(args.json.as_deref())?;
    let copy = copy_bandwidth(&device, &effort, &[256 << 20, 1 << 30, 4 << 30])?;
    println!("copy: {:.0} GB/s, reads and writes together", copy / 1e9);
    lines.write(&record::device(&device, copy))?;

    let mut failed = 0;
    for shape in if args.quick { Shape::quick() } else { Shape::all() } {
        let name = record::text(&record::kernel(&shape, Err(String::new()), copy));
        // Without the spaces between the columns.
        if !name.split_whitespace().collect::<Vec<_>>().join(" ").contains(&args.only) {
            continue;
        }
        let times = match shape.measure(&device, &effort) {
            Ok(times) => times.ok_or_else(|| "out of device memory".into()),
            Err(error) => {
                failed += 1;
                Err(format!("failed: {error:#}"))
            }
        };
        let record = record::kernel(&shape, times, copy);
        println!("{}", record::text(&record));
        lines.write(&record)?;
    }

    match &args.model {
        Some(folder) => whole_model(folder, &device, args.quick, copy, &mut lines)?,
        None => println!("the whole model: not asked for (--model FOLDER)"),
    }
    ensure!(failed == 0, "{failed} measurements failed");
    Ok(())
}

/// WeLM's 10 billion parameters, with each form of activations.
fn whole_model(folder: &Path, device: &Device, quick: bool, copy: f64, lines: &mut Lines) -> Result<()> {
    let config = whole::welm_xl();
    random_model::write(folder, &config)?;
    let samples = if quick { 1 } else { 5 };
    let request = Request { prompt: 2048, tokens: 128, samples };
    let modes = [
        ("int16", Activations::Int16),
        ("int8", Activations::Int8),
        ("int8_rotated", Activations::Int8Rotated),
    ];
    for (variant, activations) in modes {
        let whole = whole::measure(folder, device, activations, request)?;
        for record in record::whole(&config, variant, request.prompt, &whole, copy) {
            println!("{}", record::text(&record));
            lines.write(&record)?;
        }
    }
    Ok(())
}
