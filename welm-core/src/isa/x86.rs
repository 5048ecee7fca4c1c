//! x86-64: AVX2 holds the sixteen lanes in two registers, AVX-512 in one. AVX-VNNI is AVX2 with `vpdpbusd`.
//!
//! Code with intrinsics uses loops instead of closures. A closure that the compiler does not inline is compiled without
//! the caller's instruction set, and then each intrinsic in it is a function call.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::x86_dot::{Dot, Evex, Nibbles, Vex};
use super::{GROUP, Kernel, LANES, ROTATED, Simd};
use half::{bf16, f16};

/// Runs a kernel with AVX2.
///
/// # Safety
/// The CPU has avx2, fma and f16c; the kernel's fields are as their comments say.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here, which is what `Avx2` asks for.
    unsafe { kernel.run::<Avx2<Nibbles>>() }
}

/// Runs a kernel with AVX2 and AVX-VNNI.
///
/// # Safety
/// The CPU has the features named below; the kernel's fields are as their comments say.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn run_avxvnni<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here, which is what `Avx2` and `Vex` ask for.
    unsafe { kernel.run::<Avx2<Vex>>() }
}

/// Runs a kernel with AVX2, and `vpdpbusd` in the encoding of AVX-512.
///
/// # Safety
/// The CPU has the features named below; the kernel's fields are as their comments say.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512vl,avx512vnni")]
pub(super) unsafe fn run_avxvnni_evex<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here, which is what `Avx2` and `Evex` ask for.
    unsafe { kernel.run::<Avx2<Evex>>() }
}

/// Runs a kernel with AVX-512 and its VNNI.
///
/// # Safety
/// The CPU has the features named below; the kernel's fields are as their comments say.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn run_avx512vnni<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here, which is what `Avx512Vnni` asks for.
    unsafe { kernel.run::<Avx512Vnni>() }
}

/// Two registers of eight lanes. `D` computes the integer dot products.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<D>(PhantomData<D>);

/// The sums of the first and of the last 16 i8. Computed as sums of u8 with an offset of 128, which is subtracted.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn sums_i8(v: __m256i) -> [i32; 2] {
    // SAFETY: AVX2, by the caller's promise.
    unsafe {
        let unsigned = _mm256_xor_si256(v, _mm256_set1_epi8(i8::MIN));
        let sums = _mm256_sad_epu8(unsigned, _mm256_setzero_si256());
        let sums = _mm256_add_epi32(sums, _mm256_unpackhi_epi64(sums, sums));
        let (first, last) = (_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        [_mm_cvtsi128_si32(first) - 16 * 128, _mm_cvtsi128_si32(last) - 16 * 128]
    }
}

/// Sum of eight lanes, in the order of [`Simd::sum`].
#[inline(always)]
unsafe fn sum8(v: __m256) -> f32 {
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

/// One register of sixteen lanes. `vpdpbusd` adds four integer products to each lane.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni;

/// The lower eight lanes plus the upper eight: those of `a` in the lower half of the result, those of `b` in the upper.
#[inline(always)]
unsafe fn halves(a: __m512, b: __m512) -> __m512 {
    // SAFETY: AVX-512F, by the contract of `Simd`.
    unsafe {
        let (low, high) =
            (_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b));
        _mm512_add_ps(low, high)
    }
}

/// `x + partner` in each lane; in the lanes of the mask `upper`, `partner - x`.
#[inline(always)]
unsafe fn butterfly(x: __m512, partner: __m512, upper: u16) -> __m512 {
    // SAFETY: AVX-512F, by the contract of `Simd`.
    unsafe {
        let sign = _mm512_mask_mov_ps(_mm512_set1_ps(1.0), upper, _mm512_set1_ps(-1.0)); // a constant
        _mm512_fmadd_ps(x, sign, partner)
    }
}

