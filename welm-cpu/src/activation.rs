//! Activation functions: GELU, its tanh approximation, and the gated SwiGLU and GeGLU.
//!
//! ```text
//! gelu(x) = x (1 + erf(x / sqrt 2)) / 2 = max(x, 0) - |x| erfc(|x| / sqrt 2) / 2
//! gelu_tanh(x) = x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)),   u = sqrt(2 / pi) (x + 0.044715 x^3)
//! swiglu(g, u) = g / (1 + exp(-g)) * u
//! geglu(g, u) = gelu_tanh(g) * u
//! ```
//!
//! (arXiv 1606.08415, 2002.05202.) The complementary error function is the Chebyshev fit of W. H. Press et al.,
//! *Numerical Recipes*, section 6.2:
//!
//! ```text
//! erfc(z) = t exp(-z^2 + c0 + c1 t + ... + c9 t^9),   t = 1 / (1 + z / 2),   z >= 0
//! ```
//!
//! with a relative error below 1.2e-7. With `erfc` instead of `1 - erf`, large negative values lose no digits to
//! cancellation. The absolute error of each function of one argument is below 1e-7 plus that of a rounding. A library's
//! `erf` would take longer than the matrix product before it.

use crate::exp::{exp, exp_to_most};
use crate::isa::{Isa, Kernel, LANES, Simd};
use crate::linear::load_at;

/// `sqrt(2 / pi)`.
const ROOT_TWO_OVER_PI: f32 = 0.797_884_6;
/// `c0` to `c9`.
const ERFC: [f32; 10] = [
    -1.265_512_2,
    1.000_023_7,
    0.374_091_96,
    0.096_784_18,
    -0.186_288_06,
    0.278_868_07,
    -1.135_204,
    1.488_515_9,
    -0.822_152_23,
    0.170_872_77,
];
/// `|x|` is limited to this in GELU: `erfc` is 0 long before, and `infinity * 0` would be NaN.
const FAR: f32 = 20.0;
/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formula {
    Gelu,
    GeluTanh,
    SwiGlu,
    GeGlu,
}

/// Some consecutive outputs of one row.
pub struct Part<'a> {
    pub out: &'a mut [f32], // (n)
    pub gate: &'a [f32],    // (n): the gates, or the only input of a function without gates
    pub up: &'a [f32],      // (n): the values that gates multiply; other functions ignore them
    pub f: Formula,
}

/// An activation function on sixteen lanes. It is no closure, because the compiler may not inline a closure, and would
/// then compile it without the instructions of `S`.
trait Function {
    /// The function of `gate` and `up`; functions without gates take `gate` only.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    unsafe fn of<S: Simd>(gate: S::V, up: S::V) -> S::V;
}

struct Gelu;
struct GeluTanh;
struct SwiGlu;
struct GeGlu;

/// `x / (1 + exp(-u))`.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn silu<S: Simd>(x: S::V, u: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), u)))) }
}

impl Function for Gelu {
    #[inline(always)]
    unsafe fn of<S: Simd>(x: S::V, _: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            let (zero, one, half) = (S::splat(0.0), S::splat(1.0), S::splat(-0.5));
            let size = S::max(x, S::sub(zero, x));
            let size = S::if_greater(size, S::splat(FAR), S::splat(FAR), size);
            let t = S::div(one, S::fma(size, S::splat(0.5 * std::f32::consts::FRAC_1_SQRT_2), one));
            let mut p = S::splat(ERFC[9]);
            for &c in ERFC[..9].iter().rev() {
                p = S::fma(p, t, S::splat(c));
            }
            let erfc = S::mul(t, exp_to_most::<S>(S::fma(S::mul(size, half), size, p)));
            S::fma(S::mul(size, half), erfc, S::max(x, zero))
        }
    }
}

impl Function for GeluTanh {
    #[inline(always)]
    unsafe fn of<S: Simd>(x: S::V, _: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            let cubic = S::fma(S::mul(x, S::splat(0.044_715)), S::mul(x, x), x);
            silu::<S>(x, S::mul(cubic, S::splat(2.0 * ROOT_TWO_OVER_PI)))
        }
    }
}

impl Function for SwiGlu {
    #[inline(always)]
    unsafe fn of<S: Simd>(gate: S::V, up: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::mul(silu::<S>(gate, gate), up) }
    }
}

impl Function for GeGlu {
    #[inline(always)]
    unsafe fn of<S: Simd>(gate: S::V, up: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::mul(GeluTanh::of::<S>(gate, gate), up) }
    }
}

impl Part<'_> {
    /// Computes them; all slices have one length.
    pub fn compute(self, isa: Isa) {
        // SAFETY: the slices are borrowed by the kernel alone.
        unsafe { isa.dispatch(self) }
    }

    /// Writes `F` of all inputs to `out`.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    #[inline(always)]
    unsafe fn each<S: Simd, F: Function>(self) {
        let n = self.out.len();
        for i in (0..n).step_by(LANES) {
            // SAFETY: the instructions are there; `load_at` stays inside the slices.
            let y = unsafe { F::of::<S>(load_at::<S, f32>(self.gate, i), load_at::<S, f32>(self.up, i)) };
            if i + LANES <= n {
                // SAFETY: 16 values lie inside the slice.
                unsafe { S::store(self.out.as_mut_ptr().add(i), y) };
            } else {
                let mut lanes = [0.0; LANES];
                // SAFETY: 16 values.
                unsafe { S::store(lanes.as_mut_ptr(), y) };
                self.out[i..].copy_from_slice(&lanes[..n - i]);
            }
        }
    }
}

impl Kernel for Part<'_> {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the instructions are there.
        unsafe {
            match self.f {
                Formula::Gelu => self.each::<S, Gelu>(),
                Formula::GeluTanh => self.each::<S, GeluTanh>(),
                Formula::SwiGlu => self.each::<S, SwiGlu>(),
                Formula::GeGlu => self.each::<S, GeGlu>(),
            }
        }
    }
}
