//! The exponential function against that of f64.

use welm_cpu::exp::{LEAST, MOST, exp};
use welm_cpu::isa::{Isa, Kernel, LANES, Simd};

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
    x[..8].copy_from_slice(&[0.0, -0.0, -87.31, f32::NEG_INFINITY, f32::MIN, 88.38, f32::INFINITY, f32::MAX]);
    let inf = f32::INFINITY;
    for isa in Isa::all() {
        assert_eq!(exp_of(isa, &x)[..8], [1.0, 1.0, 0.0, 0.0, 0.0, inf, inf, inf], "{}", isa.name());
        let odd = [f32::NAN, -f32::NAN, f32::from_bits(0x7FC0_1234), f32::from_bits(0xFFFF_FFFF)].repeat(4);
        assert!(exp_of(isa, &odd).iter().all(|y| y.is_nan()), "{}", isa.name());
    }
}
