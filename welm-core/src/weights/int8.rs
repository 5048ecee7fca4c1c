//! int8 weights: the layout, and how values get into it. [`crate::quantize`] writes folders of them.
//!
//! ```text
//! plain:   w[o][k]           is q[o][k] * scale[o][k / 32]
//! rotated: (w[o] rotated)[k] is q[o][k] * scale[o][k / 128]
//! q in -127..=127,   scale = max |value| of the group / 127, as f16
//! weight: (rows / 16, cols / 32, 8, 16, 4) u8, q + 128        scale: (rows / 16, groups, 16) f16
//! ```
//!
//! Rotated: each 64 columns are multiplied by the Walsh-Hadamard matrix, orthonormal, which spreads a large value over
//! 64 and is its own inverse. Activations are rotated alike, so that products stay what they are: `(H w) . (H x)` is
//! `w . x`. What is made from floats is rotated, because then groups of 128 are closer to the truth than groups of 32
//! without (mean divergence 0.0021 and 0.0033, `benches/record/int8-modes.md`; arXiv 2404.00456 rotates whole models),
//! a product needs a quarter of the scales, and a weight takes 8.1 bits instead of 8.5. Plain groups of 32 hold Q8_0
//! and Q4_0 without loss, and rows whose length is no multiple of 64.
//!
//! Sixteen rows are interleaved four values at a time, because that is what one `vpdpbusd` multiplies: its
//! sixteen lanes are sixteen outputs, no horizontal sum is ever needed, and a scale vector is one load. The
//! offset of 128 makes weights the unsigned operand; its effect, 128 times the sum of a group's activations,
//! is known before the loop and costs nothing. Rows and columns are padded with zeros to whole tiles.
//!
//! The folder is a Hugging Face folder whose `model.safetensors` has the engine's own tensor names and
//! the metadata entry `format`; it is used where it is mapped, without a copy.

use half::f16;

use crate::error::{Error, Result};
use crate::host::threads;
use crate::isa::{GROUP, LANES, ROTATED, Scalar, Simd};
use crate::memory::Memory;
use crate::weights::formats::StoredType;
use crate::weights::slab::Slab;
use crate::weights::tensor::{Segment, rows_of};
use crate::weights::tensor_map::TensorMap;

/// The `format` entry of an int8 folder's metadata.
pub(crate) const FORMAT: &str = "welm-int8-2";
/// The one before, all of whose matrices are plain.
pub(crate) const FORMAT_PLAIN: &str = "welm-int8-1";
/// Bytes of one tile of 16 rows and 32 columns.
pub(crate) const TILE: usize = LANES * GROUP;

/// Which columns share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grouping {
    /// 32 of them.
    Plain,
    /// 128, after each 64 were rotated; the last group may have 64.
    Rotated,
}

impl Grouping {
    /// That of a matrix which is made from floats.
    pub(crate) fn of_cols(cols: usize) -> Grouping {
        if cols.is_multiple_of(ROTATED) { Grouping::Rotated } else { Grouping::Plain }
    }

    /// Tiles that share a scale.
    pub(crate) fn tiles(self) -> usize {
        match self {
            Grouping::Plain => 1,
            Grouping::Rotated => 4,
        }
    }

    /// Groups of so many tiles.
    pub(crate) fn groups(self, tiles: usize) -> usize {
        tiles.div_ceil(self.tiles())
    }
}

/// An int8 matrix `(rows, cols)` in tiles.
#[derive(Clone)]
pub(crate) struct Packed {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) grouping: Grouping,
    pub(crate) weight: Slab<u8>, // (rows / 16, cols / 32, 8, 16, 4) u8
    pub(crate) scale: Slab<f16>, // (rows / 16, groups, 16) f16
}

/// Whether plain groups hold what is stored so without loss.
pub(crate) fn is_exact(stored: StoredType) -> bool {
    matches!(stored, StoredType::Q8_0 | StoredType::Q4_0)
}

