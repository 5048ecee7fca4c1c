//! Continues a prompt: text on stdout as it comes, speed on stderr.
//!
//! ```sh
//! cargo run --release --example generate -- 床前明月光，
//! cargo run --release --example generate -- --model smollm2.gguf --greedy --max-tokens 64 "The capital of France"
//! ```

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use welm_core::GenerateOptions;
use welm_examples::{LoadArgs, tell};

/// Continues a prompt with a language model.
#[derive(Debug, Parser)]
struct Args {
    /// Text to continue
    prompt: String,
    #[command(flatten)]
    load: LoadArgs,
    /// Most tokens generated
    #[arg(long, short, default_value_t = 64)]
    max_tokens: usize,
    /// Divides the logits; 0 is greedy
    #[arg(long, default_value_t = 0.85)]
    temperature: f32,
    /// Keeps the likeliest tokens up to this probability; 1 is off
    #[arg(long, default_value_t = 0.95)]
    top_p: f32,
    /// Keeps this many of the likeliest tokens; 0 is off
    #[arg(long, default_value_t = 50)]
    top_k: usize,
    /// Drops tokens below this share of the likeliest; 0 is off
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Above 1, makes repetition less likely
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Subtracted for each time that a token was generated
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Subtracted once if a token was generated before
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Always the likeliest token
    #[arg(long)]
    greedy: bool,
    /// Sequences
    #[arg(short, default_value_t = 1)]
    n: usize,
    /// Text that ends a sequence; may be given several times
    #[arg(long)]
    stop: Vec<String>,
    /// Seed of the random numbers [default: drawn, and reported]
    #[arg(long)]
    seed: Option<u64>,
    /// Ends after this many seconds
    #[arg(long)]
    deadline: Option<f64>,
    /// Leaves the prompt out
    #[arg(long)]
    no_echo: bool,
    /// Special tokens in the prompt are special
    #[arg(long)]
    parse_special: bool,
}

fn main() -> ExitCode {
    welm_examples::run(run)
}

fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    let model = args.load.load()?;
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        temperature: if args.greedy { 0.0 } else { args.temperature },
        top_p: args.top_p,
        top_k: args.top_k,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        frequency_penalty: args.frequency_penalty,
        presence_penalty: args.presence_penalty,
        n: args.n,
        echo: !args.no_echo,
        stop: args.stop,
        seed: args.seed,
        deadline: args.deadline.map(Duration::try_from_secs_f64).transpose()?,
        parse_special: args.parse_special,
        ..GenerateOptions::default()
    };
    let mut stdout = std::io::stdout();
    let mut stream = model.stream(args.prompt.as_str(), &options)?;
    let mut completion_tokens = 0;
    let mut texts = vec![String::new(); args.n];
    for piece in &mut stream {
        let piece = piece?;
        completion_tokens += piece.finish.map_or(0, |f| f.completion_tokens);
        if args.n == 1 {
            write!(stdout, "{}", piece.text)?;
            stdout.flush()?;
        } else {
            texts[piece.index].push_str(&piece.text);
        }
    }
    if args.n == 1 {
        writeln!(stdout)?;
    } else {
        for (i, text) in texts.iter().enumerate() {
            writeln!(stdout, "[{i}] {text}")?;
        }
    }
    // The engine's own times: this thread may get several pieces at once.
    let stats = model.stats();
    let (first, between) = (stats.time_to_first_token, stats.time_between_tokens);
    let (dim, off) = if std::io::stderr().is_terminal() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    tell(&format!(
        "{dim}{} prompt tokens in {:.0} ms; {completion_tokens} tokens, {:.1} tok/s; seed {}; {}{off}\n",
        stream.prompt_tokens(),
        first.sum_s / first.count().max(1) as f64 * 1e3,
        (args.n as u64 * between.count()) as f64 / between.sum_s.max(1e-9),
        stream.seed(),
        model.backend(),
    ));
    Ok(())
}
