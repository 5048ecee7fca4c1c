//! x86-64: AVX2 holds the sixteen lanes in two registers, AVX-512 in one.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};
use half::{bf16, f16};

/// # Safety
/// The CPU has avx2, fma and f16c; the kernel's fields keep their promises.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here, which is what `Avx2` asks for.
    unsafe { kernel.run::<Avx2>() }
}

/// # Safety
/// The CPU has the features named below; the kernel's fields keep their promises.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn run_avx512vnni<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here, which is what `Avx512Vnni` asks for.
    unsafe { kernel.run::<Avx512Vnni>() }
}

/// Two registers of eight lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Lanes 8 to 4 to 2 to 1.
#[inline(always)]
unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: AVX, by the contract of `Simd`.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}

impl Simd for Avx2 {
    type V = (__m256, __m256);
    type I = (__m256i, __m256i);

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: AVX2 by the contract; so in every method below, pointers included.
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: 16 readable f32.
        unsafe { (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        // SAFETY: 16 readable bf16.
        unsafe {
            let widen = |q: *const bf16| {
                let v = _mm256_cvtepu16_epi32(_mm_loadu_si128(q.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v))
            };
            (widen(p), widen(p.add(8)))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: 16 readable f16; F16C by the contract.
        unsafe {
            (_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())))
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: 16 writable f32.
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX by the contract.
        unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX by the contract.
        unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: FMA by the contract.
        unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: AVX by the contract.
        unsafe { sum8(_mm256_add_ps(v.0, v.1)) }
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::V {
        // SAFETY: AVX by the contract.
        unsafe { (_mm256_cvtepi32_ps(v.0), _mm256_cvtepi32_ps(v.1)) }
    }
    #[inline(always)]
    unsafe fn join(hi: Self::I, lo: Self::I) -> Self::I {
        // SAFETY: AVX2 by the contract.
        unsafe {
            (
                _mm256_add_epi32(_mm256_slli_epi32::<8>(hi.0), lo.0),
                _mm256_add_epi32(_mm256_slli_epi32::<8>(hi.1), lo.1),
            )
        }
    }
    /// Widened to 16 bits, because `vpmaddubsw` saturates: u8 x i8 pairs reach 64,770.
    #[inline(always)]
    unsafe fn dot_group<const R: usize>(w: *const u8, x: [*const i8; R], init: [i32; R]) -> [Self::I; R] {
        // SAFETY: AVX2 by the contract; 512 u8 behind `w`, 32 i8 behind each `x`.
        unsafe {
            // acc[r][q]: rows 4q to 4q + 3, two partial sums each.
            let mut acc = [[_mm256_setzero_si256(); 4]; R];
            for kk in 0..8 {
                let xs: [__m256i; R] = std::array::from_fn(|r| {
                    let four = x[r].add(4 * kk).cast::<i32>().read_unaligned();
                    _mm256_cvtepi8_epi16(_mm_set1_epi32(four))
                });
                for q in 0..4 {
                    let wq = _mm256_cvtepu8_epi16(_mm_loadu_si128(w.add(64 * kk + 16 * q).cast()));
                    for r in 0..R {
                        acc[r][q] = _mm256_add_epi32(acc[r][q], _mm256_madd_epi16(wq, xs[r]));
                    }
                }
            }
            std::array::from_fn(|r| {
                // hadd gives rows 0 1 4 5 | 2 3 6 7; the permutation puts them in order.
                let fold = |a, b| {
                    let v = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(a, b));
                    _mm256_add_epi32(v, _mm256_set1_epi32(init[r]))
                };
                (fold(acc[r][0], acc[r][1]), fold(acc[r][2], acc[r][3]))
            })
        }
    }
}

/// One register of sixteen lanes, and `vpdpbusd` for four products at a time.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni;

impl Simd for Avx512Vnni {
    type V = __m512;
    type I = __m512i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: AVX-512F by the contract; so in every method below, pointers included.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: 16 readable f32.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        // SAFETY: 16 readable bf16.
        unsafe {
            let v = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: 16 readable f16.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: 16 writable f32.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: AVX-512DQ by the contract.
        unsafe { sum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))) }
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::V {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn join(hi: Self::I, lo: Self::I) -> Self::I {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<8>(hi), lo) }
    }
    #[inline(always)]
    unsafe fn dot_group<const R: usize>(w: *const u8, x: [*const i8; R], init: [i32; R]) -> [Self::I; R] {
        // SAFETY: AVX-512 VNNI by the contract; 512 u8 behind `w`, 32 i8 behind each `x`.
        unsafe {
            let mut acc: [__m512i; R] = std::array::from_fn(|r| _mm512_set1_epi32(init[r]));
            for kk in 0..8 {
                let wk = _mm512_loadu_si512(w.add(kk * 4 * LANES).cast());
                for r in 0..R {
                    let four = x[r].add(4 * kk).cast::<i32>().read_unaligned();
                    acc[r] = _mm512_dpbusd_epi32(acc[r], wk, _mm512_set1_epi32(four));
                }
            }
            acc
        }
    }
}
