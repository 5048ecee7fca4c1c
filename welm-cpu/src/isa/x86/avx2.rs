//! AVX2: the sixteen lanes in two registers.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::dot::Dot;
use crate::isa::Simd;
use half::{bf16, f16};

/// Two registers of eight lanes. `D` computes the integer dot products.
#[derive(Clone, Copy)]
pub(super) struct Avx2<D>(PhantomData<D>);

/// Sum of eight lanes, in the order of [`Simd::sum`].
#[inline(always)]
pub(super) unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: AVX, by the contract of `Simd`.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
    }
}

impl<D: Dot> Simd for Avx2<D> {
    const ROWS: usize = 4;
    type V = (__m256, __m256);
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: AVX2 by the contract of `Simd`, as in every method below; so are the lengths of pointers.
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
    unsafe fn load_i8(p: *const i8) -> Self::V {
        // SAFETY: 16 readable i8.
        unsafe {
            let bytes = _mm_loadu_si128(p.cast());
            let low = _mm256_cvtepi8_epi32(bytes);
            let high = _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes));
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: 64 readable bytes.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::B) {
        // SAFETY: 64 writable bytes.
        unsafe {
            _mm256_storeu_si256(p.cast(), v[0]);
            _mm256_storeu_si256(p.add(32).cast(), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn bits(mut v: Self::B, down: i32, mask: u8) -> Self::B {
        for i in 0..2 {
            // SAFETY: AVX2 by the contract.
            unsafe {
                let moved = match down {
                    ..0 => _mm256_sll_epi16(v[i], _mm_cvtsi32_si128(-down)),
                    _ => _mm256_srl_epi16(v[i], _mm_cvtsi32_si128(down)),
                };
                v[i] = _mm256_and_si256(moved, _mm256_set1_epi8(mask.cast_signed()));
            }
        }
        v
    }
    #[inline(always)]
    unsafe fn either(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: AVX2 by the contract.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn add_byte(v: Self::B, x: u8) -> Self::B {
        // SAFETY: AVX2 by the contract.
        unsafe {
            let x = _mm256_set1_epi8(x.cast_signed());
            [_mm256_add_epi8(v[0], x), _mm256_add_epi8(v[1], x)]
        }
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], v: Self::B) -> Self::B {
        // SAFETY: AVX2 by the contract.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, v[0]), _mm256_shuffle_epi8(table, v[1])]
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
    const VECTORS: usize = 8;
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX by the contract.
        unsafe { (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX by the contract.
        unsafe { (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX by the contract.
        unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn if_greater(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        // SAFETY: AVX by the contract.
        unsafe {
            let pick = |a, b, x, y| _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_GT_OQ>(a, b));
            (pick(a.0, b.0, x.0, y.0), pick(a.1, b.1, x.1, y.1))
        }
    }
    #[inline(always)]
    unsafe fn to_exponent(v: Self::V) -> Self::V {
        // SAFETY: AVX2 by the contract.
        unsafe {
            let shift = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v)));
            (shift(v.0), shift(v.1))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: Self::V) {
        // SAFETY: F16C by the contract; 16 writable f16.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.1));
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Self::V) {
        // SAFETY: AVX2 by the contract; 16 writable bf16.
        unsafe {
            let round = |v: __m256| {
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
                _mm256_srli_epi32::<16>(_mm256_blendv_epi8(up, quiet, nan))
            };
            // The packing works on each half of the registers apart, so its four quarters are put in order afterwards.
            let packed = _mm256_packus_epi32(round(v.0), round(v.1));
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        // SAFETY: a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::V {
        // SAFETY: AVX by the contract.
        unsafe { (_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])) }
    }
    #[inline(always)]
    unsafe fn from_bits(v: Self::I) -> Self::V {
        // SAFETY: AVX by the contract.
        unsafe { (_mm256_castsi256_ps(v[0]), _mm256_castsi256_ps(v[1])) }
    }
    #[inline(always)]
    unsafe fn join(hi: Self::I, lo: Self::I) -> Self::I {
        // SAFETY: AVX2 by the contract.
        unsafe {
            [
                _mm256_add_epi32(_mm256_slli_epi32::<8>(hi[0]), lo[0]),
                _mm256_add_epi32(_mm256_slli_epi32::<8>(hi[1]), lo[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        // SAFETY: AVX by the contract.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn dot_group<const R: usize, const FOURS: usize>(
        w: *const u8,
        x: [*const i8; R],
        acc: [Self::I; R],
    ) -> [Self::I; R] {
        // SAFETY: the caller's promise.
        unsafe { D::group::<R, FOURS>(w, x, acc) }
    }
    #[inline(always)]
    unsafe fn dot_group4<const R: usize>(w: *const u8, x: [*const i8; R]) -> [Self::I; R] {
        // SAFETY: the caller's promise.
        unsafe { D::group4(w, x) }
    }
}
