//! Ranks continuations by their log-likelihood. Multiple-choice tasks are answered in this way.
//!
//! ```sh
//! cargo run --release --example score -- --prompt 床前明月光， 疑是地上霜。 地上霜疑是。 今天买电脑。
//! ```

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use welm_core::Score;
use welm_examples::LoadArgs;

/// Ranks continuations of a prompt, the likeliest first.
#[derive(Debug, Parser)]
struct Args {
    /// The text before
    #[arg(long, default_value = "床前明月光，")]
    prompt: String,
    /// The continuations
    #[arg(default_values = ["疑是地上霜。", "地上霜疑是。", "今天买电脑。"])]
    continuations: Vec<String>,
    #[command(flatten)]
    load: LoadArgs,
}

fn main() -> ExitCode {
    welm_examples::run(run)
}

fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    let model = args.load.load()?;
    let scores = model.score(&args.prompt, &args.continuations)?;
    let mut ranked: Vec<(&String, &Score)> = args.continuations.iter().zip(&scores).collect();
    ranked.sort_by(|a, b| b.1.logprob.total_cmp(&a.1.logprob));
    let mut stdout = std::io::stdout();
    for (text, score) in ranked {
        let characters = text.chars().count().max(1) as f64;
        writeln!(stdout, "{:9.3} ({:7.3} a character)  {text}", score.logprob, score.logprob / characters)?;
    }
    Ok(())
}
