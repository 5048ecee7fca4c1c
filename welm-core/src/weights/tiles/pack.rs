//! Packs stored tensors into tiles: without loss if the tiles can hold their values, else quantised to int8.

use half::f16;
use welm_cpu::int8::{Grouping, quantize_group, rotate};
use welm_cpu::isa::{GROUP, LANES};
use welm_cpu::tiles::{INT4_TILE, INT8_TILE, tile_counts};

use super::int4::Int4Tiles;
use super::int8::Int8Tiles;
use super::{int4_place, int8_place};
use crate::error::{Error, Result};
use crate::host::threads;
use crate::memory::Memory;
use crate::weights::formats::UnpackInt8;
use crate::weights::tensor::{Segment, row_error, rows_of};

/// Why a row has no int8.
const NO_SCALE: &str = "a weight is not a number, or too large for an f16 scale";

impl Int8Tiles {
    /// The grouping for [`Int8Tiles::pack`]: plain if a segment can be repacked without loss, else that of quantised
    /// floats.
    pub(crate) fn grouping_of(segments: &[Segment], cols: usize) -> Grouping {
        let exact = segments.iter().any(|s| s.tensor.dtype.format().int8().is_some());
        if exact { Grouping::Plain } else { Grouping::of_cols(cols) }
    }

    /// Repacks segments without loss if int8 holds their values and the grouping is plain; quantises all others. Uses
    /// `threads` threads.
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
        let refuse = |row: usize| row_error(&stored, row, name, NO_SCALE);
        Self::pack_rows(refuse, rows, cols, grouping, threads, |row, values| {
            let (segment, row) = stored[row];
            let format = segment.tensor.dtype.format();
            if let Some(unpack) = format.int8().filter(|_| grouping == Grouping::Plain) {
                return Some(Blocks { bytes: segment.tensor.row_bytes(row), block: format.bytes(), unpack });
            }
            segment.tensor.row_f32(row, values);
            None
        })
    }

    /// The same matrix in plain groups. If it was rotated, its values are rounded once more.
    #[cfg(feature = "kernels")]
    pub(crate) fn to_plain(&self, name: &str, threads: usize) -> Result<Int8Tiles> {
        if self.grouping == Grouping::Plain {
            return Ok(self.clone());
        }
        let refuse = |row: usize| Error::tensor(name, format!("row {row}: {NO_SCALE}"));
        Self::pack_rows(refuse, self.rows, self.cols, Grouping::Plain, threads, |row, values| {
            self.row_f32(row, values);
            None
        })
    }

    /// Packs rows. `row` writes the values of a row, `(cols)`, or returns its blocks, which are then repacked. `refuse`
    /// makes the error of a row.
    fn pack_rows<'s>(
        refuse: impl Fn(usize) -> Error,
        rows: usize,
        cols: usize,
        grouping: Grouping,
        threads: usize,
        row: impl Fn(usize, &mut [f32]) -> Option<Blocks<'s>> + Sync,
    ) -> Result<Self> {
        let (down, across) = tile_counts(rows, cols);
        let groups = grouping.groups(across);
        let mut weight = Memory::zeroed(down * across * INT8_TILE, "int8 weights")?;
        let mut scale = Memory::zeroed(down * groups * LANES, "int8 scales")?;
        let per_thread = down.div_ceil(threads.max(1));
        let parts = weight
            .chunks_mut(per_thread * across * INT8_TILE)
            .zip(scale.chunks_mut(per_thread * groups * LANES))
            .enumerate();
        let wrong = threads::least(parts, |(part, (weight, scale))| {
            let first = part * per_thread * LANES;
            let mut to = TileRows { weight, scale, across, grouping };
            let mut values = vec![0.0f32; across * GROUP];
            (first..rows.min(first + per_thread * LANES)).find(|&r| {
                let exact = row(r, &mut values[..cols]);
                !to.write(r - first, exact, &mut values)
            })
        });
        if let Some(row) = wrong {
            return Err(refuse(row));
        }
        Ok(Int8Tiles { rows, cols, grouping, weight: weight.into(), scale: scale.into() })
    }
}

/// The stored blocks of a row whose values int8 holds exactly.
struct Blocks<'a> {
    bytes: &'a [u8],
    block: usize, // bytes of a block
    unpack: UnpackInt8,
}

/// Some tile rows (16 rows each) that one thread packs.
struct TileRows<'a> {
    weight: &'a mut [u8], // (n, across, 512)
    scale: &'a mut [f16], // (n, groups, 16)
    across: usize,
    grouping: Grouping,
}

impl TileRows<'_> {
    /// Writes row `r`: the blocks `exact` without loss, else `values`, `(across * 32)`, quantised. False if a value
    /// cannot be represented.
    fn write(&mut self, r: usize, exact: Option<Blocks>, values: &mut [f32]) -> bool {
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
                Some(Blocks { bytes, block, unpack }) => Some(unpack(&bytes[g * block..(g + 1) * block], q)),
                None => quantize_group(&values[from * GROUP..to * GROUP], q),
            };
            let Some(scale) = scale else { return false };
            self.scale[(tile_row * groups + g) * LANES + o] = scale;
            for (k, &q) in q.iter().enumerate() {
                let tile = tile_row * self.across + from + k / GROUP;
                self.weight[tile * INT8_TILE + int8_place(o, k % GROUP)] = (i16::from(q) + 128) as u8;
            }
        }
        true
    }
}

