//! Integer dot products in registers of 256 bits: with AVX2 alone, or with `vpdpbusd`.

use std::arch::x86_64::*;

/// The integer dot products of [`crate::isa::Simd`], with the sixteen lanes in two registers.
///
/// # Safety
/// The same as for the methods of [`crate::isa::Simd`].
pub(super) trait Dot: Copy + 'static {
    /// As [`crate::isa::Simd::dot_group`].
    unsafe fn group<const R: usize, const FOURS: usize>(
        w: *const u8,
        x: [*const i8; R],
        acc: [[__m256i; 2]; R],
    ) -> [[__m256i; 2]; R];
    /// As [`crate::isa::Simd::dot_group4`].
    unsafe fn group4<const R: usize>(w: *const u8, x: [*const i8; R]) -> [[__m256i; 2]; R];
}

/// AVX2 alone, by `vpmaddubsw`, which adds pairs of products in 16 bits. Four bits of a weight at a time, so that no
/// sum overflows: the eight pairs of a group are at most `8 * 2 * 15 * 128`, which is 30,720.
#[derive(Clone, Copy)]
pub(super) struct Nibbles;

/// The instruction `vpdpbusd` on 256 bits, which has two encodings.
///
/// # Safety
/// The CPU has the instruction in the implementation's encoding.
pub(super) trait Vpdpbusd: Copy + 'static {
    /// Adds four products of u8 and i8 to each lane, exactly.
    unsafe fn add(acc: __m256i, w: __m256i, x: __m256i) -> __m256i;
}

/// The encoding of AVX-VNNI.
#[derive(Clone, Copy)]
pub(super) struct Vex;

/// The encoding of AVX-512 VL and VNNI: the same arithmetic on machines without AVX-VNNI. So tests reach it there too.
#[derive(Clone, Copy)]
pub(super) struct Evex;

impl Vpdpbusd for Vex {
    #[inline(always)]
    unsafe fn add(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: AVX-VNNI by the contract.
        unsafe { _mm256_dpbusd_avx_epi32(acc, w, x) }
    }
}

impl Vpdpbusd for Evex {
    #[inline(always)]
    unsafe fn add(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: AVX-512 VL and VNNI by the contract.
        unsafe { _mm256_dpbusd_epi32(acc, w, x) }
    }
}

impl Dot for Nibbles {
    /// Multiplies the low and the high four bits of weights separately. `vpmaddubsw` would saturate with whole bytes:
    /// two products of u8 and i8 reach 65,280.
    #[inline(always)]
    unsafe fn group<const R: usize, const FOURS: usize>(
        w: *const u8,
        x: [*const i8; R],
        acc: [[__m256i; 2]; R],
    ) -> [[__m256i; 2]; R] {
        // SAFETY: AVX2 by the contract; `(FOURS, 16, 4)` u8 at `w`, `4 * FOURS` i8 at each `x`.
        unsafe {
            let mut sums = acc;
            for q in 0..2 {
                let mut acc = [[_mm256_setzero_si256(); 2]; R];
                for kk in 0..FOURS {
                    let parts = nibbles(w.add(64 * kk + 32 * q));
                    for r in 0..R {
                        let xk = _mm256_set1_epi32(x[r].add(4 * kk).cast::<i32>().read_unaligned());
                        for half in 0..2 {
                            let products = _mm256_maddubs_epi16(parts[half], xk);
                            acc[r][half] = _mm256_add_epi16(acc[r][half], products);
                        }
                    }
                }
                for r in 0..R {
                    let low = _mm256_madd_epi16(acc[r][0], _mm256_set1_epi16(1));
                    let high = _mm256_madd_epi16(acc[r][1], _mm256_set1_epi16(16));
                    sums[r][q] = _mm256_add_epi32(_mm256_add_epi32(low, sums[r][q]), high);
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn group4<const R: usize>(w: *const u8, x: [*const i8; R]) -> [[__m256i; 2]; R] {
        // SAFETY: AVX2 by the contract; 256 u8 at `w`, 32 i8 at each `x`.
        unsafe {
            let mut acc = [[_mm256_setzero_si256(); 2]; R];
            for j in 0..4 {
                for q in 0..2 {
                    let parts = nibbles(w.add(64 * j + 32 * q));
                    for four in 0..2 {
                        for r in 0..R {
                            let xk = x[r].add(8 * j + 4 * four).cast::<i32>().read_unaligned();
                            let products = _mm256_maddubs_epi16(parts[four], _mm256_set1_epi32(xk));
                            acc[r][q] = _mm256_add_epi16(acc[r][q], products);
                        }
                    }
                }
            }
            for r in 0..R {
                for q in 0..2 {
                    acc[r][q] = _mm256_madd_epi16(acc[r][q], _mm256_set1_epi16(1));
                }
            }
            acc
        }
    }
}

/// The low four bits and the high four bits of 32 bytes.
#[inline(always)]
unsafe fn nibbles(w: *const u8) -> [__m256i; 2] {
    // SAFETY: AVX2 by the contract of `Simd`; 32 u8 at `w`.
    unsafe {
        let (both, low) = (_mm256_loadu_si256(w.cast()), _mm256_set1_epi8(15));
        [_mm256_and_si256(both, low), _mm256_and_si256(_mm256_srli_epi16::<4>(both), low)]
    }
}

impl<F: Vpdpbusd> Dot for F {
    #[inline(always)]
    unsafe fn group<const R: usize, const FOURS: usize>(
        w: *const u8,
        x: [*const i8; R],
        acc: [[__m256i; 2]; R],
    ) -> [[__m256i; 2]; R] {
        // SAFETY: instructions by the contract; `(FOURS, 16, 4)` u8 at `w`, `4 * FOURS` i8 at each `x`.
        unsafe {
            let mut acc = acc;
            for kk in 0..FOURS {
                let low = _mm256_loadu_si256(w.add(64 * kk).cast());
                let high = _mm256_loadu_si256(w.add(64 * kk + 32).cast());
                for r in 0..R {
                    let xk = _mm256_set1_epi32(x[r].add(4 * kk).cast::<i32>().read_unaligned());
                    acc[r] = [F::add(acc[r][0], low, xk), F::add(acc[r][1], high, xk)];
                }
            }
            acc
        }
    }
    #[inline(always)]
    unsafe fn group4<const R: usize>(w: *const u8, x: [*const i8; R]) -> [[__m256i; 2]; R] {
        // SAFETY: instructions by the contract; 256 u8 at `w`, 32 i8 at each `x`.
        unsafe {
            let mut acc = [[_mm256_setzero_si256(); 2]; R];
            for j in 0..4 {
                let (low, high) = (nibbles(w.add(64 * j)), nibbles(w.add(64 * j + 32)));
                for four in 0..2 {
                    for r in 0..R {
                        let xk = x[r].add(8 * j + 4 * four).cast::<i32>().read_unaligned();
                        let xk = _mm256_set1_epi32(xk);
                        acc[r] = [F::add(acc[r][0], low[four], xk), F::add(acc[r][1], high[four], xk)];
                    }
                }
            }
            acc
        }
    }
}
