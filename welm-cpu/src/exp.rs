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
pub const LEAST: f32 = -87.3;
/// Above this the result is infinity. `exp` overflows f32 at 88.72, but from here on `n` is 128, and `2^128` is no f32.
pub const MOST: f32 = 88.37;
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
pub unsafe fn exp_to_most<S: Simd>(x: S::V) -> S::V {
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
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { S::if_greater(x, S::splat(MOST), S::splat(f32::INFINITY), exp_to_most::<S>(x)) }
}
