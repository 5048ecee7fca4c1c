//! Records how much of a tolerance is used. Also tests the model of tensor cores' sums (`sums.h`) with cases that can
//! be computed by hand.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;

use welm_tests::emulator::aligned_sum;

/// Whether `deviation` is within `tolerance`. With `WELM_TOLERANCES=<file>` a line is added there whenever a check uses
/// more of it than before: its name, and the fraction.
pub(crate) fn within(check: &'static str, deviation: f64, tolerance: f64) -> bool {
    static MOST: Mutex<BTreeMap<&str, f64>> = Mutex::new(BTreeMap::new());
    if let Some(file) = std::env::var_os("WELM_TOLERANCES")
        && tolerance > 0.0
    {
        let used = deviation / tolerance;
        let mut most = MOST.lock().unwrap();
        if most.get(check).is_none_or(|&before| used > before) {
            most.insert(check, used);
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
            file.write_all(format!("{check} {used:.6}\n").as_bytes()).unwrap();
        }
    }
    deviation <= tolerance
}

const AMPERE: (u32, u32) = (8, 0);
const HOPPER: (u32, u32) = (9, 0);

/// The sum of `c` and these products, on both.
fn both(c: f32, products: &[(f32, f32)]) -> [f32; 2] {
    let (a, b): (Vec<f32>, Vec<f32>) = products.iter().copied().unzip();
    [AMPERE, HOPPER].map(|capability| aligned_sum(capability, &a, &b, c))
}

fn power(e: i32) -> f32 {
    2f32.powi(e)
}

/// `n` products of 2^e after others.
fn and(first: &[(f32, f32)], n: usize, e: i32) -> Vec<(f32, f32)> {
    [first, &vec![(power(e), 1.0); n]].concat()
}

#[test]
fn tensor_cores_add_a_block_at_once() {
    let one = [(1.0, 1.0)];
    let ulp = power(-23);
    assert_eq!(both(2.0, &[(3.0, 5.0), (-4.0, 0.5)]), [15.0; 2]);
    assert_eq!(both(0.0, &[(0.0, 5.0), (0.0, 0.0)]), [0.0; 2]);
    // Two halves of an ulp make one ulp. Added one after another, each would be rounded away.
    assert_eq!(both(0.0, &and(&one, 2, -24)), [1.0 + ulp; 2]);
    // Quarters: an A100 keeps one bit below the ulp, an H100 two.
    assert_eq!(both(0.0, &and(&one, 4, -25)), [1.0, 1.0 + ulp]);
    assert_eq!(both(0.0, &and(&one, 7, -26)), [1.0; 2]);
    // The sum so far is a term like any other.
    assert_eq!(both(1024.0, &and(&[], 2, -14)), [1024.0 + power(-13); 2]);
    assert_eq!(both(power(-25), &and(&one, 3, -25)), [1.0, 1.0 + ulp]);
}

#[test]
fn tensor_cores_add_blocks_of_8_and_16() {
    // The ninth product is in the second block of an A100: by then the second is lost.
    let mut products = vec![(0.0, 0.0); 16];
    (products[0], products[1], products[8]) =
        ((1.0, 1.0), (power(-12), power(-12)), (power(-12), power(-12)));
    assert_eq!(both(0.0, &products), [1.0, 1.0 + power(-23)]);
}

#[test]
fn tensor_cores_cut_towards_zero() {
    let ulp = power(-23);
    // One and a half ulps are truncated to one; rounding to nearest would give two.
    assert_eq!(both(1.0, &[(1.5, ulp)]), [1.0 + ulp; 2]);
    assert_eq!(both(-1.0, &[(-1.5, ulp)]), [-1.0 - ulp; 2]);
    // 1 - 2^-26: the small term is truncated to 0 before it is subtracted.
    assert_eq!(both(1.0, &[(-power(-26), 1.0)]), [1.0; 2]);
    // 1 - 2^-25, which an H100 keeps: cut to f32 below 1, whose ulp is 2^-24.
    assert_eq!(both(1.0, &[(-power(-25), 1.0)]), [1.0, 1.0 - power(-24)]);
}

#[test]
fn exponents_of_products_are_not_normalised() {
    // 1.5 * 1.5 has exponent 0: seven times 2^-24 survive, and on an H100 eight times 2^-25.
    let large = [(1.5, 1.5)];
    assert_eq!(both(0.0, &and(&large, 7, -24)), [2.25 + power(-22); 2]);
    let products = and(&large, 8, -25);
    assert_eq!(aligned(HOPPER, &products), 2.25 + power(-22));
    assert_eq!(aligned(AMPERE, &products), 2.25);
}

fn aligned(capability: (u32, u32), products: &[(f32, f32)]) -> f32 {
    let (a, b): (Vec<f32>, Vec<f32>) = products.iter().copied().unzip();
    aligned_sum(capability, &a, &b, 0.0)
}

#[test]
fn what_is_not_finite_stays_so() {
    assert!(both(f32::NAN, &[(1.0, 1.0)]).iter().all(|x| x.is_nan()));
    assert!(both(0.0, &[(f32::INFINITY, 0.0)]).iter().all(|x| x.is_nan()));
    assert_eq!(both(0.0, &[(f32::INFINITY, -1.0), (1.0, 1.0)]), [f32::NEG_INFINITY; 2]);
    assert_eq!(both(f32::MAX, &[(power(127), 1.0)]), [f32::INFINITY; 2]);
}
