//! int8 with a scale for each group of columns: what matrices of floats are quantised to.
//!
//! ```text
//! plain:   w[o][k]           is q[o][k] * scale[o][k / 32]
//! rotated: (w[o] rotated)[k] is q[o][k] * scale[o][k / 128]
//! q in -127..=127,   scale = max |value| of the group / 127, as f16
//! ```
//!
//! Rotated: each 64 columns are multiplied by the Walsh-Hadamard matrix, orthonormal, which spreads a large value over
//! 64 and is its own inverse. Activations are rotated alike, so that products stay what they are: `(H w) . (H x)` is
//! `w . x`. What is made from floats is rotated, because then groups of 128 are closer to the truth than groups of 32
//! without (mean divergence 0.0021 and 0.0033, `benches/record/int8-modes.md`; arXiv 2404.00456 rotates whole models),
//! a product needs a quarter of the scales, and a weight takes 8.1 bits instead of 8.5. Plain groups of 32 hold Q8_0
//! and Q4_0 without loss, and rows whose length is no multiple of 64.

use half::f16;

use crate::isa::{ROTATED, Scalar, Simd};

/// Which columns share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// 32 of them.
    Plain,
    /// 128, after each 64 were rotated; the last group may have 64.
    Rotated,
}

impl Grouping {
    /// That of a matrix which is made from floats.
    pub fn of_cols(cols: usize) -> Grouping {
        if cols.is_multiple_of(ROTATED) { Grouping::Rotated } else { Grouping::Plain }
    }

    /// Tiles of 32 columns that share a scale.
    pub fn tiles(self) -> usize {
        match self {
            Grouping::Plain => 1,
            Grouping::Rotated => 4,
        }
    }

    /// Groups of so many tiles.
    pub fn groups(self, tiles: usize) -> usize {
        tiles.div_ceil(self.tiles())
    }
}

/// Rotates each 64 of `values`.
pub fn rotate(values: &mut [f32]) {
    for block in values.as_chunks_mut().0 {
        // SAFETY: the scalar set needs no instructions.
        unsafe { Scalar::rotate(&block.clone(), block) };
    }
}

/// A group's scale, and its values in int8; none if a value is not finite or the scale overflows.
pub fn quantize_group(values: &[f32], q: &mut [i8]) -> Option<f16> {
    let largest =
        values.iter().fold(0.0f32, |m, x| if x.is_finite() { m.max(x.abs()) } else { f32::INFINITY });
    let mut scale = f16::from_f32(largest / 127.0);
    if scale.to_f32() * 127.5 < largest {
        scale = f16::from_bits(scale.to_bits() + 1); // the next larger, so that nothing is clipped
    }
    if !scale.is_finite() {
        return None;
    }
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    for (q, x) in q.iter_mut().zip(values) {
        *q = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
    Some(scale)
}
