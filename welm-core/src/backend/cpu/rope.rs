//! Rotary position embedding (arXiv 2104.09864) of one head, in place.
//!
//! ```text
//! (a, b) -> (a cos t - b sin t, b cos t + a sin t),   t = position * inv_freq[i]
//! half-split:  a = x[i],  b = x[i + n]      interleaved:  a = x[2 i],  b = x[2 i + 1]       i < n
//! ```
//!
//! with `n = rotary_dim / 2`; values after `rotary_dim` stay as they are. An attention factor (YaRN, LongRoPE) is
//! multiplied into the cosines and sines, so it scales only the values that are turned. The angles of a step's rows are
//! computed once, before the first layer. A table for the whole context would be as large as a layer.

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
        Self::new(rope.inv_freq(limits.max_context), rope.attention_factor, limits.max_rows)
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
                let (sin, cos) = (pos as f32 * f).sin_cos();
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

    /// Turns one head, `(head_dim)`, of row `row` in place. Inlined, so that it is compiled with its caller's
    /// instructions.
    #[inline(always)]
    pub(crate) fn turn(&self, row: usize, head: &mut [f32], pairing: RopePairing) {
        let n = self.inv_freq.len();
        let (cos, sin) = (&self.cos[row * n..][..n], &self.sin[row * n..][..n]);
        let turned = |a: f32, b: f32, i: usize| (a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]);
        match pairing {
            RopePairing::HalfSplit => {
                let (a, rest) = head.split_at_mut(n);
                let b = &mut rest[..n];
                for i in 0..n {
                    (a[i], b[i]) = turned(a[i], b[i], i);
                }
            }
            RopePairing::Interleaved => {
                for (i, pair) in head[..2 * n].chunks_exact_mut(2).enumerate() {
                    (pair[0], pair[1]) = turned(pair[0], pair[1], i);
                }
            }
        }
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
        angles.turn(0, &mut head, RopePairing::HalfSplit);
        assert_eq!(head, start, "position 0 turns nothing");
        angles.turn(1, &mut head, RopePairing::HalfSplit);
        let turned = |a: f32, b: f32, t: f32| (a * t.cos() - b * t.sin(), b * t.cos() + a * t.sin());
        assert_eq!((head[0], head[2]), turned(1.0, 3.0, 3.0));
        assert_eq!((head[1], head[3]), turned(2.0, 4.0, 1.5));
        assert_eq!(head[4], 5.0);
        let mut head = start;
        angles.turn(1, &mut head, RopePairing::Interleaved);
        assert_eq!((head[0], head[1]), turned(1.0, 2.0, 3.0));
        assert_eq!((head[2], head[3]), turned(3.0, 4.0, 1.5));
        // The factor scales the values that are turned, and no others.
        angles.factor = 2.0;
        angles.fill(&[0, 3]);
        let mut head = start;
        angles.turn(0, &mut head, RopePairing::Interleaved);
        assert_eq!(head, [2.0, 4.0, 6.0, 8.0, 5.0]);
    }
}
