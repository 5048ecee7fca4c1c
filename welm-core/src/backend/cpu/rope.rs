//! Angles of rotary position embeddings; [`welm_cpu::rope`] turns heads by them.
//!
//! An attention factor (YaRN, LongRoPE) is in the cosines and sines, so that it scales what is turned and nothing else.
//! The angles of a step's rows are computed once, before the first layer: a table for the whole context would be as large
//! as a layer.

use welm_cpu::rope::{self, Pairing};

use crate::backend::Limits;
use crate::config::{Rope, RopePairing};

/// Cosines and sines of a step's rows.
pub(crate) struct Angles {
    inv_freq: Vec<f32>, // (n)
    cos: Vec<f32>,      // (max_rows, n)
    sin: Vec<f32>,      // (max_rows, n)
    /// The attention factor: cosines and sines are multiplied by it.
    factor: f32,
}

impl Angles {
    /// The angles of `rope`, with room for the rows of a step.
    pub(crate) fn of(rope: &Rope, limits: Limits) -> Self {
        Self::new(rope.inv_freq(limits.rope_context), rope.attention_factor, limits.max_rows)
    }

    /// Angles for `inv_freq`, `(n)`, with room for `max_rows` rows.
    pub(crate) fn new(inv_freq: Vec<f32>, factor: f32, max_rows: usize) -> Self {
        let len = inv_freq.len() * max_rows;
        Angles { inv_freq, cos: vec![0.0; len], sin: vec![0.0; len], factor }
    }

    /// Computes cosines and sines of rows at these positions.
    pub(crate) fn fill(&mut self, positions: &[u32]) {
        let n = self.inv_freq.len();
        for (row, &pos) in positions.iter().enumerate() {
            for (i, f) in self.inv_freq.iter().enumerate() {
                // Not the system's: the bits of its last digit are not the same everywhere.
                let (sin, cos) = libm::sincosf(pos as f32 * f);
                (self.sin[row * n + i], self.cos[row * n + i]) = (sin * self.factor, cos * self.factor);
            }
        }
    }

    /// Cosines and sines of the first `n` rows, each `(n, pairs)`.
    #[cfg(feature = "kernels")]
    pub(crate) fn of_rows(&self, n: usize) -> (&[f32], &[f32]) {
        let len = n * self.inv_freq.len();
        (&self.cos[..len], &self.sin[..len])
    }

    /// The number of angles of a row.
    #[cfg(feature = "kernels")]
    pub(crate) fn pairs(&self) -> usize {
        self.inv_freq.len()
    }

    /// Those of a step's rows, for a kernel.
    pub(crate) fn of_step(&self, pairing: RopePairing) -> rope::Angles<'_> {
        let pairing = match pairing {
            RopePairing::HalfSplit => Pairing::HalfSplit,
            RopePairing::Interleaved => Pairing::Interleaved,
        };
        rope::Angles { cos: &self.cos, sin: &self.sin, n: self.inv_freq.len(), pairing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_turn_by_the_position_and_the_rest_stays() {
        let mut angles = Angles::new(vec![1.0, 0.5], 1.0, 2);
        angles.fill(&[0, 3]);
        let start = [1.0, 2.0, 3.0, 4.0, 5.0];
        let mut head = start;
        angles.of_step(RopePairing::HalfSplit).turn(0, &mut head);
        assert_eq!(head, start, "position 0 turns nothing");
        angles.of_step(RopePairing::HalfSplit).turn(1, &mut head);
        let turned = |a: f32, b: f32, t: f32| {
            let (sin, cos) = libm::sincosf(t);
            (a * cos - b * sin, b * cos + a * sin)
        };
        assert_eq!((head[0], head[2]), turned(1.0, 3.0, 3.0));
        assert_eq!((head[1], head[3]), turned(2.0, 4.0, 1.5));
        assert_eq!(head[4], 5.0);
        let mut head = start;
        angles.of_step(RopePairing::Interleaved).turn(1, &mut head);
        assert_eq!((head[0], head[1]), turned(1.0, 2.0, 3.0));
        assert_eq!((head[2], head[3]), turned(3.0, 4.0, 1.5));
        // The factor scales the values that are turned, and no others.
        angles.factor = 2.0;
        angles.fill(&[0, 3]);
        let mut head = start;
        angles.of_step(RopePairing::Interleaved).turn(0, &mut head);
        assert_eq!(head, [2.0, 4.0, 6.0, 8.0, 5.0]);
    }
}
