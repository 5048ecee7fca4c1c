//! Tiles of 16 rows and 32 columns: the layout in which kernels read quantised weights.
//!
//! ```text
//! int8:      weight (rows / 16, cols / 32, 8, 16, 4) u8: byte (j, o, i) is 128 + q of row o, column 4 j + i
//! four bits: weight (rows / 16, cols / 32, 4, 16, 4) u8: byte (j, o, i) has q of column 8 j + i in its low four bits,
//!            of column 8 j + 4 + i in its high four bits
//! scale, min (rows / 16, groups, 16) f16
//! ```
//!
//! Sixteen rows are interleaved four values at a time, because one `vpdpbusd` multiplies four values in each of its
//! sixteen lanes. So the lanes are sixteen outputs, no sum across lanes is needed, and a vector of scales is one load.
//! `vpdpbusd` needs unsigned weights, so int8 weights have an offset of 128. It adds 128 times the sum of a group's
//! activations to a dot product. That is known before the loop, where it is subtracted at no cost. A register of
//! four-bit weights serves two `vpdpbusd`: one for the low four bits of its bytes, one for the high. Rows and columns
//! are padded with zeros to whole tiles.

use crate::isa::{GROUP, LANES};

/// Bytes of an int8 tile.
pub const INT8_TILE: usize = LANES * GROUP;
/// Bytes of a tile of four-bit weights.
pub const INT4_TILE: usize = LANES * GROUP / 2;

/// How many tiles a matrix has: down (in its rows) and across (in its columns).
pub fn tile_counts(rows: usize, cols: usize) -> (usize, usize) {
    (rows.div_ceil(LANES), cols.div_ceil(GROUP))
}
