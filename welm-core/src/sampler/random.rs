//! Random numbers from a counter instead of a state.
//!
//! The number for (seed, sequence, position) is the same whatever was drawn before. So a text does not depend
//! on what else is in the batch, and a sequence that was put off and computed again goes on as it would have.

/// A number in [0, 1) that depends on nothing but its arguments: 53 bits of Philox4x32-10 under the key
/// `seed`, at the counter (position, sequence).
pub(crate) fn uniform(seed: u64, sequence: u32, position: u64) -> f64 {
    let low_high = |x: u64| [x as u32, (x >> 32) as u32];
    let [low, high] = low_high(position);
    let [x, y, ..] = philox([low, high, sequence, 0], low_high(seed));
    let bits = (u64::from(y) << 32 | u64::from(x)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [c0, c1, c2, c3] = counter;
        let (p0, p1) = (0xD251_1F53 * u64::from(c0), 0xCD9E_8D57 * u64::from(c2));
        counter = [(p1 >> 32) as u32 ^ c1 ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ c3 ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_numbers_of_its_authors() {
        // Random123, tests/kat_vectors.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(
            philox(pi, [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_depends_on_each_argument_and_is_spread() {
        assert_eq!(uniform(1, 2, 3), uniform(1, 2, 3));
        let mut seen: Vec<u64> = Vec::new();
        for (seed, sequence, position) in
            [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1 << 32, 0, 0), (0, 0, 1 << 32)]
        {
            seen.push(uniform(seed, sequence, position).to_bits());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 6);
        let draws: Vec<f64> = (0..100_000).map(|position| uniform(42, 0, position)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
    }
}
