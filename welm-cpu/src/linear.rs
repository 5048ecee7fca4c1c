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

use crate::disjoint::Disjoint;
use crate::isa::{Isa, Kernel, LANES, Simd};
use crate::outputs::Epilogue;

/// A float type of stored weights.
pub trait Element: Copy + Send + Sync + Sized + 'static {
    /// The value 0.
    const ZERO: Self;
    /// Reads 16 values, widened to f32.
    ///
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
    /// Computes a tile.
    ///
    /// # Safety
    /// No other task has its outputs.
    unsafe fn multiply(tile: Tile<Self>, isa: Isa);
}

impl Element for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(p) }
    }
    unsafe fn multiply(tile: Tile<f32>, isa: Isa) {
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(tile) }
    }
}

impl Element for bf16 {
    const ZERO: bf16 = bf16::ZERO;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const bf16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(p) }
    }
    unsafe fn multiply(tile: Tile<bf16>, isa: Isa) {
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(tile) }
    }
}

impl Element for f16 {
    const ZERO: f16 = f16::ZERO;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_f16(p) }
    }
    unsafe fn multiply(tile: Tile<f16>, isa: Isa) {
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(tile) }
    }
}

/// Reads 16 values from index `at` on; lanes after the slice's end are zero.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
pub unsafe fn load_at<S: Simd, T: Element>(values: &[T], at: usize) -> S::V {
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
pub struct Tile<'a, T> {
    pub x: &'a [f32], // (n, cols)
    pub w: &'a [T],   // (outputs, cols)
    pub cols: usize,
    pub bias: Option<&'a [f32]>,    // (outputs)
    pub out: &'a Disjoint<'a, f32>, // (n, stride)
    pub stride: usize,
    pub first: usize, // index in `out` of row 0 and output 0
    pub epilogue: Epilogue,
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
