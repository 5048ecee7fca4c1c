//! Matrices of quantised weights in tiles, whose layout is in [`welm_cpu::tiles`].
//!
//! [`int8`] and [`int4`] are matrices in this layout; [`pack`] makes them from stored tensors. [`coded`] is another
//! layout, which is unpacked to int8 tiles when it is multiplied.

pub(crate) mod coded;
pub(crate) mod int4;
pub(crate) mod int8;
mod pack;

use welm_cpu::int8::Grouping;
use welm_cpu::isa::LANES;

use self::coded::CodedTiles;
use self::int4::Int4Tiles;
use self::int8::Int8Tiles;
use super::formats::StoredType;
use super::tensor::Segment;
use crate::error::Result;

/// A matrix of quantised weights, in any layout.
pub(crate) enum Tiled {
    Int8(Int8Tiles),
    Int4(Int4Tiles),
    Coded(CodedTiles),
}

/// The layout for a stored format.
#[derive(PartialEq, Eq)]
enum Layout {
    Int8,
    Int4,
    Coded(StoredType),
}

impl Layout {
    /// The layout that holds a block format without loss.
    fn of(stored: StoredType) -> Layout {
        match stored.format() {
            format if format.coding().is_some() => Layout::Coded(stored),
            format if format.int4().is_some() => Layout::Int4,
            _ => Layout::Int8,
        }
    }
}

/// Runs of consecutive segments with the same layout.
fn same_layout(segments: &[Segment]) -> impl Iterator<Item = (Layout, &[Segment])> {
    let same = |a: &Segment, b: &Segment| Layout::of(a.tensor.dtype) == Layout::of(b.tensor.dtype);
    segments.chunk_by(same).map(|segments| (Layout::of(segments[0].tensor.dtype), segments))
}

impl Tiled {
    /// Repacks segments of block formats without loss: each part of a matrix in the layout of its own format.
    pub(crate) fn pack(name: &str, cols: usize, segments: &[Segment], threads: usize) -> Result<Vec<Tiled>> {
        let pack = |(layout, segments): (Layout, &[Segment])| {
            let rows = segments.iter().map(|s| s.n_rows).sum();
            Ok(match layout {
                Layout::Int8 => {
                    Tiled::Int8(Int8Tiles::pack(name, rows, cols, segments, Grouping::Plain, threads)?)
                }
                Layout::Int4 => Tiled::Int4(Int4Tiles::pack(name, rows, cols, segments, threads)?),
                Layout::Coded(stored) => {
                    let coding = stored.format().coding().expect("the layout is of those that are coded");
                    Tiled::Coded(CodedTiles::pack(cols, segments, coding, threads)?)
                }
            })
        };
        same_layout(segments).map(pack).collect()
    }

    /// Bytes of what `pack` makes.
    pub(crate) fn bytes_of(cols: usize, segments: &[Segment]) -> u64 {
        let bytes = |(layout, segments): (Layout, &[Segment])| {
            let rows = segments.iter().map(|s| s.n_rows).sum();
            match layout {
                Layout::Int8 => Int8Tiles::bytes_of(rows, cols, Grouping::Plain),
                Layout::Int4 => Int4Tiles::bytes_of(rows, cols),
                Layout::Coded(stored) => {
                    let coding = stored.format().coding().expect("the layout is of those that are coded");
                    CodedTiles::bytes_of(rows, cols, coding)
                }
            }
        };
        same_layout(segments).map(bytes).sum()
    }

    pub(crate) fn rows(&self) -> usize {
        match self {
            Tiled::Int8(w) => w.rows,
            Tiled::Int4(w) => w.rows,
            Tiled::Coded(w) => w.rows,
        }
    }

    pub(crate) fn cols(&self) -> usize {
        match self {
            Tiled::Int8(w) => w.cols,
            Tiled::Int4(w) => w.cols,
            Tiled::Coded(w) => w.cols,
        }
    }

    /// The grouping of the activations that this matrix is multiplied with.
    pub(crate) fn grouping(&self) -> Grouping {
        match self {
            Tiled::Int8(w) => w.grouping,
            Tiled::Int4(_) | Tiled::Coded(_) => Grouping::Plain,
        }
    }

    /// Writes row `row` as f32 into `out`, `(cols)`: an embedding look-up.
    pub(crate) fn row_f32(&self, row: usize, out: &mut [f32]) {
        match self {
            Tiled::Int8(w) => w.row_f32(row, out),
            Tiled::Int4(w) => w.row_f32(row, out),
            Tiled::Coded(w) => w.row_f32(row, out),
        }
    }
}

/// The index of the byte of an int8 tile that has value `k` of row `o`.
fn int8_place(o: usize, k: usize) -> usize {
    ((k / 4) * LANES + o) * 4 + k % 4
}

/// The index of the byte of a four-bit tile that has value `k` of row `o`, and whether it is in the high four bits.
fn int4_place(o: usize, k: usize) -> (usize, bool) {
    ((k / 8 * LANES + o) * 4 + k % 4, k % 8 >= 4)
}