/// Rotates each 64 of `values`.
pub(crate) fn rotate(values: &mut [f32]) {
    for block in values.as_chunks_mut().0 {
        // SAFETY: the scalar set needs no instructions.
        unsafe { Scalar::rotate(&block.clone(), block) };
    }
}

/// Tiles down and across of a matrix.
pub(crate) fn tiles(rows: usize, cols: usize) -> (usize, usize) {
    (rows.div_ceil(LANES), cols.div_ceil(GROUP))
}

/// Bytes of a packed matrix.
pub(crate) fn packed_bytes(rows: usize, cols: usize, grouping: Grouping) -> u64 {
    let (down, across) = tiles(rows, cols);
    (down as u64) * (across * TILE + grouping.groups(across) * 2 * LANES) as u64
}

impl Packed {
    /// Finds a matrix of an int8 folder of this format.
    pub(crate) fn open(
        tensors: &TensorMap,
        name: &str,
        rows: usize,
        cols: usize,
        format: &str,
    ) -> Result<Self> {
        let (down, across) = tiles(rows, cols);
        let grouping = if format == FORMAT { Grouping::of_cols(cols) } else { Grouping::Plain };
        let weight = tensors.get(&format!("{name}.weight"))?;
        weight.expect_shape(&[down, across, GROUP / 4, LANES, 4])?;
        let scale = tensors.get(&format!("{name}.scale"))?;
        scale.expect_shape(&[down, grouping.groups(across), LANES])?;
        for (tensor, dtype) in [(weight, StoredType::U8), (scale, StoredType::F16)] {
            if tensor.dtype != dtype {
                let reason = format!("expected element type {dtype:?}, got {:?}", tensor.dtype);
                return Err(Error::tensor(&tensor.name, reason));
            }
        }
        let (weight, scale) = (Slab::from_tensor(weight)?, Slab::from_tensor(scale)?);
        Ok(Packed { rows, cols, grouping, weight, scale })
    }

    /// Checks that all scales are finite.
    ///
    /// # Errors
    /// [`Error::Tensor`] with the place of one that is not.
    pub(crate) fn check_scales(&self, name: &str) -> Result<()> {
        let groups = self.grouping.groups(tiles(self.rows, self.cols).1);
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
        packed_bytes(self.rows, self.cols, self.grouping)
    }

    /// The same in memory of its own.
    pub(crate) fn copied(&self) -> Result<Self> {
        Ok(Packed { weight: self.weight.copied()?, scale: self.scale.copied()?, ..*self })
    }

    /// What [`Packed::pack`] makes of a matrix by itself: repacked without loss where it can be.
    pub(crate) fn grouping_of(segments: &[Segment], cols: usize) -> Grouping {
        if segments.iter().any(|s| is_exact(s.tensor.dtype)) {
            Grouping::Plain
        } else {
            Grouping::of_cols(cols)
        }
    }

    /// Quantises, or repacks without loss where the file has Q8_0 or Q4_0 and the grouping is plain. Uses `threads`
    /// threads.
    pub(crate) fn pack(
        name: &str,
        rows: usize,
        cols: usize,
        segments: &[Segment],
        grouping: Grouping,
        threads: usize,
    ) -> Result<Self> {
        let stored = rows_of(segments);
        debug_assert_eq!(stored.len(), rows);
        Self::pack_rows(name, rows, cols, grouping, threads, |row, values| {
            let (segment, row) = stored[row];
            if grouping == Grouping::Plain && is_exact(segment.tensor.dtype) {
                return Some((segment.tensor.row_bytes(row), segment.tensor.dtype));
            }
            segment.tensor.row_f32(row, values);
            None
        })
    }

    /// The same matrix in plain groups, rounded once more if it was not.
    #[cfg(feature = "kernels")]
    pub(crate) fn to_plain(&self, name: &str, threads: usize) -> Result<Packed> {
        if self.grouping == Grouping::Plain {
            return Ok(self.clone());
        }
        Self::pack_rows(name, self.rows, self.cols, Grouping::Plain, threads, |row, values| {
            self.row_f32(row, values);
            None
        })
    }

