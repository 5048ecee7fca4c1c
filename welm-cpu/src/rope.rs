//! Rotary position embedding (arXiv 2104.09864) of one head, in place.
//!
//! ```text
//! (a, b) -> (a cos t - b sin t, b cos t + a sin t),   t = position * inv_freq[i]
//! half-split:  a = x[i],  b = x[i + n]      interleaved:  a = x[2 i],  b = x[2 i + 1]       i < n
//! ```
//!
//! with `n = rotary_dim / 2`; values after `rotary_dim` stay as they are.

/// Which two values of a head make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + n`.
    HalfSplit,
    /// `2 i` and `2 i + 1`.
    Interleaved,
}

/// Cosines and sines of a step's rows.
#[derive(Debug, Clone, Copy)]
pub struct Angles<'a> {
    /// `(rows, n)`
    pub cos: &'a [f32],
    /// `(rows, n)`
    pub sin: &'a [f32],
    /// Pairs of a head.
    pub n: usize,
    /// Which values they are.
    pub pairing: Pairing,
}

impl Angles<'_> {
    /// Turns one head, `(head_dim)`, of row `row` in place. Inlined, so that it is compiled with its caller's
    /// instructions.
    #[inline(always)]
    pub fn turn(&self, row: usize, head: &mut [f32]) {
        let n = self.n;
        let (cos, sin) = (&self.cos[row * n..][..n], &self.sin[row * n..][..n]);
        let turned = |a: f32, b: f32, i: usize| (a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]);
        match self.pairing {
            Pairing::HalfSplit => {
                let (a, rest) = head.split_at_mut(n);
                let b = &mut rest[..n];
                for i in 0..n {
                    (a[i], b[i]) = turned(a[i], b[i], i);
                }
            }
            Pairing::Interleaved => {
                for (i, pair) in head[..2 * n].chunks_exact_mut(2).enumerate() {
                    (pair[0], pair[1]) = turned(pair[0], pair[1], i);
                }
            }
        }
    }
}
