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

use half::{bf16, f16};

use super::Epilogue;
use super::isa::{Isa, Kernel, LANES, Simd};
use super::pool::{Disjoint, Pool};

/// A float that weights are stored in.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// The value 0.
    const ZERO: Self;
    /// Reads 16 of them.
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

/// Reads 16 values at `at`, zeros behind the slice's end.
///
/// # Safety
/// As [`Simd::load`]'s instructions.
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

/// Some consecutive outputs, for all rows of x.
struct Tile<'a, T> {
    x: &'a [f32], // (n, cols)
    w: &'a [T],   // (outputs, cols)
    cols: usize,
    bias: Option<&'a [f32]>,    // (outputs)
    out: &'a Disjoint<'a, f32>, // (n, stride)
    stride: usize,
    first: usize, // column of `out` that is output 0
    epilogue: Epilogue,
}

impl<T: Element> Tile<'_, T> {
    /// `R` rows from `r`, `C` outputs from `o`.
    ///
    /// # Safety
    /// The CPU has `S`; the ranges are inside x and w; no other task has these outputs.
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize, const C: usize>(&self, r: usize, o: usize) {
        // SAFETY: instructions and ranges by the caller's promise.
        unsafe {
            let x: [&[f32]; R] = std::array::from_fn(|i| &self.x[(r + i) * self.cols..][..self.cols]);
            let w: [&[T]; C] = std::array::from_fn(|j| &self.w[(o + j) * self.cols..][..self.cols]);
            let mut acc = [[S::splat(0.0); C]; R];
            for k in (0..self.cols).step_by(LANES) {
                let wk: [S::V; C] = std::array::from_fn(|j| load_at::<S, T>(w[j], k));
                for i in 0..R {
                    let xk = load_at::<S, f32>(x[i], k);
                    for j in 0..C {
                        acc[i][j] = S::fma(xk, wk[j], acc[i][j]);
                    }
                }
            }
            for i in 0..R {
                let out = self.out.slice((r + i) * self.stride + self.first + o, C);
                for j in 0..C {
                    let sum = S::sum(acc[i][j]) + self.bias.map_or(0.0, |b| b[o + j]);
                    out[j] = if self.epilogue == Epilogue::Add { out[j] + sum } else { sum };
                }
            }
        }
    }

    /// # Safety
    /// As [`Tile::block`], for all rows.
    #[inline(always)]
    unsafe fn rows<S: Simd, const C: usize>(&self, o: usize) {
        let n = self.x.len() / self.cols;
        let mut r = 0;
        // SAFETY: `r` stays below the rows of x.
        unsafe {
            while r + 4 <= n {
                self.block::<S, 4, C>(r, o);
                r += 4;
            }
            while r < n {
                self.block::<S, 1, C>(r, o);
                r += 1;
            }
        }
    }
}

impl<T: Element> Kernel for Tile<'_, T> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let outputs = self.w.len() / self.cols;
        let mut o = 0;
        // SAFETY: `o` stays below the outputs.
        unsafe {
            while o + 4 <= outputs {
                self.rows::<S, 4>(o);
                o += 4;
            }
            while o < outputs {
                self.rows::<S, 1>(o);
                o += 1;
            }
        }
    }
}

/// Outputs of one task; a multiple of the register tile.
const TASK: usize = 16;

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
    let outputs = w.len() / cols;
    let (values, stride, first) = out;
    assert!(first + outputs <= stride && x.len() / cols * stride <= values.len());
    let disjoint = Disjoint::new(values);
    pool.run(outputs.div_ceil(TASK), |task| {
        let range = task * TASK..outputs.min((task + 1) * TASK);
        let tile = Tile {
            x,
            w: &w[range.start * cols..range.end * cols],
            cols,
            bias: bias.map(|b| &b[range.clone()]),
            out: &disjoint,
            stride,
            first: first + range.start,
            epilogue,
        };
        // SAFETY: each task has its own columns of `out`.
        unsafe { isa.dispatch(tile) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::isa::Isa;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let hash = |i: u32| (i.wrapping_mul(2_654_435_761) ^ seed).wrapping_mul(0x85EB_CA6B) >> 9;
        (0..n as u32).map(|i| (hash(i) % 4_001) as f32 / 1_000.0 - 2.0).collect()
    }

    fn check<T: Element>(convert: impl Fn(f32) -> T, back: impl Fn(T) -> f32) {
        for (n, outputs, cols) in [(1, 1, 1), (1, 5, 20), (3, 17, 33), (9, 40, 64), (4, 6, 100)] {
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
                    assert!((f64::from(want[r * (outputs + 2) + 1 + o]) - exact).abs() < 1e-4);
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