    /// Packs whatever `row` writes, `(cols)`, or the blocks that it gives instead.
    fn pack_rows<'s>(
        name: &str,
        rows: usize,
        cols: usize,
        grouping: Grouping,
        threads: usize,
        row: impl Fn(usize, &mut [f32]) -> Option<(&'s [u8], StoredType)> + Sync,
    ) -> Result<Self> {
        let (down, across) = tiles(rows, cols);
        let groups = grouping.groups(across);
        let mut weight = Memory::zeroed(down * across * TILE, "int8 weights")?;
        let mut scale = Memory::zeroed(down * groups * LANES, "int8 scales")?;
        let per_thread = down.div_ceil(threads.max(1));
        let parts = weight
            .chunks_mut(per_thread * across * TILE)
            .zip(scale.chunks_mut(per_thread * groups * LANES))
            .enumerate();
        let finite = threads::all(parts, |(part, (weight, scale))| {
            let first = part * per_thread * LANES;
            let mut to = TileRows { weight, scale, across, grouping };
            let mut values = vec![0.0f32; across * GROUP];
            (first..rows.min(first + per_thread * LANES)).all(|r| {
                let exact = row(r, &mut values[..cols]);
                to.write(r - first, exact, &mut values)
            })
        });
        if !finite {
            return Err(Error::tensor(name, "a weight is not a number, or too large for an f16 scale"));
        }
        Ok(Packed { rows, cols, grouping, weight: weight.into(), scale: scale.into() })
    }

    /// Writes row `row` as it is: `q`, `(cols)`, and `scale`, `(cols / 32)` rounded up.
    #[cfg(feature = "kernels")]
    pub(crate) fn row_int8(&self, row: usize, q: &mut [i8], scale: &mut [f16]) {
        let (_, across) = tiles(self.rows, self.cols);
        let (tile_row, o) = (row / LANES, row % LANES);
        assert_eq!(self.grouping, Grouping::Plain, "a rotated row has no int8 values of its own");
        for ((g, group), scale) in q.chunks_mut(GROUP).enumerate().zip(scale) {
            let tile = tile_row * across + g;
            *scale = self.scale[tile * LANES + o];
            for (k, q) in group.iter_mut().enumerate() {
                *q = (i16::from(self.weight[tile * TILE + place(o, k)]) - 128) as i8;
            }
        }
    }

    /// Writes row `row` as f32 into `out`, `(cols)`: an embedding look-up.
    pub(crate) fn row_f32(&self, row: usize, out: &mut [f32]) {
        let (_, across) = tiles(self.rows, self.cols);
        let groups = self.grouping.groups(across);
        let (tile_row, o) = (row / LANES, row % LANES);
        for (t, values) in out.chunks_mut(GROUP).enumerate() {
            let tile = tile_row * across + t;
            let group = tile_row * groups + t / self.grouping.tiles();
            let scale = self.scale[group * LANES + o].to_f32();
            for (k, x) in values.iter_mut().enumerate() {
                let q = self.weight[tile * TILE + place(o, k)];
                *x = scale * f32::from(i16::from(q) - 128);
            }
        }
        if self.grouping == Grouping::Rotated {
            rotate(out);
        }
    }
}

/// Where value `k` of row `o` lies in a tile.
fn place(o: usize, k: usize) -> usize {
    ((k / 4) * LANES + o) * 4 + k % 4
}

/// Whole tile rows that are being packed.
struct TileRows<'a> {
    weight: &'a mut [u8], // (n, across, TILE)
    scale: &'a mut [f16], // (n, groups, 16)
    across: usize,
    grouping: Grouping,
}

