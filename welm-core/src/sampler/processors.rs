//! What changes logits before a token is chosen from them: bias and penalties.
//!
//! To add one: a struct here, and its place in the order of [`processors`].

use std::fmt;

use crate::options::GenerateOptions;

/// One change of a row of logits, from the tokens so far alone; what has a state of its own is a constraint of the
/// sequence.
pub(crate) trait LogitsProcessor: fmt::Debug + Send {
    /// The option that asked for it; an error names it if no token is left.
    fn option(&self) -> &'static str;

    /// Changes logits, `(vocab_size)`. A token that has none is passed over.
    fn process(&self, logits: &mut [f32], context: &mut Context<'_>);
}

/// What a processor sees of its sequence. The tokens may be in any order, and come as often as they occur.
pub(crate) struct Context<'a> {
    pub(super) prompt: &'a [u32],
    /// What was generated.
    pub(super) text: &'a [u32],
    pub(super) marks: &'a mut Marks,
}

/// Tokens whose logit was changed already, a bit each; all clear between two calls. // (ceil(vocab_size / 64)) u64
pub(super) struct Marks(Vec<u64>);

impl Marks {
    pub(super) fn new(vocab_size: usize) -> Self {
        Marks(vec![0; vocab_size.div_ceil(64)])
    }

    /// Changes the logit of each of `ids` once.
    fn once<'a>(
        &mut self,
        logits: &mut [f32],
        ids: impl Iterator<Item = &'a u32> + Clone,
        f: impl Fn(f32) -> f32,
    ) {
        for &id in ids.clone() {
            let word = self.0.get_mut(id as usize / 64);
            let (Some(word), Some(logit)) = (word, logits.get_mut(id as usize)) else { continue };
            let bit = 1 << (id % 64);
            if *word & bit == 0 {
                *word |= bit;
                *logit = f(*logit);
            }
        }
        for &id in ids {
            if let Some(word) = self.0.get_mut(id as usize / 64) {
                *word = 0;
            }
        }
    }
}

/// Those that the options ask for, in the order in which they are applied.
pub(crate) fn processors(options: &GenerateOptions) -> Vec<Box<dyn LogitsProcessor>> {
    let mut processors: Vec<Box<dyn LogitsProcessor>> = Vec::new();
    if !options.logit_bias.is_empty() {
        processors.push(Box::new(LogitBias(options.logit_bias.clone())));
    }
    if options.repetition_penalty != 1.0 {
        processors.push(Box::new(RepetitionPenalty(options.repetition_penalty)));
    }
    if options.frequency_penalty != 0.0 {
        processors.push(Box::new(FrequencyPenalty(options.frequency_penalty)));
    }
    if options.presence_penalty != 0.0 {
        processors.push(Box::new(PresencePenalty(options.presence_penalty)));
    }
    processors
}

/// Added to the logits of some tokens.
#[derive(Debug)]
struct LogitBias(Vec<(u32, f32)>);

impl LogitsProcessor for LogitBias {
    fn option(&self) -> &'static str {
        "logit_bias"
    }

    fn process(&self, logits: &mut [f32], _: &mut Context<'_>) {
        for &(id, bias) in &self.0 {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }
}

/// Moves the logits of the tokens of prompt and text away from the others, once each.
#[derive(Debug)]
struct RepetitionPenalty(f32);

impl LogitsProcessor for RepetitionPenalty {
    fn option(&self) -> &'static str {
        "repetition_penalty"
    }

    fn process(&self, logits: &mut [f32], context: &mut Context<'_>) {
        let penalty = self.0;
        let divided = |logit: f32| if logit > 0.0 { logit / penalty } else { logit * penalty };
        context.marks.once(logits, context.prompt.iter().chain(context.text), divided);
    }
}

/// Subtracted for each time that a token is in the text.
#[derive(Debug)]
struct FrequencyPenalty(f32);

impl LogitsProcessor for FrequencyPenalty {
    fn option(&self) -> &'static str {
        "frequency_penalty"
    }

    fn process(&self, logits: &mut [f32], context: &mut Context<'_>) {
        for &id in context.text {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= self.0;
            }
        }
    }
}

/// Subtracted once for each token of the text.
#[derive(Debug)]
struct PresencePenalty(f32);

impl LogitsProcessor for PresencePenalty {
    fn option(&self) -> &'static str {
        "presence_penalty"
    }

    fn process(&self, logits: &mut [f32], context: &mut Context<'_>) {
        context.marks.once(logits, context.text.iter(), |logit| logit - self.0);
    }
}
