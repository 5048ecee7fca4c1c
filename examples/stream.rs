//! Streams that are given up half-way, as in a service whose client hangs up.
//!
//! ```sh
//! cargo run --release --example stream
//! ```

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use welm_core::{CancelToken, GenerateOptions};
use welm_examples::LoadArgs;

/// Two streams; the first is dropped, the second cancelled from another thread.
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    load: LoadArgs,
}

fn main() -> ExitCode {
    welm_examples::run(run)
}

fn run() -> anyhow::Result<()> {
    let model = Args::parse().load.load()?;
    let options = GenerateOptions { max_tokens: 200, ignore_eos: true, ..GenerateOptions::default() };

    let mut stdout = std::io::stdout();
    write!(stdout, "dropped after five pieces: ")?;
    for piece in model.stream("春眠不觉晓，", &options)?.take(5) {
        write!(stdout, "{}", piece?.text)?;
    }
    writeln!(stdout)?;

    let cancel = CancelToken::new();
    let from_elsewhere = cancel.clone();
    let options = GenerateOptions { cancel: Some(cancel), ..options };
    write!(stdout, "cancelled by another thread: ")?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            from_elsewhere.cancel();
        });
        for piece in model.stream("白日依山尽，", &options)? {
            let piece = piece?;
            write!(stdout, "{}", piece.text)?;
            if let Some(finish) = piece.finish {
                let (reason, tokens) = (finish.reason.as_str(), finish.completion_tokens);
                writeln!(stdout, "\n({reason} after {tokens} tokens)")?;
            }
        }
        anyhow::Ok(())
    })?;
    writeln!(stdout, "blocks in use: {}", model.stats().blocks_used)?;
    Ok(())
}
