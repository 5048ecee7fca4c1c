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

use super::exp::{exp, exp_to_most};
use super::linear::load_at;
use super::pool::{Disjoint, Pool};
use super::quantize::{PART, Rows};
use crate::config::Activation;
use crate::isa::{Isa, Kernel, LANES, Simd};

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
/// Outputs of one task. They take some microseconds; with less work, waking a second thread saves nothing.
const SHARE: usize = 8_192;

/// Some consecutive outputs of one row; implements [`Kernel`].
struct Part<'a> {
    out: &'a mut [f32], // (n)
    gate: &'a [f32],    // (n): the gates, or the only input of a function without gates
    up: &'a [f32],      // (n): the values that gates multiply; other functions ignore them
    f: Activation,
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
                Activation::Gelu => self.each::<S, Gelu>(),
                Activation::GeluTanh => self.each::<S, GeluTanh>(),
                Activation::SwiGlu => self.each::<S, SwiGlu>(),
                Activation::GeGlu => self.each::<S, GeGlu>(),
            }
        }
    }
}

/// `out = f(up)`, `out` `(rows, cols)`. `up` is `(rows, cols)`, or `(rows, 2 * cols)` for gated functions: a row has
/// all gates, then all values that they multiply. With `quantized`, the outputs are also quantised, while they are in
/// the L1 cache.
pub(crate) fn activate(
    pool: &mut Pool,
    isa: Isa,
    out: &mut [f32],
    cols: usize,
    up: &[f32],
    f: Activation,
    quantized: Option<&Rows>,
) {
    let rows = out.len() / cols;
    let shares = cols.div_ceil(SHARE);
    // Shares are whole parts. Where a row is cut changes no value.
    let share = cols.div_ceil(shares).next_multiple_of(PART);
    let work = if out.len() <= SHARE { 0 } else { usize::MAX };
    let values = Disjoint::new(out);
    pool.run_if_worth(rows * shares, work, |task| {
        let (r, first) = (task / shares, (task % shares * share).min(cols));
        let up = &up[r * (up.len() / rows)..][..up.len() / rows];
        // For functions of one argument, the ignored second input is the first one again.
        let second = if f.is_gated() { cols } else { 0 };
        for at in (first..cols.min(first + share)).step_by(PART) {
            let n = PART.min(cols - at);
            // SAFETY: each task has its own columns of its own row; `part`'s slices have one length.
            unsafe {
                let out = values.slice(r * cols + at, n);
                isa.dispatch(Part { out, gate: &up[at..at + n], up: &up[second + at..][..n], f });
                if let Some(rows) = quantized {
                    rows.fill(isa, r, at, out);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::quantize::{Form, Quantized};
    use super::*;
    use crate::weights::formats::int8::Grouping;

    const ALL: [Activation; 4] =
        [Activation::Gelu, Activation::GeluTanh, Activation::SwiGlu, Activation::GeGlu];

    fn run(isa: Isa, threads: usize, up: &[f32], cols: usize, f: Activation) -> Vec<f32> {
        let width = if f.is_gated() { 2 * cols } else { cols };
        let mut out = vec![9.0; up.len() / width * cols];
        activate(&mut Pool::new(threads).unwrap(), isa, &mut out, cols, up, f, None);
        out
    }

    fn exact(x: f64, f: Activation) -> f64 {
        let cube = x + 0.044_715 * x * x * x;
        match f {
            Activation::Gelu => 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            Activation::GeluTanh | Activation::GeGlu => {
                x / (1.0 + (-2.0 * std::f64::consts::FRAC_2_PI.sqrt() * cube).exp())
            }
            Activation::SwiGlu => x / (1.0 + (-x).exp()),
        }
    }

    #[test]
    fn values_of_all_functions_and_equal_bits_everywhere() {
        let x: Vec<f32> = (-200_000..200_000).map(|i| i as f32 * 1e-4).collect();
        for f in ALL {
            let up: Vec<f32> = if f.is_gated() {
                x.iter().copied().chain(x.iter().map(|_| 1.0)).collect()
            } else {
                x.clone()
            };
            let best = run(*Isa::all().last().unwrap(), 1, &up, x.len(), f);
            for (&x, &y) in x.iter().zip(&best) {
                let want = exact(f64::from(x), f);
                let error = (f64::from(y) - want).abs();
                assert!(error < 1e-7 + 1.2e-7 * want.abs(), "{f:?}({x}) is {y}, not {want}");
            }
            for isa in Isa::all() {
                assert_eq!(run(isa, 3, &up, x.len(), f), best, "{} {f:?}", isa.name());
            }
        }
    }

    #[test]
    fn rows_of_odd_lengths_and_extreme_values() {
        let hash = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 9) % 1_000;
        for (rows, cols) in [(1, 1), (3, 37), (2, 8_193), (1, 20_001)] {
            let up: Vec<f32> = (0..2 * rows * cols).map(|i| hash(i) as f32 / 100.0 - 5.0).collect();
            for f in ALL {
                let y = run(*Isa::all().last().unwrap(), 2, &up, cols, f);
                for (i, &y) in y.iter().enumerate() {
                    let (r, c) = (i / cols, i % cols);
                    let want = match f {
                        f if f.is_gated() => {
                            let row = &up[2 * r * cols..];
                            exact(f64::from(row[c]), f) * f64::from(row[cols + c])
                        }
                        _ => exact(f64::from(up[i]), f),
                    };
                    assert!((f64::from(y) - want).abs() < 5e-6, "{f:?} {rows} {cols} at {i}");
                }
            }
        }
        let far = [0.0, -0.0, 1e-30, -1e-30, 30.0, -30.0, 1e30, -1e30, f32::INFINITY, f32::NAN];
        for isa in Isa::all() {
            for f in [Activation::Gelu, Activation::GeluTanh] {
                let y = run(isa, 1, &far, far.len(), f);
                let want = [0.0, 0.0, 5e-31, -5e-31, 30.0, 0.0, 1e30, 0.0, f32::INFINITY];
                let near = |(y, want): (&f32, f32)| *y == want || (y - want).abs() < 1e-36;
                assert!(y.iter().zip(want).all(near), "{f:?} {y:?}");
                assert!(y[9].is_nan());
            }
            let y = run(isa, 1, &[100.0, -100.0, f32::NAN, 2.0, 3.0, 1.0], 3, Activation::SwiGlu);
            assert!(y[0] == 200.0 && y[1] == 0.0 && y[2].is_nan(), "{y:?}");
            let y = run(isa, 1, &[100.0, -100.0, f32::NAN, 2.0, 3.0, 1.0], 3, Activation::GeGlu);
            assert!(y[0] == 200.0 && y[1] == 0.0 && y[2].is_nan(), "{y:?}");
        }
    }

    #[test]
    fn outputs_are_quantised_as_they_would_be_alone() {
        let isa = *Isa::all().last().unwrap();
        for (rows, cols) in [(3, 640), (9, 64), (2, 9_216)] {
            let up: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * 4.0).collect();
            for grouping in [Grouping::Plain, Grouping::Rotated] {
                let form = Form { wide: false, grouping };
                let mut pool = Pool::new(3).unwrap();
                let (mut fused, mut alone) =
                    (Quantized::new(rows, cols).unwrap(), Quantized::new(rows, cols).unwrap());
                let mut out = vec![0.0; rows * cols];
                let to = fused.rows(rows, cols, form);
                activate(&mut pool, isa, &mut out, cols, &up, Activation::Gelu, Some(&to));
                alone.fill(&mut pool, isa, &out, cols, form);
                assert!(fused.lo == alone.lo && fused.scale == alone.scale, "{rows} {cols} {grouping:?}");
                assert!(fused.lo_start == alone.lo_start && fused.sum == alone.sum);
            }
        }
    }
}
