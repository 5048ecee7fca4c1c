//! GELU, its tanh approximation, and SwiGLU.
//!
//! ```text
//! gelu(x) = x (1 + erf(x / sqrt 2)) / 2
//! gelu_tanh(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2          (arXiv 1606.08415)
//! swiglu(g, u) = g / (1 + exp(-g)) * u                                      (arXiv 2002.05202)
//! ```

use crate::config::Activation;

const ROOT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// `sqrt(2 / pi)`.
const ROOT_TWO_OVER_PI: f32 = 0.797_884_6;

/// `out = f(up)`; `up` has `out.len()` values, for SwiGLU twice as many: gates, then ups.
pub(crate) fn activate(out: &mut [f32], up: &[f32], f: Activation) {
    match f {
        Activation::Gelu => {
            for (y, &x) in out.iter_mut().zip(up) {
                *y = 0.5 * x * (1.0 + libm::erff(x * ROOT_HALF));
            }
        }
        Activation::GeluTanh => {
            for (y, &x) in out.iter_mut().zip(up) {
                *y = 0.5 * x * (1.0 + (ROOT_TWO_OVER_PI * (x + 0.044_715 * x * x * x)).tanh());
            }
        }
        Activation::SwiGlu => {
            let (gate, up) = up.split_at(out.len());
            for ((y, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *y = g / (1.0 + (-g).exp()) * u;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_three_functions() {
        let mut y = [0.0; 4];
        activate(&mut y, &[0.0, 1.0, -1.0, 30.0], Activation::Gelu);
        let want = [0.0, 0.841_344_7, -0.158_655_3, 30.0];
        assert!(y.iter().zip(want).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{y:?}");
        activate(&mut y, &[0.0, 1.0, -1.0, 30.0], Activation::GeluTanh);
        let want = [0.0, 0.841_192, -0.158_808, 30.0];
        assert!(y.iter().zip(want).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{y:?}");
        activate(&mut y[..2], &[1.0, -100.0, 3.0, 5.0], Activation::SwiGlu);
        assert!((y[0] - 3.0 * 0.731_058_6).abs() < 1e-6 && y[1].abs() < 1e-30, "{y:?}");
    }
}
