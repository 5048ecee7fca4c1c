//! Times a model on the CPU through the engine's public interface, as a program would use it.
//!
//! Prompts are random tokens, new ones each time, so that no two requests share a beginning, and the prefix cache is
//! off. End tokens are ignored. A prompt's time is that of a request for one token, with the choice of the token.
//!
//! The rate of `batch` sequences is measured while all of them run and nothing else does. That begins with the second
//! token of the sequence that began last. The rate is the mean time between two tokens of a sequence by the engine's
//! own clock, because the system may wake this program's threads late. Two other ways were rejected. The difference of
//! a long and a short run is wrong, because sequences that began early share steps with the prompts of others. And one
//! request for `n` sequences would read the keys and values of one prompt for all of them.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use welm_core::{GenerateOptions, LoadOptions, Model, Stats, Stream};

/// Random numbers, different ones in each process (splitmix64).
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Random(RandomState::new().build_hasher().finish())
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A prompt of `n` tokens.
    fn prompt(&mut self, model: &Model, n: usize) -> Vec<u32> {
        let vocab_size = model.config().vocab_size as u64;
        (0..n).map(|_| (self.next() % vocab_size) as u32).collect()
    }
}

/// Loads a model, and reads every page of it once, with a short request. Gives the seconds of loading, and those of
/// both.
///
/// # Errors
/// Whatever the model meets.
pub fn load(path: &Path, options: &LoadOptions, random: &mut Random) -> Result<(Model, f64, f64)> {
    let start = Instant::now();
    let model = Model::load(path, options)?;
    let load_seconds = start.elapsed().as_secs_f64();
    request(&model, &random.prompt(&model, 8), 2)?;
    Ok((model, load_seconds, start.elapsed().as_secs_f64()))
}

fn greedy(tokens: usize) -> GenerateOptions {
    GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(tokens) }
}

/// Seconds of a request.
fn request(model: &Model, prompt: &[u32], tokens: usize) -> Result<f64> {
    let start = Instant::now();
    let answer = model.generate(prompt, &greedy(tokens))?;
    let seconds = start.elapsed().as_secs_f64();
    let got = answer.usage.completion_tokens;
    ensure!(got == tokens, "expected {tokens} tokens, got {got}");
    Ok(seconds)
}

/// Seconds of a prompt of `n` tokens and of the first token after it.
///
/// # Errors
/// Whatever the model meets.
pub fn prefill(model: &Model, n: usize, random: &mut Random) -> Result<f64> {
    request(model, &random.prompt(model, n), 1)
}

/// Steps of all sequences together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    /// Mean seconds of a step, by the engine's clock.
    pub seconds: f64,
    /// The same by the clock of this program, which waits for the tokens.
    pub heard_seconds: f64,
    /// Tokens that were timed, of all sequences.
    pub tokens: u64,
    /// Mean number of positions before a sequence's token, over all sequences and steps.
    pub mean_context: f64,
}

/// How often a measurement is tried. If steps are short, this program's thread may be woken too late in spite of the
/// slack.
const TRIES: usize = 5;

/// A measurement of a model's steps.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each one's prompt.
    pub context: usize,
    /// Steps that are timed, about.
    pub tokens: usize,
    /// Prompt tokens of a step.
    pub chunk_tokens: usize,
    /// Extra tokens, for steps that go on until this program hears of the last timed one.
    pub slack: usize,
    /// Most tokens of a sequence.
    pub max_context: usize,
}

impl Request {
    /// Tokens to ask for in each sequence, so that it still runs at the end of the timed steps: sequences that have
    /// begun go on while the prompts of others are computed, one chunk in each step.
    pub fn tokens_asked(&self) -> usize {
        let waiting = ((self.batch - 1) * self.context).div_ceil(self.chunk_tokens);
        let needed = self.tokens + waiting + self.batch;
        needed.max((needed + self.slack).min(self.max_context.saturating_sub(self.context)))
    }
}

/// The time of the steps.
///
/// # Errors
/// Whatever the model meets; sequences that ended too early, time after time.
pub fn decode(model: &Model, request: Request, random: &mut Random) -> Result<Steps> {
    let options = greedy(request.tokens_asked());
    for _ in 0..TRIES {
        let prompts: Vec<Vec<u32>> =
            (0..request.batch).map(|_| random.prompt(model, request.context)).collect();
        let streams =
            prompts.iter().map(|p| model.stream(p, &options)).collect::<welm_core::Result<Vec<_>>>()?;
        if let Some(steps) = listen(model, streams, request)? {
            return Ok(steps);
        }
    }
    bail!("expected sequences to run together until that was heard of, {request:?}: the machine is too busy")
}

/// Waits for the second token of the last sequence, then until the engine has counted the tokens of the timed steps,
/// then cancels all. Nothing if a sequence ended before that.
fn listen(model: &Model, mut streams: Vec<Stream>, request: Request) -> Result<Option<Steps>> {
    let Request { batch, context, tokens, .. } = request;
    // Prompts are served in the order in which they came.
    let mut last = streams.pop().context("expected at least one sequence")?;
    let mut generated = 0;
    while generated < 2 {
        generated += last.next().context("expected two tokens")??.tokens.len();
    }
    let (before, begin) = (model.stats(), Instant::now());
    let timed = |stats: &Stats| stats.time_between_tokens.count() - before.time_between_tokens.count();
    let mut after = before.clone();
    // The engine's counter decides when it is enough, not the pieces that come: some pieces had come before.
    while timed(&after) < (batch * tokens) as u64 {
        let Some(piece) = last.next() else { return Ok(None) };
        generated += piece?.tokens.len();
        after = model.stats();
    }
    let heard = begin.elapsed().as_secs_f64();
    let all_run = before.running == batch && after.running == batch;

    streams.push(last);
    streams.iter().for_each(Stream::cancel);
    for piece in streams.into_iter().flatten() {
        generated += piece?.tokens.len();
    }
    ensure!(after.preemptions == before.preemptions, "expected no preemption: there is room for all");
    let timed = timed(&after);
    Ok(all_run.then(|| Steps {
        seconds: (after.time_between_tokens.sum_s - before.time_between_tokens.sum_s) / timed as f64,
        heard_seconds: heard * batch as f64 / timed as f64,
        tokens: timed,
        mean_context: context as f64 + (generated as f64 - timed as f64 / 2.0) / batch as f64,
    }))
}

/// The peak resident memory of this process in bytes, mapped files included; on Linux only.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_sequences_last_until_all_have_begun() {
        let asked = |batch, context, max_context| {
            Request { batch, context, tokens: 32, chunk_tokens: 256, slack: 64, max_context }.tokens_asked()
        };
        assert_eq!(asked(1, 1536, 8192), 32 + 1 + 64);
        // Seven prompts, 4900 tokens, are 20 chunks.
        assert_eq!(asked(8, 700, 8192), 32 + 20 + 8 + 64);
        // Limited by the room in the model, but never fewer than are needed.
        assert_eq!(asked(8, 700, 800), 100);
        assert_eq!(asked(8, 700, 710), 32 + 20 + 8);
    }
}
