//! Matrices in memory: used in place in the mapped file, converted to another float type, or repacked as tiles.

use half::{bf16, f16};
use welm_cpu::int8::Grouping;

use crate::checkpoint::load::{LinearSource, MatrixSource};
use crate::error::Result;
use crate::host::threads;
use crate::memory::Memory;
use crate::weights::computed::Computed;
use crate::weights::formats::StoredType;
use crate::weights::slab::{Plain, Slab};
use crate::weights::tensor::{Segment, release, row_error, rows_of};
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
                Matrix::F16(parts(&name, &segments, cols, (f16::from_f32, f16::is_finite), copy, threads)?)
            }
            (Computed::Bf16, MatrixSource::Stored(segments)) => {
                Matrix::Bf16(parts(&name, &segments, cols, (bf16::from_f32, bf16::is_finite), copy, threads)?)
            }
            (Computed::F32, MatrixSource::Stored(segments)) => {
                Matrix::F32(parts(&name, &segments, cols, (|x| x, f32::is_finite), copy, threads)?)
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

/// Whether all segments have this type in the file, and can be used where they lie there.
fn stored_as(segments: &[Segment], wanted: StoredType) -> bool {
    segments.iter().all(|s| s.tensor.dtype == wanted && s.tensor.is_aligned())
}

/// Float parts: in place if all are stored as `T` and `copy` is false, else one converted copy. `to` converts a value, and
/// says whether the result is finite; `name` is that of the matrix, for errors.
fn parts<T: Plain>(
    name: &str,
    source: &[Segment],
    cols: usize,
    to: (impl Fn(f32) -> T + Sync, impl Fn(T) -> bool + Sync),
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
    let (convert, is_finite) = to;
    let rows = rows_of(source);
    let mut values = Memory::zeroed(rows.len() * cols, "weights")?;
    let share = rows.len().div_ceil(threads);
    let parts = values.chunks_mut(share * cols).zip(rows.chunks(share)).enumerate();
    let wrong = threads::least(parts, |(part, (values, rows))| {
        let mut row = vec![0.0; cols];
        for (i, (to, (segment, r))) in values.chunks_mut(cols).zip(rows).enumerate() {
            segment.tensor.row_f32(*r, &mut row);
            to.iter_mut().zip(&row).for_each(|(to, &x)| *to = convert(x));
            if !to.iter().all(|&x| is_finite(x)) {
                return Some(part * share + i);
            }
        }
        None
    });
    release(source);
    match wrong {
        None => Ok(vec![Part { values: values.into(), first_row: 0, n_rows: rows.len() }]),
        Some(row) => {
            let reason = format!("a weight is not a finite number in {}", T::STORED.format().name());
            Err(row_error(&rows, row, name, &reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::tensor::StoredTensor;
    use crate::weights::tests::mapped;

    /// Three rows of two of these values.
    fn tensor(name: &str, values: [f32; 6]) -> StoredTensor {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        StoredTensor::new(&mapped(&bytes), name, StoredType::F32, &[3, 2], 0).unwrap()
    }

    #[test]
    fn a_value_that_is_not_finite_is_an_error_that_names_its_tensor_and_its_row() {
        let good = [1.0, -2.0, 3.0, 4.0, 5.0, 6.0];
        let bf16s = (bf16::from_f32, bf16::is_finite);
        // The largest f32 that rounds to a finite bf16, and the next.
        let (fits, too_large) = (f32::from_bits(0x7F7F_7FFF), f32::from_bits(0x7F7F_8000));
        for (value, ok) in [(fits, true), (too_large, false), (f32::NAN, false), (f32::NEG_INFINITY, false)] {
            let mut other = good;
            other[5] = value;
            for threads in [1, 4] {
                // Made anew: loading releases what it has read, and there is no file to read it from again.
                let segments = [("q", good), ("k", other)].map(|(name, values)| Segment {
                    tensor: tensor(name, values),
                    first_row: 0,
                    n_rows: 3,
                });
                match parts("qkv", &segments, 2, bf16s, false, threads) {
                    Ok(parts) => assert!(ok && parts[0].values[11] == bf16::MAX, "{value}"),
                    Err(error) => {
                        let error = error.to_string();
                        let told = ["`k`", "row 2", "`qkv`", "not a finite number in BF16"];
                        assert!(!ok && told.iter().all(|told| error.contains(told)), "{value}: {error}");
                    }
                }
            }
        }
    }
}
