//! The interface for constraints on the text of a sequence: grammars, JSON schemas, lists of allowed answers.

use std::fmt;

/// The state of a constraint after the tokens of a sequence. It says which tokens may come next.
///
/// Each sequence has its own state, which a preempted sequence keeps. Sequences of the same prompt begin with a copy,
/// made by `fork`.
pub(crate) trait Constraint: fmt::Debug + Send {
    /// Sets the logits of tokens that may not come next to -inf. `logits` is `(vocab_size)`, after biases and
    /// penalties. If an end token is not masked, the text may end here.
    fn mask(&mut self, logits: &mut [f32]);

    /// Moves the state on by a token that was added to the sequence. Not called for a token that ends the sequence.
    fn accept(&mut self, token: u32);

    /// A copy of the state, for another sequence that begins here.
    fn fork(&self) -> Box<dyn Constraint>;

    /// Takes back the last `n` tokens that were accepted.
    fn roll_back(&mut self, n: usize);
}
