//! Weights on the host, in the packed layout of the kernels (`cuda/gemm.cuh`).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use half::{bf16, f16};

use super::{ALIGN, STRIP, TILE_ROWS};
use crate::error::{Error, Result};
use crate::norm::GROUP;

/// The column of value `i` of a lane: of 16 columns a lane has `2 t, 2 t + 1, 2 t + 8, 2 t + 9`, where `t = lane % 4`.
fn column(lane: usize, i: usize) -> usize {
    lane % 4 * 2 + i % 2 + i / 2 * 8
}

/// The order in which the rows of a weight are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As they are.
    Plain,
    /// For [`super::Function::SwiGlu`] and `GeGlu`. The first half of the rows are gates, the second half ups. They are
    /// packed as 8 gates, then their 8 ups.
    Gated,
}

/// Rows of a packed weight, a multiple of 128.
pub(super) fn packed_rows(rows: usize, order: RowOrder) -> usize {
    match order {
        RowOrder::Plain => rows.next_multiple_of(TILE_ROWS),
        RowOrder::Gated => 2 * (rows / 2).next_multiple_of(TILE_ROWS / 2),
    }
}

/// The row of the weight that packed row `i` holds; none for padding.
pub(super) fn source_row(i: usize, rows: usize, order: RowOrder) -> Option<usize> {
    let row = match order {
        RowOrder::Plain => i,
        RowOrder::Gated => {
            let gate = i / 16 * 8 + i % 8;
            let half = rows / 2;
            if gate >= half {
                return None;
            }
            gate + if i % 16 < 8 { 0 } else { half }
        }
    };
    (row < rows).then_some(row)
}

/// Bytes on the device of a packed int8 weight `(rows, cols)` with its scales.
pub fn int8_bytes(rows: usize, cols: usize, order: RowOrder) -> u64 {
    let size = packed_rows(rows, order) as u64 * cols.next_multiple_of(ALIGN) as u64;
    size + size / GROUP as u64 * size_of::<f16>() as u64
}

/// Bytes on the device of a packed bf16 weight `(rows, cols)`.
pub fn bf16_bytes(rows: usize, cols: usize, order: RowOrder) -> u64 {
    2 * packed_rows(rows, order) as u64 * cols.next_multiple_of(ALIGN) as u64
}

/// Bytes on the device of a packed rotated weight `(rows, cols)` with its scales.
pub fn rotated_bytes(rows: usize, cols: usize, order: RowOrder) -> u64 {
    let rows = packed_rows(rows, order) as u64;
    rows * cols.next_multiple_of(ALIGN) as u64 + rows * size_of::<f32>() as u64
}

/// Columns that are rotated together.
const ROTATED: usize = 64;

