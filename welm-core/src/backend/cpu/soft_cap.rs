//! The soft cap of logits, shared by threads.

use welm_cpu::disjoint::Disjoint;
use welm_cpu::isa::Isa;
use welm_cpu::soft_cap;

use super::pool::Pool;

/// Values of one task.
const SHARE: usize = 8_192;

/// `x = cap tanh(x / cap)` for all logits `x`, in place.
pub(super) fn cap_all(pool: &mut Pool, isa: Isa, x: &mut [f32], cap: f32) {
    let (len, values) = (x.len(), Disjoint::new(x));
    pool.run_if_worth(len.div_ceil(SHARE), len, |task| {
        let first = task * SHARE;
        // SAFETY: each task has its own values.
        unsafe { soft_cap::cap(isa, values.slice(first, SHARE.min(len - first)), cap) }
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
