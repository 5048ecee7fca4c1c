//! For `benches/host`, and no part of the interface: what chooses tokens and makes text, by plain values.

use crate::engine::text::TextStream;
use crate::options::GenerateOptions;
use crate::sampler::{Logits, LogitsProcessor, Sampler, SamplerParams, processors};

/// Chooses tokens for one sequence.
pub struct Sampling {
    sampler: Sampler,
    params: SamplerParams,
    processors: Vec<Box<dyn LogitsProcessor>>,
}

impl Sampling {
    /// For rows of `vocab_size` logits.
    pub fn new(vocab_size: usize, options: &GenerateOptions) -> Self {
        Sampling {
            sampler: Sampler::new(vocab_size),
            params: SamplerParams::from(options),
            processors: processors(options),
        }
    }

    /// The token that `u` draws from logits, `(vocab_size)`, which are changed; `text` is what was generated so far.
    pub fn draw(&mut self, logits: &mut [f32], text: &[u32], u: f64) -> Option<u32> {
        let mut logits = Logits::All(logits);
        self.sampler.process(&mut logits, &self.processors, &[], text);
        self.sampler.sample(&mut logits, &self.params, u)
    }
}

/// The text of one sequence.
pub struct Text(TextStream);

impl Text {
    /// Ended by any of these.
    pub fn new(stop: &[String]) -> Self {
        Text(TextStream::new(stop.into()))
    }

    /// Appends a token's bytes, and gives what may be shown.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.0.push(bytes);
        self.0.take()
    }
}
