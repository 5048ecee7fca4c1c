//! Weights of logits, and sums of them over a whole row.
//!
//! The loops are written for the vectoriser, in lanes that are joined in order, so that the bits depend on
//! nothing but the row. `f32::exp` is a call for each element, which takes three times as long (0.55 ms for a
//! vocabulary of 152,000, against 0.19), and gives other bits on other platforms.

/// Partial sums and maxima that run side by side; a multiple of every register's width.
pub(super) const LANES: usize = 16;
/// Weights that are summed, or skipped in a draw, at a time.
pub(super) const BLOCK: usize = 512;
/// Eighths of the exponents, 0 to -87, that have a weight, and one for those that have none.
pub(super) const BUCKETS: usize = 87 * 8 + 2;
/// Added to a small number, 1.5 * 2^23 leaves no bits for a fraction: the sum is rounded, and has the whole
/// number in its low bits.
const ROUND: f32 = 12_582_912.0;

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

/// The first token whose logit is `max`, which is that of one.
pub(super) fn first_equal(logits: &[f32], max: f32) -> u32 {
    logits.iter().position(|&logit| logit >= max).unwrap_or(0) as u32
}

/// `exp((logit - max) / temperature)`, in [0, 1]; 0 for NaN.
#[inline(always)]
pub(super) fn weight(logit: f32, max: f32, temperature: f32) -> f32 {
    exp(exponent(logit, max, temperature))
}

#[inline(always)]
fn exponent(logit: f32, max: f32, temperature: f32) -> f32 {
    (finite(logit) - max) / temperature
}

/// Which of [`BUCKETS`] a logit falls into: by its weight's exponent, in eighths. A larger logit is never in a
/// later bucket.
#[inline(always)]
pub(super) fn bucket_of(logit: f32, max: f32, temperature: f32) -> usize {
    let shifted = exponent(logit, max, temperature) * -8.0 + ROUND;
    // What has no weight, NaN too, has larger bits and goes to the last.
    shifted.to_bits().wrapping_sub(ROUND.to_bits()).min(BUCKETS as u32 - 1) as usize
}

/// The sums of the weights in each bucket.
pub(super) fn bucket_sums(logits: &[f32], max: f32, temperature: f32) -> [f64; BUCKETS] {
    let mut sums = [0.0; BUCKETS];
    for block in logits.chunks(LANES) {
        let (mut weights, mut buckets) = ([0.0; LANES], [0; LANES]);
        for (i, &logit) in block.iter().enumerate() {
            weights[i] = weight(logit, max, temperature);
            buckets[i] = bucket_of(logit, max, temperature);
        }
        for i in 0..block.len() {
            sums[buckets[i]] += f64::from(weights[i]);
        }
    }
    sums
}

/// The sum of all weights.
pub(super) fn weight_sum(logits: &[f32], max: f32, temperature: f32) -> f64 {
    // By way of a buffer: weights and sums in one loop are not vectorised, and take twice the time.
    let mut weights = [0.0; BLOCK];
    let block_sum = |block: &[f32]| {
        let weights = &mut weights[..block.len()];
        weights.iter_mut().zip(block).for_each(|(w, &logit)| *w = weight(logit, max, temperature));
        lane_sum(weights)
    };
    logits.chunks(BLOCK).map(block_sum).sum()
}

/// The sum of `values`, in an order that depends on their number only.
pub(super) fn lane_sum(values: &[f32]) -> f64 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value)).sum::<f64>()
}

/// `e^x` for x <= 0, within 2 units in the last place; 0 below -87, where f32 runs out of exponents, and
/// for NaN.
///
/// `x = n ln 2 + r` with the nearest whole `n`, then `e^x = 2^n e^r` with Cephes' polynomial for
/// `|r| <= ln 2 / 2`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // ln 2 in two parts; n times the first is exact.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const POLYNOMIAL: [f32; 5] = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
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