impl TileRows<'_> {
    /// Writes row `r`: blocks as they are, or `values`, `(across * 32)`; false if one cannot be represented.
    fn write(&mut self, r: usize, exact: Option<(&[u8], StoredType)>, values: &mut [f32]) -> bool {
        let (tile_row, o) = (r / LANES, r % LANES);
        let per_group = self.grouping.tiles();
        let groups = self.grouping.groups(self.across);
        if exact.is_none() && self.grouping == Grouping::Rotated {
            rotate(values);
        }
        for g in 0..groups {
            let from = g * per_group;
            let to = self.across.min(from + per_group);
            let mut q = [0; 4 * GROUP];
            let q = &mut q[..(to - from) * GROUP];
            let scale = match exact {
                Some((blocks, dtype)) => Some(unpack_block(blocks, g, dtype, q)),
                None => quantize_group(&values[from * GROUP..to * GROUP], q),
            };
            let Some(scale) = scale else { return false };
            self.scale[(tile_row * groups + g) * LANES + o] = scale;
            for (k, &q) in q.iter().enumerate() {
                let tile = tile_row * self.across + from + k / GROUP;
                self.weight[tile * TILE + place(o, k % GROUP)] = (i16::from(q) + 128) as u8;
            }
        }
        true
    }
}

/// Block `g` of a Q8_0 or Q4_0 row, as it is: its 32 values, and its scale.
fn unpack_block(row: &[u8], g: usize, dtype: StoredType, q: &mut [i8]) -> f16 {
    let bytes = if dtype == StoredType::Q8_0 { 2 + GROUP } else { 2 + GROUP / 2 };
    let block = &row[g * bytes..(g + 1) * bytes];
    for (k, q) in q.iter_mut().enumerate() {
        *q = match dtype {
            StoredType::Q8_0 => block[2 + k] as i8,
            _ if k < GROUP / 2 => (block[2 + k] & 15) as i8 - 8,
            _ => (block[2 + k - GROUP / 2] >> 4) as i8 - 8,
        };
    }
    f16::from_le_bytes([block[0], block[1]])
}

/// A group's scale, and its values in int8; none if a value is not finite or the scale overflows.
fn quantize_group(values: &[f32], q: &mut [i8]) -> Option<f16> {
    let largest =
        values.iter().fold(0.0f32, |m, x| if x.is_finite() { m.max(x.abs()) } else { f32::INFINITY });
    let mut scale = f16::from_f32(largest / 127.0);
    if scale.to_f32() * 127.5 < largest {
        scale = f16::from_bits(scale.to_bits() + 1); // the next larger, so that nothing is clipped
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

    #[test]
    fn a_row_comes_back_within_half_a_step_of_its_group() {
        for (rows, cols) in [(1, 33), (17, 64), (35, 192), (16, 640)] {
            let value = |i: usize| ((i as u32 + 1).wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0;
            for grouping in [Grouping::Plain, Grouping::of_cols(cols)] {
                let row = |r: usize, to: &mut [f32]| {
                    to.iter_mut().enumerate().for_each(|(k, x)| *x = value(r * cols + k));
                    None
                };
                let packed = Packed::pack_rows("t", rows, cols, grouping, 3, row).unwrap();
                assert_eq!(packed.bytes(), (packed.weight.len() + 2 * packed.scale.len()) as u64);
                for r in 0..rows {
                    let (mut got, mut want) = (vec![0.0; cols], vec![0.0; cols]);
                    packed.row_f32(r, &mut got);
                    row(r, &mut want);
                    let mut error: Vec<f32> = got.iter().zip(&want).map(|(a, b)| a - b).collect();
                    if grouping == Grouping::Rotated {
                        rotate(&mut error);
                        rotate(&mut want);
                    }
                    for (error, group) in
                        error.chunks(GROUP * grouping.tiles()).zip(want.chunks(GROUP * grouping.tiles()))
                    {
                        let largest = group.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                        let half = largest / 127.0 * 0.502 + 1e-6;
                        assert!(error.iter().all(|e| e.abs() <= half), "{rows} {cols} {grouping:?}");
                    }
                }
            }
        }
    }
}