impl Int4Tiles {
    /// Repacks segments whose formats all fit in four bits. Uses `threads` threads.
    pub(crate) fn pack(
        name: &str,
        rows: usize,
        cols: usize,
        segments: &[Segment],
        threads: usize,
    ) -> Result<Self> {
        let (down, across) = tile_counts(rows, cols);
        let mut weight = Memory::zeroed(down * across * INT4_TILE, "four-bit weights")?;
        let zeros = || Memory::zeroed(down * across * LANES, "four-bit scales");
        let (mut scale, mut min) = (zeros()?, zeros()?);
        let stored = rows_of(segments);
        debug_assert_eq!(stored.len(), rows);
        let per_thread = down.div_ceil(threads.max(1));
        let scales = per_thread * across * LANES;
        let parts = weight
            .chunks_mut(per_thread * across * INT4_TILE)
            .zip(scale.chunks_mut(scales).zip(min.chunks_mut(scales)))
            .zip(stored.chunks(per_thread * LANES))
            .enumerate();
        let wrong = threads::least(parts, |(part, ((weight, (scale, min)), stored))| {
            write_int4(weight, scale, min, stored, across).map(|row| part * per_thread * LANES + row)
        });
        if let Some(row) = wrong {
            let reason = "a scale is not a number, or too large for four-bit weights";
            return Err(row_error(&stored, row, name, reason));
        }
        Ok(Int4Tiles { rows, cols, weight: weight.into(), scale: scale.into(), min: min.into() })
    }
}

/// Packs whole tile rows. Returns the first row with a scale that cannot be represented.
fn write_int4(
    weight: &mut [u8],
    scale: &mut [f16],
    min: &mut [f16],
    stored: &[(&Segment, usize)],
    across: usize,
) -> Option<usize> {
    for (i, (segment, row)) in stored.iter().enumerate() {
        let (tile_row, o) = (i / LANES, i % LANES);
        let format = segment.tensor.dtype.format();
        let unpack = format.int4().expect("four bits are chosen only for what they hold");
        let mut q = [0; GROUP];
        for (g, block) in segment.tensor.row_bytes(*row).chunks_exact(format.bytes()).enumerate() {
            let tile = tile_row * across + g;
            let (d, m) = unpack(block, &mut q);
            if !d.is_finite() || !m.is_finite() {
                return Some(i);
            }
            scale[tile * LANES + o] = d;
            min[tile * LANES + o] = m;
            for (k, q) in q.into_iter().enumerate() {
                let (at, high) = int4_place(o, k);
                weight[tile * INT4_TILE + at] |= if high { q << 4 } else { q };
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::formats::StoredType;
    use crate::weights::tensor::StoredTensor;
    use crate::weights::tests::mapped;

    #[test]
    fn a_row_comes_back_within_half_a_step_of_its_group() {
        for (rows, cols) in [(1, 33), (17, 64), (35, 192), (16, 640)] {
            let value = |i: usize| ((i as u32 + 1).wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0;
            for grouping in [Grouping::Plain, Grouping::of_cols(cols)] {
                let row = |r: usize, to: &mut [f32]| {
                    to.iter_mut().enumerate().for_each(|(k, x)| *x = value(r * cols + k));
                    None
                };
                let refuse = |_| unreachable!("all rows fit");
                let packed = Int8Tiles::pack_rows(refuse, rows, cols, grouping, 3, row).unwrap();
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

    /// A tensor of blocks with arbitrary four-bit values, and random scales of at most `scale`.
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
        let rows = 14 + 39;
        for threads in [1, 3] {
            let packed = Int4Tiles::pack("t", rows, 64, &segments, threads).unwrap();
            let bytes = packed.weight.len() + 2 * (packed.scale.len() + packed.min.len());
            assert_eq!(bytes as u64, Int4Tiles::bytes_of(rows, 64));
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
            Int4Tiles::pack("t", 1, GROUP, &[Segment { tensor, first_row: 0, n_rows: 1 }], 1).map(|_| ())
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

    /// A matrix of two tensors, of which the second cannot be packed.
    #[test]
    fn the_tensor_that_is_at_fault_is_named() {
        let stored = |name: &str, dtype: StoredType, bytes: &[u8]| Segment {
            tensor: StoredTensor::new(&mapped(bytes), name, dtype, &[40, GROUP], 0).unwrap(),
            first_row: 0,
            n_rows: 40,
        };
        let floats = |bad: Option<usize>| -> Vec<u8> {
            let value = |i: usize| if Some(i / GROUP) == bad { f32::NAN } else { 0.5 };
            (0..40 * GROUP).flat_map(|i| value(i).to_le_bytes()).collect()
        };
        let blocks = |bad: Option<usize>| -> Vec<u8> {
            let scale = |row| if Some(row) == bad { f16::INFINITY } else { f16::ONE };
            (0..40).flat_map(|row| [&scale(row).to_le_bytes()[..], &[7; GROUP / 2]].concat()).collect()
        };
        for threads in [1, 3] {
            let f32s =
                [("k", None), ("v", Some(37))].map(|(n, bad)| stored(n, StoredType::F32, &floats(bad)));
            let error = Int8Tiles::pack("layers.0.qkv", 80, GROUP, &f32s, Grouping::Plain, threads);
            assert_eq!(
                error.err().unwrap().to_string(),
                format!("tensor `v`: row 37, for `layers.0.qkv`: {NO_SCALE}")
            );
            let q4 = [("k", None), ("v", Some(37))].map(|(n, bad)| stored(n, StoredType::Q4_0, &blocks(bad)));
            let error = Int4Tiles::pack("layers.0.qkv", 80, GROUP, &q4, threads).err().unwrap().to_string();
            assert!(error.starts_with("tensor `v`: row 37, for `layers.0.qkv`: a scale is not"), "{error}");
        }
    }
}
