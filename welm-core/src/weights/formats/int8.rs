//! int8 with a scale for each group of columns: the format to which float matrices are quantised.
//!
//! ```text
//! plain:   w[o][k]           is q[o][k] * scale[o][k / 32]
//! rotated: (w[o] rotated)[k] is q[o][k] * scale[o][k / 128]
//! q in -127..=127,   scale = max |value| of the group / 127, as f16
//! ```
//!
//! Rotated means: each 64 columns are multiplied by the orthonormal Walsh-Hadamard matrix. It spreads a large value
//! over 64 columns, and is its own inverse. Activations are rotated by the same matrix, so products do not change:
//! `(H w) . (H x) = w . x`.
//!
//! Matrices made from floats are rotated. Rotated groups of 128 are more accurate than plain groups of 32: the mean
//! divergence is 0.0021 instead of 0.0033 (`benches/record/int8-modes.md`; arXiv 2404.00456 rotates whole models). A
//! product needs a quarter of the scales, and a weight takes 8.1 bits instead of 8.5. Plain groups of 32 hold Q8_0 and
//! Q4_0 without loss. They also hold rows whose length is no multiple of 64.

use half::f16;

use crate::isa::{ROTATED, Scalar, Simd};

/// Which columns share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grouping {
    /// 32 columns.
    Plain,
    /// 128 columns, which were rotated 64 at a time; the last group may have 64.
    Rotated,
}

impl Grouping {
    /// The grouping of a matrix that is quantised from floats, with `cols` columns.
    pub(crate) fn of_cols(cols: usize) -> Grouping {
        if cols.is_multiple_of(ROTATED) { Grouping::Rotated } else { Grouping::Plain }
    }

    /// Tiles of 32 columns that share a scale.
    pub(crate) fn tiles(self) -> usize {
        match self {
            Grouping::Plain => 1,
            Grouping::Rotated => 4,
        }
    }

    /// The number of groups of `tiles` tiles.
    pub(crate) fn groups(self, tiles: usize) -> usize {
        tiles.div_ceil(self.tiles())
    }
}

/// Rotates `values`, 64 at a time.
pub(crate) fn rotate(values: &mut [f32]) {
    for block in values.as_chunks_mut().0 {
        // SAFETY: the scalar set needs no instructions.
        unsafe { Scalar::rotate(&block.clone(), block) };
    }
}

/// Quantises a group: writes its values to `q` and returns its scale; `None` if a value is not finite or the scale
/// overflows f16.
pub(crate) fn quantize_group(values: &[f32], q: &mut [i8]) -> Option<f16> {
    let largest =
        values.iter().fold(0.0f32, |m, x| if x.is_finite() { m.max(x.abs()) } else { f32::INFINITY });
    let mut scale = f16::from_f32(largest / 127.0);
    if scale.to_f32() * 127.5 < largest {
        scale = f16::from_bits(scale.to_bits() + 1); // the next larger f16, so that nothing is clipped
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::GROUP;

    #[test]
    fn a_group_keeps_its_largest_value_and_rounds_the_rest() {
        let mut values = [0.0f32; GROUP];
        values[0] = 127.0;
        values[1] = -63.4;
        values[2] = 0.5; // tie, to even
        let mut q = [9; GROUP];
        let scale = quantize_group(&values, &mut q).unwrap();
        assert_eq!((scale.to_f32(), q[0], q[1], q[2], q[3]), (1.0, 127, -63, 0, 0));
        assert_eq!(quantize_group(&[0.0; GROUP], &mut q), Some(f16::ZERO));
        assert_eq!(q, [0; GROUP]);
        for bad in [f32::NAN, f32::INFINITY, 1e9] {
            assert!(quantize_group(&[bad; GROUP], &mut q).is_none(), "{bad}");
        }
        // Far below f16's normal range the scale is coarse, but no value is clipped by more than half a step.
        for tiny in [1e-4, 3e-6, 2e-5] {
            let scale = quantize_group(&[tiny; GROUP], &mut q).unwrap().to_f32();
            assert!((scale * f32::from(q[0]) - tiny).abs() <= 0.5 * scale, "{tiny}");
        }
    }
}
