//! Products with float weights: `out = x W^T`, W in f32, f16 or bf16, row-major as in the file.
//!
//! ```text
//! out[r][o] = sum(lanes),   lanes[j] = sum over k = j, j + 16, j + 32, ... of x[r][k] * w[o][k]
//! ```
//!
//! Each lane adds in ascending order of k with fused multiply-adds, so the value of `out[r][o]` does not
//! depend on how rows and outputs are tiled, on the thread count or on the other rows. That is why a
//! general matrix library is not used here: those choose their blocking, and with it their sums, by the
//! number of rows, and a request's text would change with its neighbours.
//!
//! bf16 weights are not multiplied by `vdpbf16ps`: it rounds x to bf16 and takes denormal values for zero, so its
//! results differ from those of other instruction sets.
//!
//! A task computes some outputs for as many rows of x as half of a small L2 cache holds. Its register tile goes down
//! the rows first. The weights of a tile's outputs come from memory once, while the next tile's are prefetched; for
//! the other rows they come from the L1 or L2 cache. Packing was tried: copying rows and weights in the order of
//! their use, in pieces of K, so that both are read from the L1 cache. It costs more than it gains: 0.75 of the peak
//! instead of 0.85 (bf16, 512 rows of 2,048).

use half::{bf16, f16};

use super::Epilogue;
use super::pool::{Disjoint, Pool};
use crate::isa::{Isa, Kernel, LANES, Simd};
use crate::weights::slab::Plain;

/// A float type of stored weights.
pub(crate) trait Element: Plain {
    /// The value 0.
    const ZERO: Self;
    /// Reads 16 values, widened to f32.
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
}

impl Element for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(p) }
    }
}

impl Element for bf16 {
    const ZERO: bf16 = bf16::ZERO;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const bf16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(p) }
    }
}

impl Element for f16 {
    const ZERO: f16 = f16::ZERO;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_f16(p) }
    }
}

/// Reads 16 values from index `at` on; lanes after the slice's end are zero.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn load_at<S: Simd, T: Element>(values: &[T], at: usize) -> S::V {
    if at + LANES <= values.len() {
        // SAFETY: 16 values lie inside the slice.
        unsafe { T::load::<S>(values.as_ptr().add(at)) }
    } else {
        let mut padded = [T::ZERO; LANES];
        padded[..values.len() - at].copy_from_slice(&values[at..]);
        // SAFETY: 16 values.
        unsafe { T::load::<S>(padded.as_ptr()) }
    }
}

/// How many bytes ahead in a row weights are prefetched, in addition to those of the next tile: 13 % more bytes a
/// second with f32, no gain with bf16.
const NEAR: usize = 1 << 10;

/// Some consecutive outputs, for some rows of x.
struct Tile<'a, T> {
    x: &'a [f32], // (n, cols)
    w: &'a [T],   // (outputs, cols)
    cols: usize,
    bias: Option<&'a [f32]>,    // (outputs)
    out: &'a Disjoint<'a, f32>, // (n, stride)
    stride: usize,
    first: usize, // index in `out` of row 0 and output 0
    epilogue: Epilogue,
}

