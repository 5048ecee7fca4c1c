//! Layernorm and rmsnorm of one row, or of a head of it.
//!
//! ```text
//! layernorm: (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b        (arXiv 1607.06450)
//! rmsnorm:   x / sqrt(mean(x^2) + eps) * w                              (arXiv 1910.07467)
//! ```
//!
//! The variance is computed around the mean, in a second pass over the row, which is in the L1 cache by then.
//! `mean(x^2) - mean^2` would need one pass, but loses all its digits if the mean is large.

use super::Norm;
use super::linear::load_at;
use crate::isa::{Kernel, LANES, Simd};

/// `out = norm(x)` of one row; implements [`Kernel`].
pub(crate) struct NormRow<'a> {
    pub(crate) x: &'a [f32],       // (dim)
    pub(crate) norm: &'a Norm,     // layernorm if it has a bias, else rmsnorm
    pub(crate) out: &'a mut [f32], // (dim)
}

/// `to += norm(y)` of one row; implements [`Kernel`].
pub(crate) struct NormAddRow<'a> {
    pub(crate) y: &'a mut [f32], // (dim), overwritten
    pub(crate) norm: &'a Norm,
    pub(crate) to: &'a mut [f32], // (dim)
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
pub(super) unsafe fn norm_in_place<S: Simd>(row: &mut [f32], norm: &Norm) {
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
unsafe fn mean_of<S: Simd>(row: &[f32], norm: &Norm) -> f32 {
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
unsafe fn scale<S: Simd>(row: &mut [f32], norm: &Norm) {
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
    match &norm.bias {
        Some(bias) => {
            for ((x, &w), &b) in row.iter_mut().zip(&norm.weight).zip(bias) {
                *x = scale(*x, w) + b;
            }
        }
        None => row.iter_mut().zip(&norm.weight).for_each(|(x, &w)| *x = scale(*x, w)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    #[test]
    fn both_formulas_hold_and_all_instruction_sets_agree() {
        for dim in [1, 7, 16, 33, 100] {
            let x: Vec<f32> = (0..dim).map(|i| (i * i % 17) as f32 - 5.0 + 300.0).collect();
            let w: Vec<f32> = (0..dim).map(|i| i as f32 / 10.0 - 1.0).collect();
            let b: Vec<f32> = (0..dim).map(|i| 0.3 - i as f32 / 20.0).collect();
            for bias in [None, Some(b.clone())] {
                let norm = Norm { weight: w.clone(), bias: bias.clone(), eps: 1e-5 };
                let run = |isa: Isa| {
                    let mut out = vec![0.0; dim];
                    // SAFETY: plain slices of equal length.
                    unsafe { isa.dispatch(NormRow { x: &x, norm: &norm, out: &mut out }) };
                    out
                };
                let wide: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
                let mean = if bias.is_some() { wide.iter().sum::<f64>() / dim as f64 } else { 0.0 };
                let var = wide.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / dim as f64;
                let want = run(Isa::all()[0]);
                for k in 0..dim {
                    let y = (wide[k] - mean) / (var + 1e-5).sqrt() * f64::from(w[k])
                        + bias.as_ref().map_or(0.0, |b| f64::from(b[k]));
                    assert!((f64::from(want[k]) - y).abs() < 2e-3, "{} {y}", want[k]);
                }
                for isa in Isa::all() {
                    assert_eq!(run(isa), want, "{}", isa.name());
                    let (mut y, mut to) = (x.clone(), w.clone());
                    // SAFETY: as above.
                    unsafe { isa.dispatch(NormAddRow { y: &mut y, norm: &norm, to: &mut to }) };
                    let added: Vec<f32> = w.iter().zip(&want).map(|(w, y)| w + y).collect();
                    assert_eq!(to, added, "{}, added", isa.name());
                }
            }
        }
    }
}
