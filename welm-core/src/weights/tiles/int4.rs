//! Four-bit weights of GGUF files (Q4_0, Q4_1) in tiles, without loss.
//!
//! ```text
//! w[o][k] is q[o][k] * scale[o][k / 32] + min[o][k / 32],   q in 0..=15;   Q4_0: min = -8 * scale
//! ```
//!
//! Nothing is rounded. 32 weights take 20 bytes. As int8 they would take 34, and those of Q4_1 would be rounded.

use half::f16;
use welm_cpu::isa::{GROUP, LANES};
use welm_cpu::tiles::{INT4_TILE, tile_counts};

use super::int4_place;
use crate::weights::slab::Slab;

/// A four-bit matrix `(rows, cols)` in tiles.
pub(crate) struct Int4Tiles {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) weight: Slab<u8>, // (rows / 16, cols / 32, 4, 16, 4) u8
    pub(crate) scale: Slab<f16>, // (rows / 16, cols / 32, 16) f16
    pub(crate) min: Slab<f16>,   // (rows / 16, cols / 32, 16) f16
}

impl Int4Tiles {
    /// Bytes of such a matrix.
    pub(crate) fn bytes_of(rows: usize, cols: usize) -> u64 {
        let (down, across) = tile_counts(rows, cols);
        (down as u64) * (across as u64) * (INT4_TILE + 4 * LANES) as u64
    }

    /// Writes row `row` as f32 into `out`, `(cols)`: an embedding look-up.
    pub(crate) fn row_f32(&self, row: usize, out: &mut [f32]) {
        let (_, across) = tile_counts(self.rows, self.cols);
        let (tile_row, o) = (row / LANES, row % LANES);
        let (weight, scales, mins) = (&self.weight[..], &self.scale[..], &self.min[..]);
        for (g, group) in out.chunks_mut(GROUP).enumerate() {
            let tile = tile_row * across + g;
            let (scale, min) = (scales[tile * LANES + o].to_f32(), mins[tile * LANES + o].to_f32());
            for (k, x) in group.iter_mut().enumerate() {
                let (at, high) = int4_place(o, k);
                let byte = weight[tile * INT4_TILE + at];
                *x = scale * f32::from(if high { byte >> 4 } else { byte & 15 }) + min;
            }
        }
    }
}
