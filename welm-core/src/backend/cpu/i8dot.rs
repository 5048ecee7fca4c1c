//! Products with int8 weights: activations are quantised on the fly, sums inside a group are integers.
//!
//! ```text
//! x[r][k] ~ sx[r][g] * (256 * hi[r][k] + lo[r][k])        g = k / 32;   8 bits: lo only
//! y[r][o] = sum over g of (float(dot_g(q[o], x[r])) * (sw[o][g] * sx[r][g])),   fused, in ascending g
//! ```
//!
//! The dot product of a group is exact, and the f32 sum over groups has one order, whatever the instruction
//! set, the tile, the thread or the other rows: equal bits everywhere. Weights are stored with an offset of
//! 128 (see `weights::int8`), so a group's sum starts at `-128 * sum(x)` instead of at zero.
//!
//! 16-bit activations are two int8 planes: the same instruction twice, and no second kernel.

use half::f16;

use super::Epilogue;
use super::isa::{GROUP, Isa, Kernel, LANES, Simd};
use super::pool::{Disjoint, Pool};
use crate::weights::int8::{Packed, TILE, tiles};

/// Quantised rows: allocated once for the largest batch and the widest matrix.
pub(crate) struct Quantized {
    lo: Vec<i8>,        // (n, groups * 32)
    hi: Vec<i8>,        // (n, groups * 32), 16 bits only
    scale: Vec<f32>,    // (n, groups)
    lo_start: Vec<i32>, // (n, groups), -128 * sum of lo
    hi_start: Vec<i32>, // (n, groups), -128 * sum of hi
    groups: usize,
    n: usize,
    wide: bool,
}

impl Quantized {
    /// Room for `max_rows` rows of `max_cols`.
    pub(crate) fn new(max_rows: usize, max_cols: usize) -> Self {
        let groups = max_cols.div_ceil(GROUP);
        let (values, sums) = (max_rows * groups * GROUP, max_rows * groups);
        Quantized {
            lo: vec![0; values],
            hi: vec![0; values],
            scale: vec![0.0; sums],
            lo_start: vec![0; sums],
            hi_start: vec![0; sums],
            groups: 0,
            n: 0,
            wide: false,
        }
    }

    /// Bytes that `new` allocates.
    pub(crate) fn bytes(max_rows: usize, max_cols: usize) -> u64 {
        (max_rows * max_cols.div_ceil(GROUP)) as u64 * (2 * GROUP + 12) as u64
    }

    /// Quantises rows `(n, cols)`, to 16 bits if `wide`, else to 8.
    pub(crate) fn fill(&mut self, pool: &mut Pool, isa: Isa, x: &[f32], cols: usize, wide: bool) {
        (self.n, self.groups, self.wide) = (x.len() / cols, cols.div_ceil(GROUP), wide);
        let groups = self.groups;
        let (lo, hi) = (Disjoint::new(&mut self.lo), Disjoint::new(&mut self.hi));
        let scale = Disjoint::new(&mut self.scale);
        let (lo_start, hi_start) = (Disjoint::new(&mut self.lo_start), Disjoint::new(&mut self.hi_start));
        pool.run(self.n, |r| {
            let row = &x[r * cols..(r + 1) * cols];
            // SAFETY: each task has its own row of every output.
            unsafe {
                isa.dispatch(QuantizeRow {
                    x: row,
                    lo: lo.slice(r * groups * GROUP, groups * GROUP),
                    hi: hi.slice(r * groups * GROUP, groups * GROUP),
                    scale: scale.slice(r * groups, groups),
                    lo_start: lo_start.slice(r * groups, groups),
                    hi_start: hi_start.slice(r * groups, groups),
                    wide,
                });
            }
        });
    }
}

struct QuantizeRow<'a> {
    x: &'a [f32],
    lo: &'a mut [i8],
    hi: &'a mut [i8],
    scale: &'a mut [f32],
    lo_start: &'a mut [i32],
    hi_start: &'a mut [i32],
    wide: bool,
}

/// The largest 16-bit magnitude whose high plane still fits in an i8.
const WIDE: f32 = 32_512.0;