/// Multiplies each 64 values by the Walsh-Hadamard matrix, divided by 8 so that the product is orthonormal.
fn rotate(values: &mut [f32]) {
    for block in values.chunks_exact_mut(ROTATED) {
        block.iter_mut().for_each(|x| *x *= 0.125); // first, where it rounds nothing
        for distance in [1, 2, 4, 8, 16, 32] {
            for pairs in block.chunks_exact_mut(2 * distance) {
                let (a, b) = pairs.split_at_mut(distance);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
        }
    }
}

/// Writes a row as int8 to `q` and gives its scale; none if a value is not finite.
fn quantize(values: &[f32], q: &mut [i8]) -> Option<f32> {
    // As bits, NaN and infinity are larger than any finite number.
    let largest = f32::from_bits(values.iter().fold(0, |largest, x| largest.max(x.abs().to_bits())));
    if !largest.is_finite() {
        return None;
    }
    let factor = 127.0 / largest;
    if !factor.is_finite() {
        q.fill(0);
        return Some(0.0);
    }
    // At 1.5 * 2^23 an f32 has no bits for a fraction: the sum is rounded to nearest even, and its lowest byte is the
    // integer. round_ties_even would be a function call for each value without SSE4.1.
    const WHOLE: f32 = 12_582_912.0;
    for (q, x) in q.iter_mut().zip(values) {
        *q = (x * factor + WHOLE).to_bits() as i8;
    }
    Some(largest / 127.0)
}

/// Writes row `r`, `(K)` int8, to its places in a packed strip.
fn pack_row(strip: &mut [i8], r: usize, row: &[i8]) {
    for (group, values) in row.chunks_exact(GROUP).enumerate() {
        for (lane, half) in (0..4).flat_map(|t| [(r % 8 * 4 + t, 0), (r % 8 * 4 + t, 1)]) {
            let to = ((group * 32 + lane) * 2 + half) * 8 + r / 8 * 4;
            for i in 0..4 {
                strip[to + i] = values[half * 16 + column(lane, i)];
            }
        }
    }
}

/// Calls `f(strip, its values, its scales)` for each strip, on up to `threads` threads. If the system refuses to start
/// some of them, the others do all the work.
fn each_strip<T: Send, S: Send>(
    threads: usize,
    n_strips: usize,
    values: &mut [T],
    scales: &mut [S],
    f: impl Fn(usize, &mut [T], &mut [S]) + Sync,
) {
    if n_strips == 0 || values.is_empty() {
        return;
    }
    let part = n_strips.div_ceil(threads.max(1));
    let (value_len, scale_len) = (values.len() / n_strips, scales.len() / n_strips);
    let parts = values.chunks_mut(part * value_len).zip(scales.chunks_mut(part * scale_len));
    let parts = Mutex::new(parts.enumerate());
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((i, (values, scales))) = next() {
            let strips = values.chunks_mut(value_len).zip(scales.chunks_mut(scale_len));
            strips.enumerate().for_each(|(j, (values, scales))| f(i * part + j, values, scales));
        }
    };
    thread::scope(|scope| {
        for _ in 1..n_strips.div_ceil(part) {
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
}

/// A weight on the host, in the packed layout of the kernels (`cuda/gemm.cuh`).
#[derive(Debug, Clone, PartialEq)]
pub enum Packed {
    /// A value is `q * scale`.
    Int8 {
        /// `(rows / 16, K / 32, 32, 16)`.
        q: Vec<i8>,
        /// `(rows / 16, K / 32, 8, 2)`.
        scale: Vec<f16>,
    },
    /// `(rows / 16, K / 32, 2, 32, 8)`.
    Bf16(Vec<bf16>),
    /// Each 64 columns were multiplied by the Walsh-Hadamard matrix and divided by 8; a value of the result is
    /// `q * scale`.
    Rotated {
        /// As of `Int8`.
        q: Vec<i8>,
        /// `(rows)`.
        scale: Vec<f32>,
    },
}

impl Packed {
    /// Packs an int8 weight `(rows, cols)` on up to `threads` threads. `row(i, q, scale)` fills in row `i`: `cols`
    /// values, and a scale for each 32 of them. What it does not write is zero.
    pub fn int8(
        rows: usize,
        cols: usize,
        order: RowOrder,
        threads: usize,
        row: impl Fn(usize, &mut [i8], &mut [f16]) + Sync,
    ) -> Packed {
        let (n_strips, k) = (packed_rows(rows, order) / STRIP, cols.next_multiple_of(ALIGN));
        let groups = k / GROUP;
        let mut q = vec![0i8; n_strips * STRIP * k];
        let mut scale = vec![f16::ZERO; n_strips * STRIP * groups];
        each_strip(threads, n_strips, &mut q, &mut scale, |strip, q, scale| {
            let (mut q_row, mut scale_row) = (vec![0i8; k], vec![f16::ZERO; groups]);
            for r in 0..STRIP {
                let Some(source) = source_row(strip * STRIP + r, rows, order) else { continue };
                q_row.fill(0);
                scale_row.fill(f16::ZERO);
                row(source, &mut q_row[..cols], &mut scale_row[..cols.div_ceil(GROUP)]);
                pack_row(q, r, &q_row);
                for (group, value) in scale_row.iter().enumerate() {
                    scale[group * STRIP + r % 8 * 2 + r / 8] = *value;
                }
            }
        });
        Packed::Int8 { q, scale }
    }

    /// Packs a bf16 weight `(rows, cols)` on up to `threads` threads; `row(i, values)` fills in `cols` values of row
    /// `i`.
    pub fn bf16(
        rows: usize,
        cols: usize,
        order: RowOrder,
        threads: usize,
        row: impl Fn(usize, &mut [bf16]) + Sync,
    ) -> Packed {
        let (n_strips, k) = (packed_rows(rows, order) / STRIP, cols.next_multiple_of(ALIGN));
        let mut values = vec![bf16::ZERO; n_strips * STRIP * k];
        let mut no_scales = vec![(); n_strips];
        each_strip(threads, n_strips, &mut values, &mut no_scales, |strip, to, _| {
            let mut from = vec![bf16::ZERO; k];
            for r in 0..STRIP {
                let Some(source) = source_row(strip * STRIP + r, rows, order) else { continue };
                from.fill(bf16::ZERO);
                row(source, &mut from[..cols]);
                for (piece, from) in from.chunks_exact(16).enumerate() {
                    for lane in r % 8 * 4..r % 8 * 4 + 4 {
                        let at = (piece * 32 + lane) * 8 + r / 8 * 4;
                        (0..4).for_each(|i| to[at + i] = from[column(lane, i)]);
                    }
                }
            }
        });
        Packed::Bf16(values)
    }

    /// Rotates, quantises and packs a weight `(rows, cols)` on up to `threads` threads. `row(i, values)` fills in
    /// `cols` values of row `i`. What it does not write is zero.
    ///
    /// # Errors
    /// [`Error::Unsupported`], with the number of the row, if a value is not finite, before or after the rotation.
    pub fn rotated(
        rows: usize,
        cols: usize,
        order: RowOrder,
        threads: usize,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Packed> {
        let (n_strips, k) = (packed_rows(rows, order) / STRIP, cols.next_multiple_of(ALIGN));
        let mut q = vec![0i8; n_strips * STRIP * k];
        let mut scale = vec![0f32; n_strips * STRIP];
        let first_bad = AtomicUsize::new(usize::MAX);
        each_strip(threads, n_strips, &mut q, &mut scale, |strip, q, scale| {
            let (mut values, mut q_row) = (vec![0f32; k], vec![0i8; k]);
            for r in 0..STRIP {
                let Some(source) = source_row(strip * STRIP + r, rows, order) else { continue };
                values.fill(0.0);
                row(source, &mut values[..cols]);
                rotate(&mut values);
                match quantize(&values, &mut q_row) {
                    Some(row_scale) => scale[r] = row_scale,
                    None => _ = first_bad.fetch_min(source, Ordering::Relaxed),
                }
                pack_row(q, r, &q_row);
            }
        });
        match first_bad.into_inner() {
            usize::MAX => Ok(Packed::Rotated { q, scale }),
            row => {
                let reason = format!("row {row} of the weight is not finite");
                Err(Error::Unsupported { operation: "Packed::rotated", reason })
            }
        }
    }
}
