//! Matrices in memory: used in place in the mapped file, converted to another float type, or repacked as tiles.

use half::{bf16, f16};

use crate::checkpoint::load::{LinearSource, MatrixSource};
use crate::error::{Error, Result};
use crate::host::threads;
use crate::memory::Memory;
use crate::weights::computed::Computed;
use crate::weights::formats::StoredType;
use crate::weights::formats::int8::Grouping;
use crate::weights::slab::{Plain, Slab};
use crate::weights::tensor::{Segment, release, rows_of};
use crate::weights::tiles::Tiled;
use crate::weights::tiles::int8::Int8Tiles;

/// Some rows of a float matrix, as a range of rows of a stored tensor.
pub(crate) struct Part<T: Plain> {
    pub(super) values: Slab<T>, // (rows of the stored tensor, cols)
    pub(super) first_row: usize,
    pub(super) n_rows: usize,
}

/// A matrix in the element type that products compute with.
pub(crate) enum Matrix {
    F32(Vec<Part<f32>>),
    F16(Vec<Part<f16>>),
    Bf16(Vec<Part<bf16>>),
    /// The rows of all parts, one part after the other; each part in the layout of its own format.
    Quantized(Vec<Tiled>),
}

impl Matrix {
    /// Loads a matrix and its bias `(rows)`. With `copy`, nothing stays in the mapped file.
    pub(super) fn load(
        source: LinearSource,
        computed: Computed,
        copy: bool,
        threads: usize,
    ) -> Result<(Self, Option<Vec<f32>>)> {
        let LinearSource { name, rows, cols, matrix, bias, .. } = source;
        let int8 = |tiles| Matrix::Quantized(vec![Tiled::Int8(tiles)]);
        let matrix = match (computed, matrix) {
            (_, MatrixSource::Packed(tiles)) if copy => int8(tiles.copied()?),
            (_, MatrixSource::Packed(tiles)) => int8(tiles),
            (Computed::Blocks, MatrixSource::Stored(segments)) => {
                let parts = Tiled::pack(&name, cols, &segments, threads)?;
                release(&segments);
                Matrix::Quantized(parts)
            }
            (Computed::Int8, MatrixSource::Stored(segments)) => {
                let grouping = Int8Tiles::grouping_of(&segments, cols);
                let tiles = Int8Tiles::pack(&name, rows, cols, &segments, grouping, threads)?;
                release(&segments);
                int8(tiles)
            }
            (Computed::F16, MatrixSource::Stored(segments)) => {
                Matrix::F16(parts(&segments, cols, f16::from_f32, copy, threads)?)
            }
            (Computed::Bf16, MatrixSource::Stored(segments)) => {
                Matrix::Bf16(parts(&segments, cols, bf16::from_f32, copy, threads)?)
            }
            (Computed::F32, MatrixSource::Stored(segments)) => {
                Matrix::F32(parts(&segments, cols, |x| x, copy, threads)?)
            }
        };
        Ok((matrix, bias))
    }

    /// Bytes of a converted matrix in memory. `grouping` is that of int8, and not read for floats.
    pub(crate) fn bytes_of(computed: Computed, rows: usize, cols: usize, grouping: Grouping) -> u64 {
        let elements = rows as u64 * cols as u64;
        match computed {
            Computed::Blocks => unreachable!("blocks are as they are stored"),
            Computed::Int8 => Int8Tiles::bytes_of(rows, cols, grouping),
            Computed::F16 | Computed::Bf16 => 2 * elements,
            Computed::F32 => 4 * elements,
        }
    }

    /// Bytes of the matrix that `load` makes, and whether it may use the mapped file in place.
    pub(super) fn bytes_of_source(source: &LinearSource, computed: Computed) -> (u64, bool) {
        match &source.matrix {
            MatrixSource::Packed(tiles) => (tiles.bytes(), true),
            MatrixSource::Stored(segments) if computed == Computed::Blocks => {
                (Tiled::bytes_of(source.cols, segments), false)
            }
            MatrixSource::Stored(segments) => {
                let grouping = Int8Tiles::grouping_of(segments, source.cols);
                let in_place = stored_type(computed).is_some_and(|stored| stored_as(segments, stored));
                (Self::bytes_of(computed, source.rows, source.cols, grouping), in_place)
            }
        }
    }

    /// Writes row `r` of an embedding to `out`, `(cols)`.
    pub(super) fn row_f32(&self, r: usize, out: &mut [f32]) {
        fn row<T: Copy + Plain>(parts: &[Part<T>], r: usize, out: &mut [f32], f: impl Fn(T) -> f32) {
            let [part] = parts else { unreachable!("an embedding is one tensor") };
            let row = &part.values[(part.first_row + r) * out.len()..][..out.len()];
            out.iter_mut().zip(row).for_each(|(y, &x)| *y = f(x));
        }
        match self {
            Matrix::F32(p) => row(p, r, out, |x| x),
            Matrix::F16(p) => row(p, r, out, f16::to_f32),
            Matrix::Bf16(p) => row(p, r, out, bf16::to_f32),
            Matrix::Quantized(parts) => {
                let [part] = &parts[..] else { unreachable!("an embedding is one tensor") };
                part.row_f32(r, out);
            }
        }
    }

    /// The grouping of the quantised activations that its products take; `None` for float matrices.
    pub(super) fn grouping(&self) -> Option<Grouping> {
        match self {
            Matrix::Quantized(parts) => parts.first().map(Tiled::grouping),
            Matrix::F32(_) | Matrix::F16(_) | Matrix::Bf16(_) => None,
        }
    }
}

/// The stored type that needs no conversion; `None` if `computed` is always repacked.
fn stored_type(computed: Computed) -> Option<StoredType> {
    match computed {
        Computed::F32 => Some(StoredType::F32),
        Computed::F16 => Some(StoredType::F16),
        Computed::Bf16 => Some(StoredType::Bf16),
        Computed::Int8 | Computed::Blocks => None,
    }
}

/// Whether all segments have this type in the file.
fn stored_as(segments: &[Segment], wanted: StoredType) -> bool {
    segments.iter().all(|s| s.tensor.dtype == wanted)
}

/// Float parts: in place if all are stored as `T` and `copy` is false, else one converted copy.
fn parts<T: Plain>(
    source: &[Segment],
    cols: usize,
    convert: impl Fn(f32) -> T + Sync,
    copy: bool,
    threads: usize,
) -> Result<Vec<Part<T>>> {
    if stored_as(source, T::STORED) && !copy {
        let part = |s: &Segment| {
            let values = Slab::from_tensor(&s.tensor)?;
            Ok(Part { values, first_row: s.first_row, n_rows: s.n_rows })
        };
        return source.iter().map(part).collect();
    }
    let rows = rows_of(source);
    let mut values = Memory::zeroed(rows.len() * cols, "weights")?;
    let share = rows.len().div_ceil(threads);
    let parts = values.chunks_mut(share * cols).zip(rows.chunks(share));
    let converted = threads::all(parts, |(values, rows)| {
        let mut row = vec![0.0; cols];
        for (to, (segment, r)) in values.chunks_mut(cols).zip(rows) {
            segment.tensor.row_f32(*r, &mut row);
            if !row.iter().all(|x| x.is_finite()) {
                return false;
            }
            to.iter_mut().zip(&row).for_each(|(to, &x)| *to = convert(x));
        }
        true
    });
    release(source);
    if !converted {
        return Err(Error::tensor(&source[0].tensor.name, "a weight is not a finite number"));
    }
    Ok(vec![Part { values: values.into(), first_row: 0, n_rows: rows.len() }])
}
