//! Weights of logits, and their sums: the only passes over a whole row.
//!
//! All of it is written for the vectoriser, in [`LANES`] lanes that are joined in order, so that the bits depend on
//! nothing but the row. `f32::exp` is not used: it is a call for each element (a vocabulary of 152,000 took 1 ms),
//! and gives other bits on other platforms.

/// Partial sums and maxima that run side by side; a multiple of every register's width.
pub(super) const LANES: usize = 16;

/// +inf as the largest number that can be subtracted from; NaN stays.
pub(super) fn finite(logit: f32) -> f32 {
    if logit > f32::MAX { f32::MAX } else { logit }
}

/// The largest logit; -inf if there is none but -inf and NaN.
pub(super) fn maximum(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, logit);
        }
    }
    finite(lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &logit| larger(max, logit)))
}

/// The first token whose logit is `max`; 0 if that is -inf, which stands for no logit at all.
pub(super) fn first_equal(logits: &[f32], max: f32) -> u32 {
    if max == f32::NEG_INFINITY {
        return 0;
    }
    logits.iter().position(|&logit| logit >= max).unwrap_or(0) as u32
}

/// `exp((logit - max) / temperature)`, in [0, 1]; 0 for NaN.
#[inline(always)]
pub(super) fn weight(logit: f32, max: f32, temperature: f32) -> f32 {
    exp((finite(logit) - max) / temperature)
}

/// The sum of all weights.
pub(super) fn weight_sum(logits: &[f32], max: f32, temperature: f32) -> f64 {
    lane_sum(logits, |logit| weight(logit, max, temperature))
}

/// The sum of `f` over `values`, in an order that depends on their number only.
#[inline(always)]
pub(super) fn lane_sum(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(f(value));
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(f(value))).sum::<f64>()
}

/// `e^x` for x <= 0, within 2 units in the last place; 0 below -87, where f32 runs out of exponents, and for NaN.
///
/// `x = n ln 2 + r` with the nearest whole `n`, then `e^x = 2^n e^r` with Cephes' polynomial on `|r| <= ln 2 / 2`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction: it rounds, and has n in its low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; n times the first is exact.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const POLYNOMIAL: [f32; 5] =
        [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_1e-1];
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2[0]) - n * LN2[1];
    let p = POLYNOMIAL.iter().fold(1.987_569_1e-4, |p, c| p * r + c);
    let scale = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x >= -87.0 { (p * (r * r) + r + 1.0) * scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(-87.1), exp(f32::NEG_INFINITY), exp(f32::NAN)], [0.0; 3]);
        let worst = (0..870_000).map(|i| {
            let x = i as f32 * -1e-4;
            let want = f64::from(x).exp();
            (f64::from(exp(x)) - want).abs() / want
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
    }
}
