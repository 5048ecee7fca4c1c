//! Sizes of the tiles of quantised weights: 16 rows and 32 columns.

use crate::isa::{GROUP, LANES};

/// Bytes of an int8 tile.
pub const INT8_TILE: usize = LANES * GROUP;
/// Bytes of a tile of four-bit weights.
pub const INT4_TILE: usize = LANES * GROUP / 2;

/// How many tiles a matrix has: down (in its rows) and across (in its columns).
pub fn tile_counts(rows: usize, cols: usize) -> (usize, usize) {
    (rows.div_ceil(LANES), cols.div_ceil(GROUP))
}
