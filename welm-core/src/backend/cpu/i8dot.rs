//! Products with quantised weights and activations: sums inside a group are integers.
//!
//! ```text
//! y[r][o] = sum over g of (float(dot_g(q[o], x[r])) * (sw[o][g] * sx[r][g])),   fused, in ascending g
//! ```
//!
//! with the activations of [`super::quantize`], `g = k / 32`. The dot product of a group is exact, and the f32
//! sum over groups has one order, whatever the instruction set, the tile, the thread or the other rows: equal
//! bits everywhere.
//!
//! int8 weights are stored with an offset of 128 (see `weights::int8`), so a group's sum starts at
//! `-128 * sum(x)` instead of at zero. Weights of four bits (see `weights::int4`) are unsigned as they are, and
//! `w = sw * q + min` adds `min[o][g] * (sx[r][g] * sum(x))` to each group.
//!
//! A task is sixteen outputs for all rows, or several of these: up to eight rows of activations meet each 64 bytes
//! of weights in registers, so that a prompt is bound by `vpdpbusd` (eight of ten operations of the inner loop), and
//! the sixteen rows' weights, read from memory once, are still in the second cache for the next eight. While they
//! are multiplied, the next sixteen are fetched.

use half::f16;

use super::Epilogue;
use super::isa::{GROUP, Isa, Kernel, LANES, Simd};
use super::pool::{Disjoint, Pool};
use super::quantize::{BLOCK, Quantized};
use crate::weights::int4::{Packed4, TILE4};
use crate::weights::int8::{Packed, TILE, tiles};

/// Weights that many rows of activations share: half of a small second cache.
const SHARED_BYTES: usize = 1 << 18;

/// Quantised weights `(rows, cols)` in tiles of 16 rows and 32 columns.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    rows: usize,
    cols: usize,
    weight: &'a [u8], // (rows / 16, cols / 32, 512 or 256)
    scale: &'a [f16], // (rows / 16, cols / 32, 16)
    min: &'a [f16],   // as `scale`; empty for int8
}

impl<'a> From<&'a Packed> for Tiles<'a> {
    fn from(w: &'a Packed) -> Self {
        Tiles { rows: w.rows, cols: w.cols, weight: &w.weight, scale: &w.scale, min: &[] }
    }
}

impl<'a> From<&'a Packed4> for Tiles<'a> {
    fn from(w: &'a Packed4) -> Self {
        Tiles { rows: w.rows, cols: w.cols, weight: &w.weight, scale: &w.scale, min: &w.min }
    }
}

/// Some tile rows, 16 outputs each, for all activation rows.
struct TileRows<'a> {
    w: &'a [u8],      // (n_tiles, groups, 512 or 256)
    scale: &'a [f16], // (n_tiles, groups, 16)
    min: &'a [f16],   // (n_tiles, groups, 16), or empty: int8
    x: &'a Quantized,
    bias: Option<&'a [f32]>,    // (outputs)
    outputs: usize,             // at most 16 a tile row
    out: &'a Disjoint<'a, f32>, // (n, stride)
    stride: usize,
    first: usize, // column of output 0
    epilogue: Epilogue,
}

/// Weights that are fetched into the second cache while a group is multiplied.
#[derive(Clone, Copy)]
struct Fetch {
    at: *const u8,
    /// Cache lines a group.
    lines: usize,
}

/// Bytes that a processor fetches at once.
const LINE: usize = 64;

/// How far ahead weights are fetched that are used once. Into the first cache, or into both, was never better; of 3 to
/// 34 KiB into the second, 4 to 16 were alike, and 10 to 25 % better than nothing.
const FAR: usize = 8 << 10;