impl Kernel for QuantizeRow<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (g, values) in self.x.chunks(GROUP).enumerate() {
            let mut group = [0.0f32; GROUP];
            group[..values.len()].copy_from_slice(values);
            let largest = group.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let steps = if self.wide { WIDE } else { 127.0 };
            let inverse = if largest > 0.0 { steps / largest } else { 0.0 };
            // A value that is not finite must not vanish: it makes the scale, and so the output, NaN or inf.
            let bad = group.iter().any(|x| !x.is_finite());
            self.scale[g] = if bad { f32::NAN } else { largest / steps };
            let (lo, hi) = (&mut self.lo[g * GROUP..][..GROUP], &mut self.hi[g * GROUP..][..GROUP]);
            let (mut lo_sum, mut hi_sum) = (0i32, 0i32);
            for k in 0..GROUP {
                let q = (group[k] * inverse).round_ties_even() as i32;
                let low = q as i8; // wraps on purpose: the low byte, signed
                lo[k] = low;
                lo_sum += i32::from(low);
                if self.wide {
                    let high = (q - i32::from(low)) >> 8;
                    hi[k] = high as i8;
                    hi_sum += high;
                }
            }
            self.lo_start[g] = -128 * lo_sum;
            self.hi_start[g] = -128 * hi_sum;
        }
    }
}

/// One tile row, 16 outputs, for all activation rows.
struct TileRow<'a> {
    w: &'a [u8],      // (groups, 512)
    scale: &'a [f16], // (groups, 16)
    x: &'a Quantized,
    bias: Option<&'a [f32]>, // (outputs), at most 16
    outputs: usize,
    out: &'a Disjoint<'a, f32>, // (n, stride)
    stride: usize,
    first: usize, // column of output 0
    epilogue: Epilogue,
}

impl TileRow<'_> {
    /// # Safety
    /// The CPU has `S`; rows `r..r + R` exist; no other task has these outputs.
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize, const WIDE: bool>(&self, r: usize) {
        let (x, groups) = (self.x, self.x.groups);
        debug_assert!(self.w.len() >= groups * TILE && self.scale.len() >= groups * LANES);
        debug_assert!((r + R) * groups * GROUP <= x.lo.len());
        // SAFETY: instructions by the caller's promise; offsets stay inside by the assertions above, which
        // `matmul` and `Quantized::fill` establish.
        unsafe {
            let mut acc = [S::splat(0.0); R];
            for g in 0..groups {
                let w = self.w.as_ptr().add(g * TILE);
                let at: [usize; R] = std::array::from_fn(|i| (r + i) * groups + g);
                let lo = S::dot_group::<R>(
                    w,
                    at.map(|a| x.lo.as_ptr().add(a * GROUP)),
                    at.map(|a| *x.lo_start.get_unchecked(a)),
                );
                let dots = if WIDE {
                    let hi = S::dot_group::<R>(
                        w,
                        at.map(|a| x.hi.as_ptr().add(a * GROUP)),
                        at.map(|a| *x.hi_start.get_unchecked(a)),
                    );
                    std::array::from_fn(|i| S::join(hi[i], lo[i]))
                } else {
                    lo
                };
                let sw = S::load_f16(self.scale.as_ptr().add(g * LANES));
                for i in 0..R {
                    let scale = S::mul(sw, S::splat(*x.scale.get_unchecked(at[i])));
                    acc[i] = S::fma(S::to_f32(dots[i]), scale, acc[i]);
                }
            }
            for i in 0..R {
                let mut y = [0.0; LANES];
                S::store(y.as_mut_ptr(), acc[i]);
                let out = self.out.slice((r + i) * self.stride + self.first, self.outputs);
                for (o, out) in out.iter_mut().enumerate() {
                    let sum = y[o] + self.bias.map_or(0.0, |b| b[o]);
                    *out = if self.epilogue == Epilogue::Add { *out + sum } else { sum };
                }
            }
        }
    }

    /// # Safety
    /// As [`TileRow::block`], for all rows.
    #[inline(always)]
    unsafe fn rows<S: Simd, const WIDE: bool>(&self) {
        let mut r = 0;
        // SAFETY: `r` stays below the rows of x.
        unsafe {
            while r + 8 <= self.x.n {
                self.block::<S, 8, WIDE>(r);
                r += 8;
            }
            while r + 4 <= self.x.n {
                self.block::<S, 4, WIDE>(r);
                r += 4;
            }
            while r < self.x.n {
                self.block::<S, 1, WIDE>(r);
                r += 1;
            }
        }
    }
}

