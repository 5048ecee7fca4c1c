//! The soft cap of attention scores and of logits (arXiv 2408.00118).
//!
//! ```text
//! cap(x) = c tanh(x / c)
//! tanh(y) = y + y^3 q(y^2),                                |y| <= 0.625
//!         = sign(y) (1 - e) / (1 + e),   e = exp(-2 |y|),  beyond
//! ```
//!
//! `q` has degree 4 (S. L. Moshier, *Cephes*, `tanhf`). There are two formulas, because `1 - e` loses its digits to
//! cancellation if `y` is small. The relative error is below 2e-7.

use super::exp::exp_to_most;
use super::linear::load_at;
use super::pool::{Disjoint, Pool};
use crate::isa::{Isa, Kernel, LANES, Simd};

/// The largest `|y|` of the first formula.
const NEAR: f32 = 0.625;
/// The coefficients of `q`, the constant first.
const Q: [f32; 5] = [-0.333_332_8, 0.133_314_42, -0.053_739_716, 0.020_639_088, -0.005_704_988_7];
/// Values of one task.
const SHARE: usize = 8_192;

/// `tanh(y)`; NaN stays NaN.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn tanh<S: Simd>(y: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        let square = S::mul(y, y);
        let mut q = S::splat(Q[4]);
        for &c in Q[..4].iter().rev() {
            q = S::fma(q, square, S::splat(c));
        }
        let near = S::fma(S::mul(q, square), y, y);
        let size = S::max(y, S::sub(zero, y));
        let e = exp_to_most::<S>(S::mul(size, S::splat(-2.0)));
        let far = S::div(S::sub(one, e), S::add(one, e));
        let far = S::if_greater(zero, y, S::sub(zero, far), far);
        S::if_greater(size, S::splat(NEAR), far, near)
    }
}

/// `cap tanh(x / cap)`.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn soft_cap<S: Simd>(x: S::V, cap: f32) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { S::mul(tanh::<S>(S::mul(x, S::splat(1.0 / cap))), S::splat(cap)) }
}

/// Applies the soft cap to some values, in place; implements [`Kernel`].
struct Capped<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for Capped<'_> {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for at in (0..self.x.len()).step_by(LANES) {
            let n = LANES.min(self.x.len() - at);
            let mut lanes = [0.0; LANES];
            // SAFETY: the instructions are there; `load_at` stays inside the slice, and there are 16 lanes.
            unsafe { S::store(lanes.as_mut_ptr(), soft_cap::<S>(load_at::<S, f32>(self.x, at), self.cap)) };
            self.x[at..at + n].copy_from_slice(&lanes[..n]);
        }
    }
}

/// `x = cap tanh(x / cap)` for all logits `x`, in place.
pub(super) fn cap_all(pool: &mut Pool, isa: Isa, x: &mut [f32], cap: f32) {
    let (len, values) = (x.len(), Disjoint::new(x));
    pool.run_if_worth(len.div_ceil(SHARE), len, |task| {
        let first = task * SHARE;
        // SAFETY: each task has its own values.
        unsafe { isa.dispatch(Capped { x: values.slice(first, SHARE.min(len - first)), cap }) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capped(isa: Isa, threads: usize, x: &[f32], cap: f32) -> Vec<f32> {
        let mut y = x.to_vec();
        cap_all(&mut Pool::new(threads).unwrap(), isa, &mut y, cap);
        y
    }

    #[test]
    fn values_and_equal_bits_everywhere() {
        for cap in [1.0, 30.0, 50.0] {
            let even = (-100_000..100_000).map(|i| i as f32 * 2e-4 * cap);
            let small = (0..80).map(|i| 1e-30 * 10_f32.powi(i / 2) * if i % 2 == 0 { cap } else { -cap });
            let x: Vec<f32> = even.chain(small).chain([f32::MAX, f32::MIN, 0.0]).collect();
            let best = capped(*Isa::all().last().unwrap(), 1, &x, cap);
            for (&x, &y) in x.iter().zip(&best) {
                let want = f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh();
                let error = (f64::from(y) - want).abs();
                assert!(error <= 3e-7 * want.abs(), "{cap}, {x}: {y}, not {want}");
            }
            for isa in Isa::all() {
                assert_eq!(capped(isa, 3, &x, cap), best, "{}", isa.name());
            }
        }
    }

    #[test]
    fn infinities_and_what_is_not_a_number() {
        for isa in Isa::all() {
            let y = capped(isa, 1, &[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3.0, -0.0], 30.0);
            assert_eq!(y[..2], [30.0, -30.0], "{}", isa.name());
            assert!(y[2].is_nan() && y[3] > 2.9 && y[3] < 3.0 && y[4] == 0.0, "{}: {y:?}", isa.name());
        }
    }
}