impl<T: Element> Tile<'_, T> {
    fn outputs(&self) -> usize {
        self.w.len() / self.cols
    }

    /// Computes `R` rows from `r` on and `C` outputs from `o` on, or fewer outputs at the end.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; the rows and the first output exist; no other task writes these outputs.
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize, const C: usize>(&self, r: usize, o: usize) {
        let whole = self.cols - self.cols % LANES;
        let outputs = C.min(self.outputs() - o);
        let mut x = [&self.x[..0]; R];
        for i in 0..R {
            x[i] = &self.x[(r + i) * self.cols..][..self.cols];
        }
        // After the last output, the last is computed again: one register tile serves all numbers of outputs.
        let mut w = [&self.w[..0]; C];
        for j in 0..C {
            w[j] = &self.w[(o + j.min(outputs - 1)) * self.cols..][..self.cols];
        }
        // SAFETY: instructions and `out` by the caller's promise; `k` stays below `cols`; a prefetch may go anywhere.
        unsafe {
            let mut acc = [[S::splat(0.0); C]; R];
            let mut wk = [S::splat(0.0); C];
            for k in (0..whole).step_by(LANES) {
                for j in 0..C {
                    let at = w[j].as_ptr().add(k);
                    wk[j] = T::load::<S>(at);
                    if r == 0 {
                        S::prefetch(at.wrapping_byte_add(NEAR));
                        S::prefetch(at.wrapping_add(C * self.cols));
                    }
                }
                for i in 0..R {
                    let xk = S::load(x[i].as_ptr().add(k));
                    for j in 0..C {
                        acc[i][j] = S::fma(xk, wk[j], acc[i][j]);
                    }
                }
            }
            if whole < self.cols {
                for j in 0..C {
                    wk[j] = load_at::<S, T>(w[j], whole);
                }
                for i in 0..R {
                    let xk = load_at::<S, f32>(x[i], whole);
                    for j in 0..C {
                        acc[i][j] = S::fma(xk, wk[j], acc[i][j]);
                    }
                }
            }
            for i in 0..R {
                let sums = S::sums(acc[i]);
                let out = self.out.slice(self.first + (r + i) * self.stride + o, outputs);
                for j in 0..outputs {
                    let sum = sums[j] + self.bias.map_or(0.0, |b| b[o + j]);
                    out[j] = if self.epilogue == Epilogue::Add { out[j] + sum } else { sum };
                }
            }
        }
    }

    /// Computes all rows and outputs: `C` outputs at a time, and the rows in blocks of about equal size, at most `R`.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; no other task writes these outputs.
    #[inline(always)]
    unsafe fn all<S: Simd, const R: usize, const C: usize>(&self) {
        let n = self.x.len() / self.cols;
        let blocks = n.div_ceil(R);
        for o in (0..self.outputs()).step_by(C) {
            for block in 0..blocks {
                let (r, end) = (block * n / blocks, (block + 1) * n / blocks);
                // SAFETY: the rows from `r` to `end` and output `o` exist.
                unsafe {
                    match end - r {
                        1 => self.block::<S, 1, C>(r, o),
                        2 if R >= 2 => self.block::<S, 2, C>(r, o),
                        3 if R >= 3 => self.block::<S, 3, C>(r, o),
                        4 if R >= 4 => self.block::<S, 4, C>(r, o),
                        5 if R >= 5 => self.block::<S, 5, C>(r, o),
                        6 if R >= 6 => self.block::<S, 6, C>(r, o),
                        rows => unreachable!("{rows} rows in a block of 1 to {R}"),
                    }
                }
            }
        }
    }
}

impl<T: Element> Kernel for Tile<'_, T> {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `matmul` gives each task outputs of its own.
        unsafe {
            // As many sums as fit in the registers beside one vector of each weight row and one of x.
            if S::VECTORS >= 32 { self.all::<S, 6, 4>() } else { self.all::<S, 2, 2>() }
        }
    }
}

/// Up to this many rows, tasks are small (`TASK_FEW` outputs), so that threads share the work more evenly.
const FEW: usize = 8;
/// Outputs of a task with at most `FEW` rows; a multiple of the register tile's.
const TASK_FEW: usize = 16;
/// Outputs of a task with more rows; a multiple of the register tile's.
const TASK: usize = 64;
/// About how many bytes of x a task reads: half of a small L2 cache.
const TASK_BYTES: usize = 1 << 18;

