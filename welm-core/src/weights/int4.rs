//! Four-bit weights of GGUF files, as they are: Q4_0 and Q4_1 in the layout that the kernels read.
//!
//! ```text
//! w[o][k] is q[o][k] * scale[o][k / 32] + min[o][k / 32],   q in 0..=15;   Q4_0: min = -8 * scale
//! weight: (rows / 16, cols / 32, 4, 16, 4) u8: byte (j, o, i) has q of k = 8 j + i low, of 8 j + 4 + i high
//! scale, min: (rows / 16, cols / 32, 16) f16
//! ```
//!
//! Nothing is rounded, and a token reads 20 bytes for 32 weights, where int8 has 34 and would round Q4_1 once
//! more. As in `int8`, sixteen rows are interleaved four values at a time; half a register of nibbles is the
//! first operand of one `vpdpbusd`, the other half that of the next.

use half::f16;

use crate::error::{Error, Result};
use crate::host::threads;
use crate::isa::{GROUP, LANES};
use crate::memory::Memory;
use crate::weights::formats::StoredType;
use crate::weights::int8::tiles;
use crate::weights::slab::Slab;
use crate::weights::tensor::{Segment, rows_of};

/// Bytes of one tile of 16 rows and 32 columns.
pub(crate) const TILE4: usize = LANES * GROUP / 2;

/// A four-bit matrix `(rows, cols)` in tiles.
pub(crate) struct Packed4 {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) weight: Slab<u8>, // (rows / 16, cols / 32, 4, 16, 4) u8
    pub(crate) scale: Slab<f16>, // (rows / 16, cols / 32, 16) f16
    pub(crate) min: Slab<f16>,   // (rows / 16, cols / 32, 16) f16
}

/// Bytes of a packed matrix.
pub(crate) fn packed4_bytes(rows: usize, cols: usize) -> u64 {
    let (down, across) = tiles(rows, cols);
    (down as u64) * (across as u64) * (TILE4 + 4 * LANES) as u64
}

/// Whether all segments have four bits.
pub(crate) fn is_int4(segments: &[Segment]) -> bool {
    segments.iter().all(|s| matches!(s.tensor.dtype, StoredType::Q4_0 | StoredType::Q4_1))
}

impl Packed4 {
    /// Repacks segments that are [`is_int4`]. Uses `threads` threads.
    pub(crate) fn pack(
        name: &str,
        rows: usize,
        cols: usize,
        segments: &[Segment],
        threads: usize,
    ) -> Result<Self> {
        let (down, across) = tiles(rows, cols);
        let mut weight = Memory::zeroed(down * across * TILE4, "four-bit weights")?;
        let zeros = || Memory::zeroed(down * across * LANES, "four-bit scales");
        let (mut scale, mut min) = (zeros()?, zeros()?);
        let stored = rows_of(segments);
        debug_assert_eq!(stored.len(), rows);
        let per_thread = down.div_ceil(threads.max(1));
        let scales = per_thread * across * LANES;
        let parts = weight
            .chunks_mut(per_thread * across * TILE4)
            .zip(scale.chunks_mut(scales).zip(min.chunks_mut(scales)))
            .zip(stored.chunks(per_thread * LANES));
        let packed = threads::all(parts, |((weight, (scale, min)), stored)| {
            pack_rows(weight, scale, min, stored, across)
        });
        if !packed {
            return Err(Error::tensor(name, "a scale is not a number, or too large for four-bit weights"));
        }
        Ok(Packed4 { rows, cols, weight: weight.into(), scale: scale.into(), min: min.into() })
    }

    /// Writes row `row` as f32 into `out`, `(cols)`: an embedding look-up.
    pub(crate) fn row_f32(&self, row: usize, out: &mut [f32]) {
        let (_, across) = tiles(self.rows, self.cols);
        let (tile_row, o) = (row / LANES, row % LANES);
        for (g, group) in out.chunks_mut(GROUP).enumerate() {
            let tile = tile_row * across + g;
            let (scale, min) = (self.scale[tile * LANES + o].to_f32(), self.min[tile * LANES + o].to_f32());
            for (k, x) in group.iter_mut().enumerate() {
                let (at, high) = place(o, k);
                let byte = self.weight[tile * TILE4 + at];
                *x = scale * f32::from(if high { byte >> 4 } else { byte & 15 }) + min;
            }
        }
    }
}

/// The byte of a tile that has value `k` of row `o`, and whether it is the high half.
fn place(o: usize, k: usize) -> (usize, bool) {
    ((k / 8 * LANES + o) * 4 + k % 4, k % 8 >= 4)
}

