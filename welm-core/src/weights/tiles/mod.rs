//! Tiles of 16 rows and 32 columns: the layout in which the kernels of [`crate::isa`] read quantised weights.
//!
//! ```text
//! int8:      weight (rows / 16, cols / 32, 8, 16, 4) u8: byte (j, o, i) is 128 + q of row o, column 4 j + i
//! four bits: weight (rows / 16, cols / 32, 4, 16, 4) u8: byte (j, o, i) has q of column 8 j + i low, of 8 j + 4 + i high
//! scale, min (rows / 16, groups, 16) f16
//! ```
//!
//! Sixteen rows are interleaved four values at a time, because that is what one `vpdpbusd` multiplies: its sixteen lanes
//! are sixteen outputs, no horizontal sum is ever needed, and a scale vector is one load. The offset of 128 makes int8
//! weights the unsigned operand; its effect, 128 times the sum of a group's activations, is known before the loop and
//! costs nothing. Of four bits, half a register is the first operand of one `vpdpbusd`, the other half that of the next.
//! Rows and columns are padded with zeros to whole tiles.
//!
//! [`int8`] and [`int4`] are matrices in this layout; [`pack`] makes them of what is stored.

pub(crate) mod int4;
pub(crate) mod int8;
mod pack;

use crate::isa::{GROUP, LANES};

/// Bytes of an int8 tile.
pub(crate) const INT8_TILE: usize = LANES * GROUP;
/// Bytes of a tile of four bits.
pub(crate) const INT4_TILE: usize = LANES * GROUP / 2;

/// Tiles down and across of a matrix.
pub(crate) fn tile_counts(rows: usize, cols: usize) -> (usize, usize) {
    (rows.div_ceil(LANES), cols.div_ceil(GROUP))
}

/// The byte of an int8 tile that has value `k` of row `o`.
fn int8_place(o: usize, k: usize) -> usize {
    ((k / 4) * LANES + o) * 4 + k % 4
}

/// The byte of a tile of four bits that has value `k` of row `o`, and whether it is the high half.
fn int4_place(o: usize, k: usize) -> (usize, bool) {
    ((k / 8 * LANES + o) * 4 + k % 4, k % 8 >= 4)
}