/// `out[.., first..first + outputs] (+)= x W^T + bias`.
///
/// `x` is `(n, cols)`, `w` `(outputs, cols)`, `out` `(n, stride)`, `bias` `(outputs)`.
pub(crate) fn matmul<T: Element>(
    pool: &mut Pool,
    isa: Isa,
    out: (&mut [f32], usize, usize), // values, stride, first
    x: &[f32],
    w: &[T],
    cols: usize,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
) {
    let (n, outputs) = (x.len() / cols, w.len() / cols);
    let (values, stride, first) = out;
    assert!(first + outputs <= stride && n * stride <= values.len());
    let disjoint = Disjoint::new(values);
    let share = if n <= FEW { TASK_FEW } else { TASK };
    let down = n.div_ceil((TASK_BYTES / size_of::<f32>() / cols).max(FEW));
    // Tasks that read the same weights follow each other.
    pool.run(down * outputs.div_ceil(share), |task| {
        let rows = task % down * n / down..(task % down + 1) * n / down;
        let range = task / down * share..outputs.min((task / down + 1) * share);
        let tile = Tile {
            x: &x[rows.start * cols..rows.end * cols],
            w: &w[range.start * cols..range.end * cols],
            cols,
            bias: bias.map(|b| &b[range.clone()]),
            out: &disjoint,
            stride,
            first: rows.start * stride + first + range.start,
            epilogue,
        };
        // SAFETY: each task has its own part of `out`.
        unsafe { isa.dispatch(tile) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let hash = |i: u32| (i.wrapping_mul(2_654_435_761) ^ seed).wrapping_mul(0x85EB_CA6B) >> 9;
        (0..n as u32).map(|i| (hash(i) % 4_001) as f32 / 1_000.0 - 2.0).collect()
    }

    fn check<T: Element>(convert: impl Fn(f32) -> T, back: impl Fn(T) -> f32) {
        for (n, outputs, cols) in
            [(1, 1, 1), (1, 5, 20), (3, 17, 33), (9, 70, 64), (4, 6, 100), (17, 3, 9_000)]
        {
            let (x, bias) = (noise(n * cols, 1), noise(outputs, 3));
            let w: Vec<T> = noise(outputs * cols, 2).into_iter().map(&convert).collect();
            let run = |isa, threads, rows: std::ops::Range<usize>, epilogue| {
                let mut pool = Pool::new(threads).unwrap();
                let mut out = vec![0.5; rows.len() * (outputs + 2)];
                let x = &x[rows.start * cols..rows.end * cols];
                matmul(&mut pool, isa, (&mut out, outputs + 2, 1), x, &w, cols, Some(&bias), epilogue);
                out
            };
            let want = run(Isa::all()[0], 1, 0..n, Epilogue::Store);
            for r in 0..n {
                assert_eq!((want[r * (outputs + 2)], want[(r + 1) * (outputs + 2) - 1]), (0.5, 0.5));
                for o in 0..outputs {
                    let products =
                        (0..cols).map(|k| f64::from(x[r * cols + k]) * f64::from(back(w[o * cols + k])));
                    let exact = products.sum::<f64>() + f64::from(bias[o]);
                    assert!(
                        (f64::from(want[r * (outputs + 2) + 1 + o]) - exact).abs()
                            < 1e-6 * (100 + cols) as f64
                    );
                }
            }
            for isa in Isa::all() {
                assert_eq!(run(isa, 3, 0..n, Epilogue::Store), want, "{}", isa.name());
                for r in 0..n {
                    let alone = run(isa, 1, r..r + 1, Epilogue::Store);
                    assert_eq!(alone, want[r * (outputs + 2)..(r + 1) * (outputs + 2)], "row {r} alone");
                }
                let added = run(isa, 1, 0..n, Epilogue::Add);
                assert_eq!(added[1], 0.5 + want[1]);
            }
        }
    }

    #[test]
    fn all_instruction_sets_threads_and_batches_give_the_same_bits() {
        check(|x| x, |x: f32| x);
        check(bf16::from_f32, bf16::to_f32);
        check(f16::from_f32, f16::to_f32);
    }
}
