//! The exponential function on sixteen lanes.
//!
//! ```text
//! n = round(x / ln 2),   r = x - n ln 2,   exp(x) = 2^n (1 + r + r^2 q(r)),   |r| <= ln 2 / 2
//! ```
//!
//! `x / ln 2` is rounded by adding `1.5 * 2^23`, because an f32 of that size has no fraction. All instruction sets can
//! add. `n` is then in the lowest bits, and one shift makes it an exponent. `n ln 2` is subtracted in two parts (W. J.
//! Cody and W. Waite, *Software Manual for the Elementary Functions*, 1980); the first product is exact, because it is
//! fused. `q` has degree 4 and is the minimax polynomial of the relative error, which is below 3.1e-9; all other errors
//! are those of rounding. **The result is within 1 ulp**, over the whole range (see the test).
//!
//! The standard library's `exp` needs one call for each value, and is a different function on each system.

use crate::isa::Simd;

/// Below this the result is exactly 0. Just below it, `exp(x)` is less than the smallest normal f32.
const LEAST: f32 = -87.3;
/// Above this the result is infinity. `exp` overflows f32 at 88.72, but from here on `n` is 128, and `2^128` is no f32.
const MOST: f32 = 88.37;
/// `1.5 * 2^23` plus the bias of an f32's exponent, so that the lowest bits of the sum are an exponent.
const ROUND: f32 = 12_582_912.0 + 127.0;
const LN2_HI: f32 = std::f32::consts::LN_2;
/// `ln 2 - LN2_HI`.
const LN2_LO: f32 = -1.904_654_3e-9;
/// The coefficients of `q`, the constant first.
const Q: [f32; 5] = [0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_781, 0.001_381_446_7];

/// `exp(x)` for `x <= MOST`, including `-inf`; NaN stays NaN.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn exp_to_most<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let t = S::fma(x, S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
        let n = S::sub(t, S::splat(ROUND));
        let r = S::fma(n, S::splat(-LN2_LO), S::fma(n, S::splat(-LN2_HI), x));
        let mut p = S::splat(Q[4]);
        for &c in Q[..4].iter().rev() {
            p = S::fma(p, r, S::splat(c));
        }
        p = S::fma(S::fma(p, r, S::splat(1.0)), r, S::splat(1.0));
        S::if_greater(S::splat(LEAST), x, S::splat(0.0), S::mul(p, S::to_exponent(t)))
    }
}

/// `exp(x)` for every `x`.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { S::if_greater(x, S::splat(MOST), S::splat(f32::INFINITY), exp_to_most::<S>(x)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, Kernel, LANES};

    struct Exp<'a>(&'a mut [f32]); // whole vectors

    impl Kernel for Exp<'_> {
        type Out = ();
        const DOTS: bool = false;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for x in self.0.chunks_exact_mut(LANES) {
                // SAFETY: the instructions are there; a chunk has 16 values.
                unsafe { S::store(x.as_mut_ptr(), exp::<S>(S::load(x.as_ptr()))) }
            }
        }
    }

    fn exp_of(isa: Isa, x: &[f32]) -> Vec<f32> {
        let mut y = x.to_vec();
        // SAFETY: whole vectors.
        unsafe { isa.dispatch(Exp(&mut y)) };
        y
    }

    #[test]
    fn within_one_ulp_and_equal_bits_everywhere() {
        // Every 997th f32 of the range: they have all exponents and all patterns of the lowest bits.
        let positive = (0..=MOST.to_bits()).step_by(997).map(f32::from_bits);
        let negative = (0..=(-LEAST).to_bits()).step_by(997).map(|b| -f32::from_bits(b));
        let even = (-873_000..883_700).map(|i| i as f32 * 1e-4);
        let mut x: Vec<f32> = positive.chain(negative).chain(even).collect();
        x.resize(x.len().next_multiple_of(LANES), 1.0);
        let best = *Isa::all().last().unwrap();
        let y = exp_of(best, &x);
        let mut worst: f64 = 0.0;
        for (&x, &y) in x.iter().zip(&y) {
            let want = f64::from(x).exp();
            let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1) - want as f32);
            worst = worst.max((f64::from(y) - want).abs() / ulp);
        }
        assert!(worst <= 1.0, "{worst} ulp");
        let few: Vec<f32> = x.chunks_exact(LANES).step_by(17).flatten().copied().collect();
        for isa in Isa::all() {
            assert_eq!(exp_of(isa, &few), exp_of(best, &few), "{}", isa.name());
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        let mut x = [0.0; LANES];
        x[..8].copy_from_slice(&[
            0.0,
            -0.0,
            -87.31,
            f32::NEG_INFINITY,
            f32::MIN,
            88.38,
            f32::INFINITY,
            f32::MAX,
        ]);
        let inf = f32::INFINITY;
        for isa in Isa::all() {
            assert_eq!(exp_of(isa, &x)[..8], [1.0, 1.0, 0.0, 0.0, 0.0, inf, inf, inf], "{}", isa.name());
            let odd =
                [f32::NAN, -f32::NAN, f32::from_bits(0x7FC0_1234), f32::from_bits(0xFFFF_FFFF)].repeat(4);
            assert!(exp_of(isa, &odd).iter().all(|y| y.is_nan()), "{}", isa.name());
        }
    }
}
