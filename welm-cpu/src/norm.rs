//! Layernorm and rmsnorm of one row, or of a head of it.
//!
//! ```text
//! layernorm: (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b        (arXiv 1607.06450)
//! rmsnorm:   x / sqrt(mean(x^2) + eps) * w                              (arXiv 1910.07467)
//! ```
//!
//! The variance is computed around the mean, in a second pass over the row, which is in the L1 cache by then.
//! `mean(x^2) - mean^2` would need one pass, but loses all its digits if the mean is large.

use crate::isa::{Isa, Kernel, LANES, Simd};
use crate::linear::load_at;

/// The parameters of a norm.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    pub weight: &'a [f32],       // (dim)
    pub bias: Option<&'a [f32]>, // (dim); layernorm if there is one, else rmsnorm
    pub eps: f32,
}

/// `out = norm(x)` of one row; implements [`Kernel`].
struct NormRow<'a> {
    x: &'a [f32],       // (dim)
    norm: Norm<'a>,     // without a bias: rmsnorm
    out: &'a mut [f32], // (dim)
}

/// `to += norm(y)` of one row; implements [`Kernel`].
struct NormAddRow<'a> {
    y: &'a mut [f32], // (dim), overwritten
    norm: Norm<'a>,
    to: &'a mut [f32], // (dim)
}

impl Kernel for NormRow<'_> {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the instructions are there.
        unsafe {
            let mean = mean_of::<S>(self.x, self.norm);
            for (out, x) in self.out.iter_mut().zip(self.x) {
                *out = x - mean;
            }
            scale::<S>(self.out, self.norm);
        }
    }
}

impl Kernel for NormAddRow<'_> {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the instructions are there.
        unsafe { norm_in_place::<S>(self.y, self.norm) };
        self.to.iter_mut().zip(&*self.y).for_each(|(to, y)| *to += y);
    }
}

/// Normalises `row`, `(dim)`, in place.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
pub unsafe fn norm_in_place<S: Simd>(row: &mut [f32], norm: Norm) {
    // SAFETY: the caller's promise.
    unsafe {
        let mean = mean_of::<S>(row, norm);
        row.iter_mut().for_each(|x| *x -= mean);
        scale::<S>(row, norm);
    }
}

/// The mean that the norm subtracts from a row: 0 for an rmsnorm.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn mean_of<S: Simd>(row: &[f32], norm: Norm) -> f32 {
    if norm.bias.is_none() {
        return 0.0;
    }
    // SAFETY: the caller's promise; `load_at` stays inside the slice.
    unsafe {
        let mut acc = S::splat(0.0);
        for k in (0..row.len()).step_by(LANES) {
            acc = S::add(acc, load_at::<S, f32>(row, k));
        }
        S::sum(acc) / row.len() as f32
    }
}

/// Divides a row, from which the mean was subtracted, by its standard deviation, and applies weight and bias.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn scale<S: Simd>(row: &mut [f32], norm: Norm) {
    // SAFETY: the caller's promise; `load_at` stays inside the slice.
    let square = unsafe {
        let mut acc = S::splat(0.0);
        for k in (0..row.len()).step_by(LANES) {
            let d = load_at::<S, f32>(row, k);
            acc = S::fma(d, d, acc);
        }
        S::sum(acc)
    };
    let inverse = 1.0 / (square / row.len() as f32 + norm.eps).sqrt();
    let scale = |x: f32, w: f32| x * inverse * w;
    match norm.bias {
        Some(bias) => {
            for ((x, &w), &b) in row.iter_mut().zip(norm.weight).zip(bias) {
                *x = scale(*x, w) + b;
            }
        }
        None => row.iter_mut().zip(norm.weight).for_each(|(x, &w)| *x = scale(*x, w)),
    }
}

/// Normalises `x` to `out`; both and the parameters have one length.
pub fn norm_row(isa: Isa, x: &[f32], norm: Norm, out: &mut [f32]) {
    // SAFETY: the slices are borrowed by the kernel alone.
    unsafe { isa.dispatch(NormRow { x, norm, out }) }
}

/// Adds `y` normalised to `to`; `y` is used up.
pub fn norm_add_row(isa: Isa, y: &mut [f32], norm: Norm, to: &mut [f32]) {
    // SAFETY: the slices are borrowed by the kernel alone.
    unsafe { isa.dispatch(NormAddRow { y, norm, to }) }
}
