//! int8 weights: the layout, how values get into it, and the folder that stores it.
//!
//! ```text
//! w[o][k] is q[o][k] * scale[o][k / 32],   q in -127..=127,   scale = max |w| of the group / 127, as f16
//! weight: (rows / 16, cols / 32, 8, 16, 4) u8, q + 128        scale: (rows / 16, cols / 32, 16) f16
//! ```
//!
//! Groups of 32 are what keeps int8 as exact as llama.cpp's Q8_0 (which this layout holds without loss).
//! Sixteen rows are interleaved four values at a time, because that is what one `vpdpbusd` multiplies: its
//! sixteen lanes are sixteen outputs, no horizontal sum is ever needed, and a scale vector is one load. The
//! offset of 128 makes weights the unsigned operand; its effect, 128 times the sum of a group's activations,
//! is known before the loop and costs nothing. Rows and columns are padded with zeros to whole tiles.
//!
//! The folder is a Hugging Face folder whose `model.safetensors` has the engine's own tensor names and
//! the metadata entry `format`; it is used where it is mapped, without a copy.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use half::f16;

use crate::backend::cpu::isa::{GROUP, LANES};
use crate::error::{Error, Result};
use crate::options::LoadProgress;
use crate::weights::load::{LinearSource, MatrixSource, Segment, Source, rows_of};
use crate::weights::{Slab, StoredType, TensorMap};

/// The `format` entry of an int8 folder's metadata.
pub(crate) const FORMAT: &str = "welm-int8-1";
/// Bytes of one tile of 16 rows and 32 columns.
pub(crate) const TILE: usize = LANES * GROUP;

/// An int8 matrix `(rows, cols)` in tiles.
#[derive(Clone)]
pub(crate) struct Packed {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) weight: Slab<u8>, // (rows / 16, cols / 32, 8, 16, 4) u8
    pub(crate) scale: Slab<f16>, // (rows / 16, cols / 32, 16) f16
}

/// Tiles down and across of a matrix.
pub(crate) fn tiles(rows: usize, cols: usize) -> (usize, usize) {
    (rows.div_ceil(LANES), cols.div_ceil(GROUP))
}

/// Whether `pack` is true of all parts, each on a thread of its own.
pub(crate) fn all_on_threads<P: Send>(
    parts: impl Iterator<Item = P>,
    pack: impl Fn(P) -> bool + Sync,
) -> bool {
    let pack = &pack;
    std::thread::scope(|scope| {
        let workers: Vec<_> = parts.map(|part| scope.spawn(move || pack(part))).collect();
        workers.into_iter().all(|w| w.join().unwrap_or(false))
    })
}

/// Bytes of a packed matrix.
pub(crate) fn packed_bytes(rows: usize, cols: usize) -> u64 {
    let (down, across) = tiles(rows, cols);
    (down as u64) * (across as u64) * (TILE + 2 * LANES) as u64
}

impl Packed {
    /// Finds a matrix of an int8 folder.
    pub(crate) fn open(tensors: &TensorMap, name: &str, rows: usize, cols: usize) -> Result<Self> {
        let (down, across) = tiles(rows, cols);
        let weight = tensors.get(&format!("{name}.weight"))?;
        weight.expect_shape(&[down, across, GROUP / 4, LANES, 4])?;
        let scale = tensors.get(&format!("{name}.scale"))?;
        scale.expect_shape(&[down, across, LANES])?;
        for (tensor, dtype) in [(weight, StoredType::U8), (scale, StoredType::F16)] {
            if tensor.dtype != dtype {
                let reason = format!("expected element type {dtype:?}, got {:?}", tensor.dtype);
                return Err(Error::tensor(&tensor.name, reason));
            }
        }
        Ok(Packed { rows, cols, weight: Slab::from_tensor(weight)?, scale: Slab::from_tensor(scale)? })
    }

    /// Bytes of weights and scales.
    pub(crate) fn bytes(&self) -> u64 {
        packed_bytes(self.rows, self.cols)
    }