/// Packs whole tile rows; false if a scale cannot be represented.
fn pack_rows(
    weight: &mut [u8],
    scale: &mut [f16],
    min: &mut [f16],
    stored: &[(&Segment, usize)],
    across: usize,
) -> bool {
    for (i, (segment, row)) in stored.iter().enumerate() {
        let (tile_row, o) = (i / LANES, i % LANES);
        let with_min = segment.tensor.dtype == StoredType::Q4_1;
        let head = if with_min { 4 } else { 2 };
        for (g, block) in segment.tensor.row_bytes(*row).chunks_exact(head + GROUP / 2).enumerate() {
            let tile = tile_row * across + g;
            let d = f16::from_le_bytes([block[0], block[1]]);
            // -8 times an f16 is an f16, unless it is too large.
            let m = if with_min {
                f16::from_le_bytes([block[2], block[3]])
            } else {
                f16::from_f32(-8.0 * d.to_f32())
            };
            if !d.is_finite() || !m.is_finite() {
                return false;
            }
            scale[tile * LANES + o] = d;
            min[tile * LANES + o] = m;
            for k in 0..GROUP {
                let byte = block[head + k % (GROUP / 2)];
                let q = if k < GROUP / 2 { byte & 15 } else { byte >> 4 };
                let (at, high) = place(o, k);
                weight[tile * TILE4 + at] |= if high { q << 4 } else { q };
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::tensor::StoredTensor;
    use crate::weights::tests::mapped;

    /// Blocks of any nibbles with the given scales.
    fn tensor(dtype: StoredType, rows: usize, cols: usize, scale: f16) -> StoredTensor {
        let head = if dtype == StoredType::Q4_1 { 2 } else { 1 };
        let mut state = 7u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 13) as u16
        };
        let mut bytes = Vec::new();
        for _ in 0..rows * cols / GROUP {
            for _ in 0..head {
                let factor = f32::from(noise() % 1_000) / 500.0 - 1.0;
                bytes.extend(f16::from_f32(scale.to_f32() * factor).to_le_bytes());
            }
            bytes.extend((0..GROUP / 2).map(|_| noise() as u8));
        }
        StoredTensor::new(&mapped(&bytes), "t", dtype, &[rows, cols], 0).unwrap()
    }

    #[test]
    fn packed_rows_are_the_stored_ones_bit_for_bit() {
        let segment = |dtype, rows, first_row, n_rows| Segment {
            tensor: tensor(dtype, rows, 64, f16::from_f32(0.013)),
            first_row,
            n_rows,
        };
        let segments = [segment(StoredType::Q4_0, 17, 3, 14), segment(StoredType::Q4_1, 40, 1, 39)];
        assert!(is_int4(&segments));
        let rows = 14 + 39;
        for threads in [1, 3] {
            let packed = Packed4::pack("t", rows, 64, &segments, threads).unwrap();
            let bytes = packed.weight.len() + 2 * (packed.scale.len() + packed.min.len());
            assert_eq!(bytes as u64, packed4_bytes(rows, 64));
            let stored =
                segments.iter().flat_map(|s| (0..s.n_rows).map(move |r| (&s.tensor, s.first_row + r)));
            for (row, (tensor, stored_row)) in stored.enumerate() {
                let (mut got, mut want) = ([0.0; 64], [0.0; 64]);
                packed.row_f32(row, &mut got);
                tensor.row_f32(stored_row, &mut want);
                assert_eq!(got, want, "row {row}");
            }
        }
    }

    #[test]
    fn scales_that_cannot_be_kept_are_an_error() {
        let pack = |dtype, scale: u16| {
            let tensor = {
                let head = if dtype == StoredType::Q4_1 { 4 } else { 2 };
                let mut bytes = vec![0u8; head + GROUP / 2];
                bytes[..2].copy_from_slice(&scale.to_le_bytes());
                StoredTensor::new(&mapped(&bytes), "t", dtype, &[1, GROUP], 0).unwrap()
            };
            Packed4::pack("t", 1, GROUP, &[Segment { tensor, first_row: 0, n_rows: 1 }], 1).map(|_| ())
        };
        let large = f16::from_f32(8_192.0).to_bits();
        assert!(pack(StoredType::Q4_1, large).is_ok() && pack(StoredType::Q4_0, large - 1).is_ok());
        for (dtype, scale) in
            [(StoredType::Q4_0, large), (StoredType::Q4_0, 0x7C00), (StoredType::Q4_1, 0x7E00)]
        {
            let message = pack(dtype, scale).unwrap_err().to_string();
            assert!(message.contains("scale"), "{message}");
        }
    }
}