impl TileRows<'_> {
    /// Tile row `t` for the `R` rows from `r`, which lie in one block.
    ///
    /// # Safety
    /// The CPU has `S`; the rows and the tile row exist; no other task has these outputs.
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize, const WIDE: bool, const FOUR: bool>(
        &self,
        t: usize,
        r: usize,
        fetch: Fetch,
    ) {
        let (x, groups) = (self.x, self.x.groups);
        let tile = if FOUR { TILE4 } else { TILE };
        let (w, scales) = (t * groups * tile, t * groups * LANES);
        debug_assert!(self.w.len() >= w + groups * tile && self.scale.len() >= scales + groups * LANES);
        debug_assert!(!FOUR || self.min.len() >= scales + groups * LANES);
        debug_assert!(self.bias.is_none_or(|bias| bias.len() == self.outputs));
        debug_assert!(R <= BLOCK - r % BLOCK && x.at(r, 0) + (groups - 1) * BLOCK + R <= x.lo.len());
        // SAFETY: instructions by the caller's promise; offsets stay inside by the assertions above, which
        // `matmul` and `Quantized` establish. A prefetch may go anywhere.
        unsafe {
            let mut acc = [S::splat(0.0); R];
            for g in 0..groups {
                let w = self.w.as_ptr().add(w + g * tile);
                for line in 0..fetch.lines {
                    S::prefetch(fetch.at.wrapping_add((g * fetch.lines + line) * LINE));
                }
                let scale = self.scale.as_ptr().add(scales + g * LANES);
                let at = x.at(r, g);
                let mut dot = Self::dots::<S, R, FOUR>(w, x.lo.as_ptr().add(at), x.lo_start.as_ptr().add(at));
                if WIDE {
                    let hi = Self::dots::<S, R, FOUR>(w, x.hi.as_ptr().add(at), x.hi_start.as_ptr().add(at));
                    for i in 0..R {
                        dot[i] = S::join(hi[i], dot[i]);
                    }
                }
                let sw = S::load_f16(scale);
                for i in 0..R {
                    let scale = S::mul(sw, S::splat(*x.scale.get_unchecked(at + i)));
                    acc[i] = S::fma(S::to_f32(dot[i]), scale, acc[i]);
                }
                if FOUR {
                    let min = S::load_f16(self.min.as_ptr().add(scales + g * LANES));
                    for i in 0..R {
                        acc[i] = S::fma(min, S::splat(*x.sum.get_unchecked(at + i)), acc[i]);
                    }
                }
            }
            let column = t * LANES;
            let outputs = LANES.min(self.outputs - column);
            for i in 0..R {
                let out = self.out.slice((r + i) * self.stride + self.first + column, outputs);
                if outputs == LANES {
                    let mut y = acc[i];
                    if let Some(bias) = self.bias {
                        y = S::add(y, S::load(bias.as_ptr().add(column)));
                    }
                    if self.epilogue == Epilogue::Add {
                        y = S::add(S::load(out.as_ptr()), y);
                    }
                    S::store(out.as_mut_ptr(), y);
                    continue;
                }
                let mut y = [0.0; LANES];
                S::store(y.as_mut_ptr(), acc[i]);
                for (o, out) in out.iter_mut().enumerate() {
                    let sum = self.bias.map_or(y[o], |b| y[o] + b[column + o]);
                    *out = if self.epilogue == Epilogue::Add { *out + sum } else { sum };
                }
            }
        }
    }

    /// One group's dot products with one plane of `R` rows.
    ///
    /// # Safety
    /// The CPU has `S`; a tile of weights, `R` groups of activations and `R` starts lie behind the pointers.
    #[inline(always)] // a closure would be a function of its own, without the instructions
    unsafe fn dots<S: Simd, const R: usize, const FOUR: bool>(
        w: *const u8,
        plane: *const [i8; GROUP],
        start: *const i32,
    ) -> [S::I; R] {
        let (mut values, mut starts) = ([plane.cast(); R], [0; R]);
        for i in 0..R {
            // SAFETY: the caller's promise.
            unsafe {
                values[i] = plane.add(i).cast();
                starts[i] = *start.add(i);
            }
        }
        // SAFETY: as above.
        unsafe { if FOUR { S::dot_group4::<R>(w, values) } else { S::dot_group::<R>(w, values, starts) } }
    }

    /// # Safety
    /// As [`TileRows::block`], for all of them.
    #[inline(always)]
    unsafe fn all<S: Simd, const WIDE: bool, const FOUR: bool>(&self) {
        let (n, groups) = (self.x.n, self.x.groups);
        let tiles = self.outputs.div_ceil(LANES);
        let tile_bytes = self.w.len() / tiles;
        let tile_lines = tile_bytes / groups / LINE;
        // Activations of many rows come from the last cache; several tile rows share them, as many as the second
        // holds. Each block of rows fetches its share of the tile rows behind those.
        let (together, lines, ahead) = if n <= S::ROWS {
            (tiles, tile_lines, FAR)
        } else {
            let together = (SHARED_BYTES / tile_bytes).clamp(1, tiles);
            (together, tile_lines.div_ceil(n.div_ceil(S::ROWS)), together * tile_bytes)
        };
        for first in (0..tiles).step_by(together) {
            let mut fetched = 0;
            for r in (0..n).step_by(S::ROWS) {
                for t in first..tiles.min(first + together) {
                    let at = self.w.as_ptr().wrapping_add(t * tile_bytes + ahead + fetched);
                    let fetch = Fetch { at, lines: if fetched < tile_bytes { lines } else { 0 } };
                    // SAFETY: `r` and `t` stay below their ends; `ROWS` divides a block.
                    unsafe {
                        match S::ROWS.min(n - r) {
                            1 => self.block::<S, 1, WIDE, FOUR>(t, r, fetch),
                            2 if S::ROWS >= 2 => self.block::<S, 2, WIDE, FOUR>(t, r, fetch),
                            3 if S::ROWS >= 3 => self.block::<S, 3, WIDE, FOUR>(t, r, fetch),
                            4 if S::ROWS >= 4 => self.block::<S, 4, WIDE, FOUR>(t, r, fetch),
                            5 if S::ROWS >= 5 => self.block::<S, 5, WIDE, FOUR>(t, r, fetch),
                            6 if S::ROWS >= 6 => self.block::<S, 6, WIDE, FOUR>(t, r, fetch),
                            7 if S::ROWS >= 7 => self.block::<S, 7, WIDE, FOUR>(t, r, fetch),
                            8 if S::ROWS >= 8 => self.block::<S, 8, WIDE, FOUR>(t, r, fetch),
                            _ => unreachable!("a block has 1 to {} rows", S::ROWS),
                        }
                    }
                }
                fetched += groups * lines * LINE;
            }
        }
    }
}