impl Simd for Avx512Vnni {
    const ROWS: usize = 8;
    const PAIRS: bool = true;
    type V = __m512;
    type I = __m512i;
    type B = __m512i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: AVX-512F by the contract of `Simd`, as in every method below; so are the lengths of pointers.
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
    unsafe fn load_i8(p: *const i8) -> Self::V {
        // SAFETY: AVX-512F by the contract; 16 readable i8.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: AVX-512F by the contract; 64 readable bytes.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::B) {
        // SAFETY: AVX-512F by the contract; 64 writable bytes.
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn bits(v: Self::B, down: i32, mask: u8) -> Self::B {
        // SAFETY: AVX-512BW by the contract.
        unsafe {
            let moved = match down {
                ..0 => _mm512_sll_epi16(v, _mm_cvtsi32_si128(-down)),
                _ => _mm512_srl_epi16(v, _mm_cvtsi32_si128(down)),
            };
            _mm512_and_si512(moved, _mm512_set1_epi8(mask.cast_signed()))
        }
    }
    #[inline(always)]
    unsafe fn either(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn add_byte(v: Self::B, x: u8) -> Self::B {
        // SAFETY: AVX-512BW by the contract.
        unsafe { _mm512_add_epi8(v, _mm512_set1_epi8(x.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], v: Self::B) -> Self::B {
        // SAFETY: AVX-512BW by the contract.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, v)
        }
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
    unsafe fn sums<const N: usize>(v: [Self::V; N]) -> [f32; N] {
        let mut sums = [0.0; N];
        // SAFETY: AVX-512F by the contract; `N` is 4 where four are read and written.
        unsafe {
            if N == 4 {
                // First the halves of each vector are added: a register then has eight lanes of each of two vectors.
                // Then the quarters: one register has four lanes of each of the four vectors.
                let (a, b) = (halves(v[0], v[1]), halves(v[2], v[3]));
                let (low, high) = (
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
                );
                let v = _mm512_add_ps(low, high);
                let v = _mm512_add_ps(v, _mm512_permute_ps::<0b11_10_11_10>(v));
                let v = _mm512_add_ps(v, _mm512_permute_ps::<0b01_01_01_01>(v));
                _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, v)));
            } else {
                for i in 0..N {
                    sums[i] = Self::sum(v[i]);
                }
            }
        }
        sums
    }
    const VECTORS: usize = 32;
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn if_greater(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), x) }
    }
    #[inline(always)]
    unsafe fn to_exponent(v: Self::V) -> Self::V {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(v))) }
    }
    /// Does not use `vcvtneps2bf16`, which takes denormal values for zero.
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Self::V) {
        // SAFETY: AVX-512F by the contract; 16 writable bf16.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let rounded = _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), quiet);
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded)));
        }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        // SAFETY: a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::V {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn from_bits(v: Self::I) -> Self::V {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_castsi512_ps(v) }
    }
    #[inline(always)]
    unsafe fn join(hi: Self::I, lo: Self::I) -> Self::I {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<8>(hi), lo) }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        // SAFETY: AVX-512F by the contract.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn dot_group<const R: usize, const FOURS: usize>(
        w: *const u8,
        x: [*const i8; R],
        mut acc: [Self::I; R],
    ) -> [Self::I; R] {
        // SAFETY: AVX-512 VNNI by the contract; `(FOURS, 16, 4)` u8 at `w`, `4 * FOURS` i8 at each `x`.
        unsafe {
            for kk in 0..FOURS {
                let wk = _mm512_loadu_si512(w.add(kk * 4 * LANES).cast());
                for r in 0..R {
                    let four = x[r].add(4 * kk).cast::<i32>().read_unaligned();
                    acc[r] = _mm512_dpbusd_epi32(acc[r], wk, _mm512_set1_epi32(four));
                }
            }
            acc
        }
    }
    const IN_REGISTERS: bool = true;
    #[inline(always)]
    unsafe fn dot_four<const R: usize>(w: Self::B, x: [*const i8; R], mut acc: [Self::I; R]) -> [Self::I; R] {
        for r in 0..R {
            // SAFETY: AVX-512 VNNI by the contract; four i8 at each `x`.
            unsafe {
                let four = _mm512_set1_epi32(x[r].cast::<i32>().read_unaligned());
                acc[r] = _mm512_dpbusd_epi32(acc[r], w, four);
            }
        }
        acc
    }
    /// Loads each activation once for all strips, because a product is bound by loads as much as by `vpdpbusd`.
    #[inline(always)]
    unsafe fn dot_groups<const R: usize, const T: usize, const FOURS: usize>(
        w: [*const u8; T],
        x: [*const i8; R],
        mut acc: [[Self::I; R]; T],
    ) -> [[Self::I; R]; T] {
        // SAFETY: AVX-512 VNNI by the contract; `(FOURS, 16, 4)` u8 at each `w`, `4 * FOURS` i8 at each `x`.
        unsafe {
            for kk in 0..FOURS {
                let mut wk = [_mm512_setzero_si512(); T];
                for t in 0..T {
                    wk[t] = _mm512_loadu_si512(w[t].add(kk * 4 * LANES).cast());
                }
                for r in 0..R {
                    let xk = _mm512_set1_epi32(x[r].add(4 * kk).cast::<i32>().read_unaligned());
                    for t in 0..T {
                        acc[t][r] = _mm512_dpbusd_epi32(acc[t][r], wk[t], xk);
                    }
                }
            }
            acc
        }
    }
    #[inline(always)]
    unsafe fn dot_group4<const R: usize>(w: *const u8, x: [*const i8; R]) -> [Self::I; R] {
        // SAFETY: AVX-512 VNNI by the contract; 256 u8 at `w`, 32 i8 at each `x`.
        unsafe {
            let low = _mm512_set1_epi8(15);
            let mut acc = [_mm512_setzero_si512(); R];
            for j in 0..4 {
                let both = _mm512_loadu_si512(w.add(j * 4 * LANES).cast());
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                let parts = [_mm512_and_si512(both, low), high];
                for (part, four) in parts.into_iter().zip(0..) {
                    for r in 0..R {
                        let xk = x[r].add(8 * j + 4 * four).cast::<i32>().read_unaligned();
                        acc[r] = _mm512_dpbusd_epi32(acc[r], part, _mm512_set1_epi32(xk));
                    }
                }
            }
            acc
        }
    }
    #[inline(always)]
    unsafe fn rotate(from: &[f32; ROTATED], to: &mut [f32; ROTATED]) {
        // SAFETY: AVX-512F by the contract; 64 values.
        unsafe {
            let mut v = [_mm512_setzero_ps(); ROTATED / LANES];
            for i in 0..v.len() {
                let x = _mm512_mul_ps(_mm512_loadu_ps(from.as_ptr().add(i * LANES)), _mm512_set1_ps(0.125));
                let x = butterfly(x, _mm512_permute_ps::<0b10_11_00_01>(x), 0xAAAA);
                let x = butterfly(x, _mm512_permute_ps::<0b01_00_11_10>(x), 0xCCCC);
                let x = butterfly(x, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x), 0xF0F0);
                v[i] = butterfly(x, _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x), 0xFF00);
            }
            let [a, b, c, d] = v;
            let (a, b) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b));
            let (c, d) = (_mm512_add_ps(c, d), _mm512_sub_ps(c, d));
            let v = [_mm512_add_ps(a, c), _mm512_add_ps(b, d), _mm512_sub_ps(a, c), _mm512_sub_ps(b, d)];
            for i in 0..v.len() {
                _mm512_storeu_ps(to.as_mut_ptr().add(i * LANES), v[i]);
            }
        }
    }
    #[inline(always)]
    unsafe fn largest_bits(tiles: &[[f32; GROUP]]) -> u32 {
        // SAFETY: AVX-512F by the contract.
        unsafe {
            let magnitude = _mm512_set1_epi32(i32::MAX);
            let mut largest = _mm512_setzero_si512();
            for tile in tiles {
                let a = _mm512_and_si512(_mm512_loadu_si512(tile.as_ptr().cast()), magnitude);
                let b = _mm512_and_si512(_mm512_loadu_si512(tile.as_ptr().add(LANES).cast()), magnitude);
                largest = _mm512_max_epi32(largest, _mm512_max_epi32(a, b));
            }
            _mm512_reduce_max_epi32(largest) as u32
        }
    }
    #[inline(always)]
    unsafe fn quantize_group<const WIDE: bool>(
        group: &[f32; GROUP],
        inverse: f32,
        lo: &mut [i8; GROUP],
        hi: &mut [i8; GROUP],
    ) -> ([i32; 2], [i32; 2]) {
        // SAFETY: AVX-512F by the contract; 32 values each.
        unsafe {
            let inverse = _mm512_set1_ps(inverse);
            let a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(group.as_ptr()), inverse));
            let b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(group.as_ptr().add(LANES)), inverse));
            let low = _mm256_set_m128i(_mm512_cvtepi32_epi8(b), _mm512_cvtepi32_epi8(a));
            _mm256_storeu_si256(lo.as_mut_ptr().cast(), low);
            let mut hi_sums = [0; 2];
            if WIDE {
                // The low byte is signed, so the high plane is (q - lo) / 256, which is (q + 128) >> 8.
                let half = _mm512_set1_epi32(128);
                let a = _mm512_srai_epi32::<8>(_mm512_add_epi32(a, half));
                let b = _mm512_srai_epi32::<8>(_mm512_add_epi32(b, half));
                let high = _mm256_set_m128i(_mm512_cvtepi32_epi8(b), _mm512_cvtepi32_epi8(a));
                _mm256_storeu_si256(hi.as_mut_ptr().cast(), high);
                hi_sums = sums_i8(high);
            }
            (sums_i8(low), hi_sums)
        }
    }
}
