//! What one sequence may say: the seam for grammars, schemas and lists of answers.

use std::fmt;

/// A state that moves with a sequence, and the tokens that may follow in it.
///
/// Each sequence has its own. It outlives preemption, and siblings that begin after the same prompt fork it.
pub(crate) trait Constraint: fmt::Debug + Send {
    /// Makes the logits of tokens that may not come next -inf: `(vocab_size)`, as bias and penalties have left them. An
    /// end token that is left may end the text here.
    fn mask(&mut self, logits: &mut [f32]);

    /// This token was added to the sequence; a token that ends it is none of it.
    fn accept(&mut self, token: u32);

    /// The state of another sequence that begins here.
    fn fork(&self) -> Box<dyn Constraint>;

    /// The last `n` tokens that were accepted are taken back.
    fn roll_back(&mut self, n: usize);
}