impl Kernel for TileRows<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `matmul` gives ranges that exist and outputs of its own to each task.
        unsafe {
            match (self.x.wide, self.min.is_empty()) {
                (false, true) => self.all::<S, false, false>(),
                (true, true) => self.all::<S, true, false>(),
                (false, false) => self.all::<S, false, true>(),
                (true, false) => self.all::<S, true, true>(),
            }
        }
    }
}

/// `out (+)= x W^T + bias`; `out` is `(n, w.rows)`, `bias` `(w.rows)`.
pub(crate) fn matmul<'a>(
    pool: &mut Pool,
    isa: Isa,
    out: &mut [f32],
    x: &Quantized,
    w: impl Into<Tiles<'a>>,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
) {
    let w = w.into();
    let (down, across) = tiles(w.rows, w.cols);
    let tile = if w.min.is_empty() { TILE } else { TILE4 };
    assert_eq!(x.groups, across, "activations and weights have the same groups");
    assert!(x.n * w.rows <= out.len() && w.weight.len() == down * across * tile);
    assert!(w.scale.len() == down * across * LANES && (w.min.is_empty() || w.min.len() == w.scale.len()));
    let disjoint = Disjoint::new(out);
    pool.run_ranges(down, |range| {
        let outputs = range.start * LANES..w.rows.min(range.end * LANES);
        let scales = range.start * across * LANES..range.end * across * LANES;
        let tile_rows = TileRows {
            w: &w.weight[range.start * across * tile..range.end * across * tile],
            scale: &w.scale[scales.clone()],
            min: if w.min.is_empty() { &[] } else { &w.min[scales] },
            x,
            bias: bias.map(|b| &b[outputs.clone()]),
            outputs: outputs.len(),
            out: &disjoint,
            stride: w.rows,
            first: outputs.start,
            epilogue,
        };
        // SAFETY: each tile row is computed once, and has its own columns of `out`.
        unsafe { isa.dispatch(tile_rows) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> impl Iterator<Item = u32> {
        (0..n as u32).map(move |i| (i.wrapping_mul(2_654_435_761) ^ seed).wrapping_mul(0x85EB_CA6B) >> 9)
    }

    /// A matrix of any int8 values and scales, without going through quantisation.
    fn matrix(rows: usize, cols: usize, extreme: bool) -> Packed {
        let (down, across) = tiles(rows, cols);
        let weight: Vec<u8> = noise(down * across * TILE, 5)
            .map(|x| if extreme { [1, 255][x as usize % 2] } else { x as u8 })
            .collect();
        let scale: Vec<f16> =
            noise(down * across * LANES, 6).map(|x| f16::from_f32((x % 100) as f32 / 5_000.0)).collect();
        Packed { rows, cols, weight: weight.into(), scale: scale.into() }
    }

    /// As `matrix`, of four bits.
    fn matrix4(rows: usize, cols: usize, extreme: bool) -> Packed4 {
        let Packed { weight, scale, .. } = matrix(rows, cols, extreme);
        let min = noise(scale.len(), 8).map(|x| f16::from_f32((x % 100) as f32 / -400.0)).collect();
        let weight = weight.chunks(2).map(|w| if extreme { [0, 255][w[0] as usize % 2] } else { w[0] });
        Packed4 { rows, cols, weight: weight.collect(), scale: scale.to_vec(), min }
    }

    fn check(x: &[f32], n: usize, w: Tiles, dense: &[f32], bias: &[f32], wide: bool) {
        let (rows, cols) = (w.rows, w.cols);
        let run = |isa: Isa, threads, range: std::ops::Range<usize>| {
            let mut pool = Pool::new(threads).unwrap();
            let mut q = Quantized::new(n + 1, cols + 40).unwrap();
            q.fill(&mut pool, isa, &x[range.start * cols..range.end * cols], cols, wide);
            let mut out = vec![0.0; range.len() * rows];
            matmul(&mut pool, isa, &mut out, &q, w, Some(bias), Epilogue::Store);
            out
        };
        let want = run(Isa::all()[0], 1, 0..n);
        for (i, &y) in want.iter().enumerate() {
            let (r, o) = (i / rows, i % rows);
            let pairs = x[r * cols..][..cols].iter().zip(&dense[o * cols..][..cols]);
            let exact = pairs.clone().map(|(a, b)| f64::from(a * b)).sum::<f64>() + f64::from(bias[o]);
            // Half a quantisation step of each activation, times its weight.
            let step = if wide { 2.9 / 65_000.0 } else { 3.0 / 254.0 };
            let bound = pairs.map(|(_, b)| f64::from(b.abs()) * step).sum::<f64>() + 2e-3;
            assert!((f64::from(y) - exact).abs() <= bound, "{y} {exact} {bound} wide {wide}");
        }
        for isa in Isa::all() {
            assert_eq!(run(isa, 3, 0..n), want, "{} wide {wide}", isa.name());
            for r in 0..n {
                let alone = run(isa, 1, r..r + 1);
                assert_eq!(alone, want[r * rows..(r + 1) * rows], "row {r} alone");
            }
        }
    }

    #[test]
    fn all_instruction_sets_threads_and_batches_give_the_same_bits() {
        for (n, rows, cols) in [(1, 1, 1), (1, 16, 32), (3, 17, 33), (13, 40, 96), (9, 5, 200), (30, 16, 64)]
        {
            for (wide, extreme) in [(false, false), (true, false), (false, true), (true, true)] {
                let x: Vec<f32> =
                    noise(n * cols, 9)
                        .map(|x| {
                            if extreme {
                                [-3.0, 3.0][x as usize % 2]
                            } else {
                                (x % 4_001) as f32 / 700.0 - 2.8
                            }
                        })
                        .collect();
                let bias: Vec<f32> = noise(rows, 7).map(|x| (x % 100) as f32 / 50.0).collect();
                let mut dense = vec![0.0; rows * cols];
                let w = matrix(rows, cols, extreme);
                dense.chunks_mut(cols).enumerate().for_each(|(o, row)| w.row_f32(o, row));
                check(&x, n, (&w).into(), &dense, &bias, wide);
                let w = matrix4(rows, cols, extreme);
                dense.chunks_mut(cols).enumerate().for_each(|(o, row)| w.row_f32(o, row));
                check(&x, n, (&w).into(), &dense, &bias, wide);
            }
        }
    }

    #[test]
    fn values_that_are_not_finite_reach_the_output() {
        let mut pool = Pool::new(1).unwrap();
        let w = matrix(16, 32, false);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = [1.0; 32];
            x[7] = bad;
            let (mut q, mut out) = (Quantized::new(1, 32).unwrap(), vec![0.0; 16]);
            q.fill(&mut pool, Isa::all()[0], &x, 32, false);
            matmul(&mut pool, Isa::all()[0], &mut out, &q, &w, None, Epilogue::Store);
            assert!(out.iter().any(|y| !y.is_finite()));
        }
    }
}
