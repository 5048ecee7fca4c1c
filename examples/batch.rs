//! Many requests from many threads. The engine computes them together by itself.
//!
//! ```sh
//! cargo run --release --example batch -- 床前明月光， 春眠不觉晓， 白日依山尽， 红豆生南国，
//! ```

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use welm_core::GenerateOptions;
use welm_examples::{LoadArgs, tell};

/// Continues several prompts, first one after the other, then at once.
#[derive(Debug, Parser)]
struct Args {
    /// Texts to continue
    #[arg(default_values = ["床前明月光，", "春眠不觉晓，", "白日依山尽，", "红豆生南国，"])]
    prompts: Vec<String>,
    #[command(flatten)]
    load: LoadArgs,
    /// Tokens generated for each
    #[arg(long, short, default_value_t = 64)]
    max_tokens: usize,
}

fn main() -> ExitCode {
    welm_examples::run(run)
}

fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    let model = args.load.load()?;
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        seed: Some(1),
        ignore_eos: true,
        echo: true,
        ..GenerateOptions::default()
    };
    let tokens = (args.prompts.len() * args.max_tokens) as f64;

    let started = Instant::now();
    let alone = args.prompts.iter().map(|p| model.generate(p, &options)).collect::<Result<Vec<_>, _>>()?;
    let one_by_one = tokens / started.elapsed().as_secs_f64();

    let started = Instant::now();
    let together = std::thread::scope(|scope| {
        let call = |prompt| model.generate(prompt, &options);
        let calls: Vec<_> = args.prompts.iter().map(|p| scope.spawn(move || call(p))).collect();
        calls.into_iter().map(|call| call.join().expect("generate does not panic")).collect::<Vec<_>>()
    });
    let at_once = tokens / started.elapsed().as_secs_f64();

    let mut stdout = std::io::stdout();
    for (alone, together) in alone.iter().zip(together) {
        let together = together?;
        writeln!(stdout, "{}\n", together.text())?;
        assert_eq!(alone.choices, together.choices, "company never changes a text");
    }
    tell(&format!("one by one {one_by_one:.0} tok/s, at once {at_once:.0} tok/s\n"));
    Ok(())
}
