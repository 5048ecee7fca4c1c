//! Random inputs, the same in every run.

use half::bf16;

/// xorshift64* (Vigna).
pub(crate) struct Random(u64);

impl Random {
    /// A sequence of its own for every seed.
    pub(crate) fn new(seed: u64) -> Random {
        let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..4).for_each(|_| _ = random.bits());
        random
    }

    /// 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in `0..n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }

    /// Uniform in `[0, 1)`.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// Uniform in `-size..size`.
    pub(crate) fn f32s(&mut self, len: usize, size: f32) -> Vec<f32> {
        (0..len).map(|_| (self.uniform() * 2.0 - 1.0) * size).collect()
    }

    /// As above, rounded.
    pub(crate) fn bf16s(&mut self, len: usize, size: f32) -> Vec<bf16> {
        self.f32s(len, size).into_iter().map(bf16::from_f32).collect()
    }

    /// Any order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
