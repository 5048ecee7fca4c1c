//! int8 weights in tiles, and how to read rows back from them.

use half::f16;
use welm_cpu::int8::{Grouping, rotate};
use welm_cpu::isa::{GROUP, LANES};
use welm_cpu::tiles::{INT8_TILE, tile_counts};

use super::int8_place;
use crate::error::{Error, Result};
use crate::weights::slab::Slab;

/// An int8 matrix `(rows, cols)` in tiles.
#[derive(Clone)]
pub(crate) struct Int8Tiles {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) grouping: Grouping,
    pub(crate) weight: Slab<u8>, // (rows / 16, cols / 32, 8, 16, 4) u8
    pub(crate) scale: Slab<f16>, // (rows / 16, groups, 16) f16
}

impl Int8Tiles {
    /// Bytes of such a matrix.
    pub(crate) fn bytes_of(rows: usize, cols: usize, grouping: Grouping) -> u64 {
        let (down, across) = tile_counts(rows, cols);
        (down as u64) * (across * INT8_TILE + grouping.groups(across) * 2 * LANES) as u64
    }

    /// Checks that all scales are finite.
    ///
    /// # Errors
    /// [`Error::Tensor`] with row and group of the first that is not.
    pub(crate) fn check_scales(&self, name: &str) -> Result<()> {
        let groups = self.grouping.groups(tile_counts(self.rows, self.cols).1);
        match self.scale.iter().position(|scale| !scale.is_finite()) {
            Some(i) => {
                let (row, group) = (i / (groups * LANES) * LANES + i % LANES, i / LANES % groups);
                let reason = format!("the scale of row {row}, group {group} is not finite");
                Err(Error::tensor(format!("{name}.scale"), reason))
            }
            None => Ok(()),
        }
    }

    /// Bytes of weights and scales.
    pub(crate) fn bytes(&self) -> u64 {
        Self::bytes_of(self.rows, self.cols, self.grouping)
    }

    /// A copy that uses nothing of a mapped file.
    pub(crate) fn copied(&self) -> Result<Self> {
        Ok(Int8Tiles { weight: self.weight.copied()?, scale: self.scale.copied()?, ..*self })
    }

    /// Writes the int8 values of row `row` to `q`, `(cols)`, and its scales to `scale`, `(cols / 32)` rounded up.
    #[cfg(feature = "kernels")]
    pub(crate) fn row_int8(&self, row: usize, q: &mut [i8], scale: &mut [f16]) {
        let (_, across) = tile_counts(self.rows, self.cols);
        let (tile_row, o) = (row / LANES, row % LANES);
        assert_eq!(self.grouping, Grouping::Plain, "a rotated row has no int8 values of its own");
        for ((g, group), scale) in q.chunks_mut(GROUP).enumerate().zip(scale) {
            let tile = tile_row * across + g;
            *scale = self.scale[tile * LANES + o];
            for (k, q) in group.iter_mut().enumerate() {
                *q = (i16::from(self.weight[tile * INT8_TILE + int8_place(o, k)]) - 128) as i8;
            }
        }
    }

    /// Writes row `row` as f32 into `out`, `(cols)`: an embedding look-up.
    pub(crate) fn row_f32(&self, row: usize, out: &mut [f32]) {
        let (_, across) = tile_counts(self.rows, self.cols);
        let groups = self.grouping.groups(across);
        let (tile_row, o) = (row / LANES, row % LANES);
        let (weight, scales) = (&self.weight[..], &self.scale[..]);
        for (t, values) in out.chunks_mut(GROUP).enumerate() {
            let tile = tile_row * across + t;
            let group = tile_row * groups + t / self.grouping.tiles();
            let scale = scales[group * LANES + o].to_f32();
            for (k, x) in values.iter_mut().enumerate() {
                let q = weight[tile * INT8_TILE + int8_place(o, k)];
                *x = scale * f32::from(i16::from(q) - 128);
            }
        }
        if self.grouping == Grouping::Rotated {
            rotate(out);
        }
    }
}