    /// Quantises, or repacks without loss where the file has Q8_0 or Q4_0. Uses `threads` threads.
    pub(crate) fn pack(
        name: &str,
        rows: usize,
        cols: usize,
        segments: &[Segment],
        threads: usize,
    ) -> Result<Self> {
        let (down, across) = tiles(rows, cols);
        let mut weight = vec![128u8; down * across * TILE]; // 128 is zero
        let mut scale = vec![f16::ZERO; down * across * LANES];
        let stored = rows_of(segments);
        debug_assert_eq!(stored.len(), rows);
        let per_thread = down.div_ceil(threads.max(1));
        let parts = weight
            .chunks_mut(per_thread * across * TILE)
            .zip(scale.chunks_mut(per_thread * across * LANES))
            .zip(stored.chunks(per_thread * LANES));
        if !all_on_threads(parts, |((weight, scale), stored)| pack_rows(weight, scale, stored, cols)) {
            return Err(Error::tensor(name, "a weight is not a number, or too large for an f16 scale"));
        }
        Ok(Packed { rows, cols, weight: weight.into(), scale: scale.into() })
    }

    /// Writes row `row` as it is: `q`, `(cols)`, and `scale`, `(cols / 32)` rounded up.
    #[cfg(feature = "kernels")]
    pub(crate) fn row_int8(&self, row: usize, q: &mut [i8], scale: &mut [f16]) {
        let (_, across) = tiles(self.rows, self.cols);
        let (tile_row, o) = (row / LANES, row % LANES);
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
        let (tile_row, o) = (row / LANES, row % LANES);
        for (g, group) in out.chunks_mut(GROUP).enumerate() {
            let tile = tile_row * across + g;
            let scale = self.scale[tile * LANES + o].to_f32();
            for (k, x) in group.iter_mut().enumerate() {
                let q = self.weight[tile * TILE + place(o, k)];
                *x = scale * f32::from(i16::from(q) - 128);
            }
        }
    }
}

/// Where value `k` of row `o` lies in a tile.
fn place(o: usize, k: usize) -> usize {
    ((k / 4) * LANES + o) * 4 + k % 4
}

/// Packs whole tile rows; false if a value cannot be represented.
fn pack_rows(weight: &mut [u8], scale: &mut [f16], stored: &[(&Segment, usize)], cols: usize) -> bool {
    let across = cols.div_ceil(GROUP);
    let mut values = vec![0.0f32; across * GROUP];
    for (i, (segment, row)) in stored.iter().enumerate() {
        let (tile_row, o) = (i / LANES, i % LANES);
        let exact = match segment.tensor.dtype {
            StoredType::Q8_0 | StoredType::Q4_0 => Some(segment.tensor.row_bytes(*row)),
            _ => {
                segment.tensor.row_f32(*row, &mut values[..cols]);
                None
            }
        };
        for g in 0..across {
            let (s, q) = match exact {
                Some(blocks) => unpack_block(blocks, g, segment.tensor.dtype),
                None => match quantize_group(&values[g * GROUP..(g + 1) * GROUP]) {
                    Some(group) => group,
                    None => return false,
                },
            };
            let tile = tile_row * across + g;
            scale[tile * LANES + o] = s;
            for (k, q) in q.into_iter().enumerate() {
                weight[tile * TILE + place(o, k)] = (i16::from(q) + 128) as u8;
            }
        }
    }
    true
}

/// Block `g` of a Q8_0 or Q4_0 row, as it is.
fn unpack_block(row: &[u8], g: usize, dtype: StoredType) -> (f16, [i8; GROUP]) {
    let bytes = if dtype == StoredType::Q8_0 { 2 + GROUP } else { 2 + GROUP / 2 };
    let block = &row[g * bytes..(g + 1) * bytes];
    let q = std::array::from_fn(|k| match dtype {
        StoredType::Q8_0 => block[2 + k] as i8,
        _ if k < GROUP / 2 => (block[2 + k] & 15) as i8 - 8,
        _ => (block[2 + k - GROUP / 2] >> 4) as i8 - 8,
    });
    (f16::from_le_bytes([block[0], block[1]]), q)
}

/// One group of 32 weights; none if a value is not finite or the scale overflows.
fn quantize_group(values: &[f32]) -> Option<(f16, [i8; GROUP])> {
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
    Some((scale, std::array::from_fn(|k| (values[k] * inverse).round_ties_even().clamp(-127.0, 127.0) as i8)))
}

