//! Times a model on the CPU, and measures the limits of the machine. `peers/run` calls it; results are lines of JSON.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};
use welm_benches::cpu::{self, Random, Request};
use welm_benches::{limits, random_model, truth, work};
use welm_core::{Activations, CacheDtype, Device, Dtype, LoadOptions, Model};

/// Times a model on the CPU, and the machine it runs on.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The machine's own limits: bytes read, int8 and f32 operations in a second
    Limits(LimitsArgs),
    /// Writes an int8 folder of random weights, unless it is there
    Write {
        /// welm-medium, welm-large, welm-xl or qwen-0.5b
        shape: String,
        /// Folder to write
        folder: PathBuf,
    },
    /// How far a model's logits are from those in f32 of the same weights
    Truth(TruthArgs),
    /// Loads a model and times it
    Run(RunArgs),
}

#[derive(Debug, Args)]
struct LimitsArgs {
    /// Threads that read and compute
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// MiB that all threads together read: much more than the last-level cache
    #[arg(long, default_value_t = 2048)]
    mib: usize,
    /// Times that each is measured
    #[arg(long, default_value_t = 7)]
    passes: usize,
    /// Prints a line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TruthArgs {
    /// Folder or GGUF file
    model: PathBuf,
    /// Text whose first tokens are scored, by 512
    text: PathBuf,
    /// So many of them
    #[arg(long, default_value_t = 2048)]
    tokens: usize,
    /// Compute threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Folder or GGUF file
    model: PathBuf,
    /// Compute threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Prompt tokens of a step
    #[arg(long, default_value_t = 256)]
    chunk_tokens: usize,
    /// Element type of the weights: auto, f32, bf16 or int8
    #[arg(long, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// Bits of an activation before an int8 weight: auto, int8 or int16
    #[arg(long, default_value_t = Activations::Auto)]
    activations: Activations,
    /// Element type of the KV cache: auto, f32, bf16 or f16
    #[arg(long, default_value_t = CacheDtype::Auto)]
    cache: CacheDtype,
    /// Instruction set at most
    #[arg(long)]
    isa: Option<String>,
    /// Weights in memory of the process, in huge pages, instead of the mapped file
    #[arg(long)]
    copy_weights: bool,
    /// Lengths of prompts that are timed
    #[arg(long, value_delimiter = ',')]
    prefill: Vec<usize>,
    /// Numbers of sequences whose steps are timed
    #[arg(long, value_delimiter = ',')]
    decode: Vec<usize>,
    /// Lengths of these sequences' prompts
    #[arg(long, value_delimiter = ',', default_value = "128")]
    context: Vec<usize>,
    /// Steps that are timed
    #[arg(long, default_value_t = 32)]
    tokens: usize,
    /// Extra steps that fit the cache, because sequences go on until this program's thread is woken
    #[arg(long, default_value_t = 64)]
    slack: usize,
    /// Times that each is measured; the middle one is the result
    #[arg(long, default_value_t = 3)]
    repeats: usize,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Limits(args) => limits_of(&args),
        Command::Write { shape, folder } => write(&shape, &folder),
        Command::Truth(args) => truth_of(&args),
        Command::Run(args) => run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn truth_of(args: &TruthArgs) -> Result<()> {
    let text = std::fs::read_to_string(&args.text).with_context(|| args.text.display().to_string())?;
    let usual = LoadOptions { device: Device::Cpu, threads: Some(args.threads), ..LoadOptions::default() };
    let exact = LoadOptions { dtype: Dtype::F32, cache_dtype: CacheDtype::F32, ..usual.clone() };
    let wide = LoadOptions { activations: Activations::Int16, ..usual.clone() };
    let cache = |options: &LoadOptions, cache_dtype| LoadOptions { cache_dtype, ..options.clone() };
    let ways = [
        ("int16 activations, f32 cache", cache(&wide, CacheDtype::F32)),
        ("f32 cache", cache(&usual, CacheDtype::F32)),
        ("int16 activations, bf16 cache", cache(&wide, CacheDtype::Bf16)),
        ("bf16 cache", cache(&usual, CacheDtype::Bf16)),
        ("int16 activations", wide),
        ("default", usual),
    ];
    truth::measure(&args.model, &text, args.tokens, &exact, &ways)?.into_iter().for_each(print);
    Ok(())
}

fn limits_of(args: &LimitsArgs) -> Result<()> {
    let limits = limits::measure(args.threads, args.mib << 20, args.passes)?;
    if args.json {
        println!("{}", limits.record());
    } else {
        println!("{limits}");
    }
    Ok(())
}

fn write(shape: &str, folder: &std::path::Path) -> Result<()> {
    let Some(config) = random_model::shape(shape) else {
        bail!("expected one of {}, got `{shape}`", random_model::SHAPES.join(", "));
    };
    random_model::write(folder, &config)
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn run(args: &RunArgs) -> Result<()> {
    let repeats = 0..args.repeats.max(1);
    let decode: Vec<(usize, usize)> =
        args.context.iter().flat_map(|&c| args.decode.iter().map(move |&b| (b, c))).collect();
    if decode.iter().any(|&(batch, context)| batch == 0 || context == 0) || args.tokens == 0 {
        bail!("expected sequences, contexts and tokens of at least 1");
    }
    let on_cpu = LoadOptions { device: Device::Cpu, ..LoadOptions::default() };
    let estimate = Model::estimate(&args.model, &on_cpu).with_context(|| args.model.display().to_string())?;
    let requests: Vec<Request> = decode
        .into_iter()
        .map(|(batch, context)| {
            let (tokens, chunk_tokens, slack) = (args.tokens, args.chunk_tokens, args.slack);
            Request { batch, context, tokens, chunk_tokens, slack, max_context: estimate.context_tokens }
        })
        .collect();
    // Room for every sequence, whole blocks each.
    let room = |r: &Request| r.batch * (r.context + r.tokens_asked()).next_multiple_of(16);
    let for_prompts = args.prefill.iter().map(|n| (n + 1).next_multiple_of(16)).max().unwrap_or(0);
    let for_steps = requests.iter().map(room).max().unwrap_or(0);
    let options = LoadOptions {
        dtype: args.dtype,
        activations: args.activations,
        cache_dtype: args.cache,
        isa: args.isa.clone(),
        threads: Some(args.threads),
        chunk_tokens: Some(args.chunk_tokens),
        copy_weights: args.copy_weights,
        cache_tokens: Some(for_prompts.max(for_steps).max(16) + 16),
        prefix_cache: false,
        ..on_cpu
    };
    let mut random = Random::default();
    let (model, load_seconds, ready_seconds) =
        cpu::load(&args.model, &options, &mut random).with_context(|| args.model.display().to_string())?;
    let (config, memory) = (model.config().clone(), model.memory());
    let weight_bytes = work::weight_bytes_read(&config, &memory);
    print(json!({
        "record": "load", "engine": "welm", "backend": model.backend(), "threads": args.threads,
        "seconds": load_seconds, "ready_seconds": ready_seconds, "parameters": config.n_params(),
        "weight_bytes": memory.mapped_bytes + memory.converted_bytes, "weight_bytes_read": weight_bytes,
        "cache_bytes_per_token": work::cache_bytes_per_token(&memory),
        "peak_rss_bytes": cpu::peak_resident_bytes(),
    }));

    for &n in &args.prefill {
        let seconds =
            repeats.clone().map(|_| cpu::prefill(&model, n, &mut random)).collect::<Result<Vec<_>>>()?;
        let rates: Vec<f64> = seconds.iter().map(|s| n as f64 / s).collect();
        print(json!({
            "record": "prefill", "n": n, "seconds": seconds, "tok_per_s": middle(rates),
            "product_ops": n as u64 * work::product_ops(&config) + work::output_ops(&config),
            "attention_ops": work::attention_ops(&config, n),
        }));
    }
    for request in requests {
        let Request { batch, context, .. } = request;
        let measure = |_| cpu::decode(&model, request, &mut random);
        let all = repeats.clone().map(measure).collect::<Result<Vec<_>>>()?;
        let rates: Vec<f64> = all.iter().map(|s| batch as f64 / s.seconds).collect();
        let mean_context = all[0].mean_context;
        let keys = work::cache_bytes_per_token(&memory) as f64 * mean_context * batch as f64;
        print(json!({
            "record": "decode", "batch": batch, "context": context, "mean_context": mean_context,
            "tokens": all.iter().map(|s| s.tokens).collect::<Vec<_>>(),
            "step_seconds": all.iter().map(|s| s.seconds).collect::<Vec<_>>(),
            "heard_step_seconds": all.iter().map(|s| s.heard_seconds).collect::<Vec<_>>(),
            "tok_per_s": middle(rates), "step_bytes": weight_bytes + keys as u64,
            "step_ops": batch as u64 * (work::product_ops(&config) + work::output_ops(&config)),
        }));
    }
    print(json!({ "record": "end", "peak_rss_bytes": cpu::peak_resident_bytes() }));
    Ok(())
}

/// Prints a line and flushes, so that a reader sees the progress.
fn print(record: Value) {
    println!("{record}");
}