impl Kernel for TileRow<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `matmul` gives ranges that exist and outputs of its own to each task.
        unsafe { if self.x.wide { self.rows::<S, true>() } else { self.rows::<S, false>() } }
    }
}

/// `out (+)= x W^T + bias`; `out` is `(n, w.rows)`, `bias` `(w.rows)`.
pub(crate) fn matmul(
    pool: &mut Pool,
    isa: Isa,
    out: &mut [f32],
    x: &Quantized,
    w: &Packed,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
) {
    let (down, across) = tiles(w.rows, w.cols);
    assert_eq!(x.groups, across, "activations and weights have the same groups");
    assert!(x.n * w.rows <= out.len() && w.weight.len() == down * across * TILE);
    let disjoint = Disjoint::new(out);
    pool.run(down, |t| {
        let outputs = LANES.min(w.rows - t * LANES);
        let tile_row = TileRow {
            w: &w.weight[t * across * TILE..(t + 1) * across * TILE],
            scale: &w.scale[t * across * LANES..(t + 1) * across * LANES],
            x,
            bias: bias.map(|b| &b[t * LANES..][..outputs]),
            outputs,
            out: &disjoint,
            stride: w.rows,
            first: t * LANES,
            epilogue,
        };
        // SAFETY: each task has its own sixteen columns of `out`.
        unsafe { isa.dispatch(tile_row) }
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

    fn dense(w: &Packed) -> Vec<f32> {
        let mut out = vec![0.0; w.rows * w.cols];
        out.chunks_mut(w.cols).enumerate().for_each(|(o, row)| w.row_f32(o, row));
        out
    }

    #[test]
    fn all_instruction_sets_threads_and_batches_give_the_same_bits() {
        for (n, rows, cols) in [(1, 1, 1), (1, 16, 32), (3, 17, 33), (13, 40, 96), (9, 5, 200)] {
            for (wide, extreme) in [(false, false), (true, false), (false, true), (true, true)] {
                let w = matrix(rows, cols, extreme);
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
                let run = |isa: Isa, threads, range: std::ops::Range<usize>| {
                    let mut pool = Pool::new(threads).unwrap();
                    let mut q = Quantized::new(n + 1, cols + 40);
                    q.fill(&mut pool, isa, &x[range.start * cols..range.end * cols], cols, wide);
                    let mut out = vec![0.0; range.len() * rows];
                    matmul(&mut pool, isa, &mut out, &q, &w, Some(&bias), Epilogue::Store);
                    out
                };
                let want = run(Isa::all()[0], 1, 0..n);
                let dense = dense(&w);
                for (i, &y) in want.iter().enumerate() {
                    let (r, o) = (i / rows, i % rows);
                    let pairs = x[r * cols..][..cols].iter().zip(&dense[o * cols..][..cols]);
                    let exact =
                        pairs.clone().map(|(a, b)| f64::from(a * b)).sum::<f64>() + f64::from(bias[o]);
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
        }
    }

    #[test]
    fn values_that_are_not_finite_reach_the_output() {
        let mut pool = Pool::new(1).unwrap();
        let w = matrix(16, 32, false);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = [1.0; 32];
            x[7] = bad;
            let (mut q, mut out) = (Quantized::new(1, 32), vec![0.0; 16]);
            q.fill(&mut pool, Isa::all()[0], &x, 32, false);
            matmul(&mut pool, Isa::all()[0], &mut out, &q, &w, None, Epilogue::Store);
            assert!(out.iter().any(|y| !y.is_finite()));
        }
    }
}