/// Writes an int8 folder from any model that [`crate::Model::load`] takes (GGUF files excepted, whose
/// tokenizer has no file form here).
///
/// `to` is made if need be; configuration and tokenizer files are copied beside the weights. `progress`
/// is called after each matrix and may return `false` to stop; an unfinished file is not left behind.
///
/// ```no_run
/// # fn main() -> welm_core::Result<()> {
/// welm_core::quantize("my-model".as_ref(), "my-model-int8".as_ref(), |p| {
///     eprint!("\r{} of {} MB", p.done_bytes >> 20, p.total_bytes >> 20);
///     true
/// })
/// # }
/// ```
///
/// # Errors
/// Whatever opening the source meets; [`Error::Io`] if `to` cannot be written; [`Error::LoadCancelled`].
pub fn quantize(from: &Path, to: &Path, mut progress: impl FnMut(LoadProgress) -> bool) -> Result<()> {
    if from.is_file() {
        return Err(Error::file(from, "expected a Hugging Face folder"));
    }
    let source = Source::open(from, None)?;
    if source.is_packed() {
        return Err(Error::file(from, "is int8 already"));
    }
    fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
    if fs::canonicalize(from).ok() == fs::canonicalize(to).ok() {
        return Err(Error::io(to, "source and destination are the same folder"));
    }
    let mut tensors: Vec<(String, View)> = Vec::new();
    let names = source.linear_names();
    let total_bytes =
        names.iter().map(|n| source.linear(n).map(|l| l.stored_bytes())).sum::<Result<u64>>()?;
    let mut done_bytes = 0;
    let threads = crate::backend::cpu::pool::available_threads();
    for name in names {
        let LinearSource { rows, cols, matrix, bias, name, .. } = source.linear(&name)?;
        let MatrixSource::Stored(segments) = matrix else {
            unreachable!("a packed source was refused above")
        };
        let packed = Packed::pack(&name, rows, cols, &segments, threads)?;
        done_bytes += segments.iter().map(|s| (s.tensor.row_bytes(0).len() * s.n_rows) as u64).sum::<u64>();
        let (down, across) = tiles(rows, cols);
        let scale = packed.scale.iter().flat_map(|s| s.to_le_bytes()).collect();
        tensors.push((
            format!("{name}.weight"),
            View::new(Dtype::U8, &[down, across, GROUP / 4, LANES, 4], packed.weight.to_vec()),
        ));
        tensors.push((format!("{name}.scale"), View::new(Dtype::F16, &[down, across, LANES], scale)));
        tensors.extend(bias.map(|b| (format!("{name}.bias"), View::f32(&b))));
        if !progress(LoadProgress { done_bytes, total_bytes }) {
            return Err(Error::LoadCancelled);
        }
    }
    for name in source.norm_names() {
        let norm = source.norm(&name)?;
        tensors.push((format!("{name}.weight"), View::f32(&norm.weight)));
        tensors.extend(norm.bias.map(|b| (format!("{name}.bias"), View::f32(&b))));
    }
    let metadata = HashMap::from([("format".to_string(), FORMAT.to_string())]);
    let (partial, file) = (to.join("model.safetensors.partial"), to.join("model.safetensors"));
    safetensors::serialize_to_file(tensors, Some(metadata), &partial)
        .map_err(|e| Error::io(&partial, e))
        .and_then(|()| copy_descriptions(from, to))
        .and_then(|()| fs::rename(&partial, &file).map_err(|e| Error::io(&file, e)))
        .inspect_err(|_| drop(fs::remove_file(&partial)))
}

/// Copies everything of a model folder that is not weights.
fn copy_descriptions(from: &Path, to: &Path) -> Result<()> {
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        if from.join(name).is_file() {
            fs::copy(from.join(name), to.join(name)).map_err(|e| Error::io(to.join(name), e))?;
        }
    }
    Ok(())
}

use safetensors::tensor::Dtype;

/// A tensor on its way into a file.
struct View {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View {
    fn new(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        View { dtype, shape: shape.to_vec(), bytes }
    }

    fn f32(values: &[f32]) -> Self {
        View::new(Dtype::F32, &[values.len()], values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }
}

impl safetensors::View for View {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.bytes).into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
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
        let (scale, q) = quantize_group(&values).unwrap();
        assert_eq!((scale.to_f32(), q[0], q[1], q[2], q[3]), (1.0, 127, -63, 0, 0));
        assert_eq!(quantize_group(&[0.0; GROUP]).unwrap(), (f16::ZERO, [0; GROUP]));
        for bad in [f32::NAN, f32::INFINITY, 1e9] {
            assert!(quantize_group(&[bad; GROUP]).is_none(), "{bad}");
        }
        // Far below f16's normal range the scale is coarse, but no value is clipped by more than half a step.
        for tiny in [1e-4, 3e-6, 2e-5] {
            let (scale, q) = quantize_group(&[tiny; GROUP]).unwrap();
            assert!((scale.to_f32() * f32::from(q[0]) - tiny).abs() <= 0.5 * scale.to_f32(), "{tiny}");
        }
    }
}
