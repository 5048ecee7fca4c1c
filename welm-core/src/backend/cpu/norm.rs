//! Layernorm and rmsnorm of one row.
//!
//! ```text
//! layernorm: (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b        (arXiv 1607.06450)
//! rmsnorm:   x / sqrt(mean(x^2) + eps) * w                              (arXiv 1910.07467)
//! ```
//!
//! The variance is taken around the mean in a second pass: `mean(x^2) - mean^2` loses every digit where
//! the mean is large, and the row is in the first cache anyway.

use super::linear::load_at;
use crate::isa::{Kernel, LANES, Simd};

/// One row; implements [`Kernel`].
pub(crate) struct NormRow<'a> {
    pub(crate) x: &'a [f32],            // (dim)
    pub(crate) weight: &'a [f32],       // (dim)
    pub(crate) bias: Option<&'a [f32]>, // (dim); none is rmsnorm
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32], // (dim)
}

impl Kernel for NormRow<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let dim = self.x.len();
        let mean = if self.bias.is_some() {
            // SAFETY: the instructions are there; `load_at` stays inside the slice.
            unsafe {
                let mut acc = S::splat(0.0);
                for k in (0..dim).step_by(LANES) {
                    acc = S::add(acc, load_at::<S, f32>(self.x, k));
                }
                S::sum(acc) / dim as f32
            }
        } else {
            0.0
        };
        for (out, x) in self.out.iter_mut().zip(self.x) {
            *out = x - mean;
        }
        // SAFETY: as above.
        let square = unsafe {
            let mut acc = S::splat(0.0);
            for k in (0..dim).step_by(LANES) {
                let d = load_at::<S, f32>(self.out, k);
                acc = S::fma(d, d, acc);
            }
            S::sum(acc)
        };
        let inverse = 1.0 / (square / dim as f32 + self.eps).sqrt();
        let scale = |x: f32, w: f32| x * inverse * w;
        match self.bias {
            Some(bias) => {
                for ((out, &w), &b) in self.out.iter_mut().zip(self.weight).zip(bias) {
                    *out = scale(*out, w) + b;
                }
            }
            None => self.out.iter_mut().zip(self.weight).for_each(|(out, &w)| *out = scale(*out, w)),
        }
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
            for bias in [None, Some(b.as_slice())] {
                let run = |isa: Isa| {
                    let mut out = vec![0.0; dim];
                    // SAFETY: plain slices of equal length.
                    unsafe { isa.dispatch(NormRow { x: &x, weight: &w, bias, eps: 1e-5, out: &mut out }) };
                    out
                };
                let wide: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
                let mean = if bias.is_some() { wide.iter().sum::<f64>() / dim as f64 } else { 0.0 };
                let var = wide.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / dim as f64;
                let want = run(Isa::all()[0]);
                for k in 0..dim {
                    let y = (wide[k] - mean) / (var + 1e-5).sqrt() * f64::from(w[k])
                        + bias.map_or(0.0, |b| f64::from(b[k]));
                    assert!((f64::from(want[k]) - y).abs() < 2e-3, "{} {y}", want[k]);
                }
                for isa in Isa::all() {
                    assert_eq!(run(isa), want, "{}", isa.name());
                }
            }
        }
    }
}
