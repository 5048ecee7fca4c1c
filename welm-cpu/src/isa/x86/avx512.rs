//! AVX-512 with VNNI: the sixteen lanes in one register.

use std::arch::x86_64::*;

use super::avx2::sum8;
use crate::isa::{GROUP, LANES, ROTATED, Simd};
use half::{bf16, f16};

/// One register of sixteen lanes. `vpdpbusd` adds four integer products to each lane.
#[derive(Clone, Copy)]
pub(super) struct Avx512Vnni;

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

/// The largest lane of each of eight registers of integers.
#[inline(always)]
unsafe fn largest_of_eight(v: [__m512i; 8]) -> __m256i {
    // SAFETY: AVX-512F, by the contract of `Simd`.
    unsafe {
        let mut w = [_mm512_setzero_si512(); 4]; // eight lanes of each of two registers
        for i in 0..4 {
            let (a, b) = (v[2 * i], v[2 * i + 1]);
            let low = _mm512_shuffle_i32x4::<0b01_00_01_00>(a, b);
            w[i] = _mm512_max_epi32(low, _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b));
        }
        let mut y = [_mm512_setzero_si512(); 2]; // four lanes of each of four
        for i in 0..2 {
            let (a, b) = (w[2 * i], w[2 * i + 1]);
            let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
            y[i] = _mm512_max_epi32(even, _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b));
        }
        // Two lanes of each of eight: a quarter has two of register i, then two of register 4 + i.
        let z = _mm512_max_epi32(_mm512_unpacklo_epi64(y[0], y[1]), _mm512_unpackhi_epi64(y[0], y[1]));
        let z = _mm512_max_epi32(z, _mm512_shuffle_epi32::<0b10_11_00_01>(z));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
        _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, z))
    }
}

/// The integers of four registers as bytes, saturated, in order.
#[inline(always)]
unsafe fn bytes(q: [__m512i; 4]) -> __m512i {
    // SAFETY: AVX-512BW, by the contract of `Simd`.
    unsafe {
        let (a, b) = (_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b))
    }
}

/// The sums of the first and the last 16 bytes of eight tiles, `(2, 8)`. A register has two tiles.
#[inline(always)]
unsafe fn sums_of_tiles(pairs: [__m512i; 4]) -> [[i32; 8]; 2] {
    // SAFETY: AVX-512BW, by the contract of `Simd`.
    unsafe {
        let mut s = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            let unsigned = _mm512_xor_si512(pairs[i], _mm512_set1_epi8(i8::MIN));
            s[i] = _mm512_sad_epu8(unsigned, _mm512_setzero_si512()); // of eight bytes each, in 64 bits
        }
        let a = _mm512_or_si512(s[0], _mm512_slli_epi64::<32>(s[1]));
        let b = _mm512_or_si512(s[2], _mm512_slli_epi64::<32>(s[3]));
        let sums = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        let sums = _mm512_sub_epi32(sums, _mm512_set1_epi32(16 * 128));
        // A quarter has one half of the tiles 0, 2, 4, 6, then the quarter after next those of 1, 3, 5, 7.
        let order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
        let mut both = [[0i32; 8]; 2];
        _mm512_storeu_si512(both.as_mut_ptr().cast(), _mm512_permutexvar_epi32(order, sums));
        both
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
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: Self::V) {
        // SAFETY: AVX-512F by the contract; 16 writable f16.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
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
    unsafe fn largest_bits(groups: [&[[f32; GROUP]]; 8]) -> [u32; 8] {
        // SAFETY: AVX-512F by the contract.
        unsafe {
            let magnitude = _mm512_set1_epi32(i32::MAX);
            let mut v = [_mm512_setzero_si512(); 8];
            for i in 0..8 {
                for tile in groups[i] {
                    let a = _mm512_and_si512(_mm512_loadu_si512(tile.as_ptr().cast()), magnitude);
                    let b = _mm512_and_si512(_mm512_loadu_si512(tile.as_ptr().add(LANES).cast()), magnitude);
                    v[i] = _mm512_max_epi32(v[i], _mm512_max_epi32(a, b));
                }
            }
            let mut largest = [0; 8];
            _mm256_storeu_si256(largest.as_mut_ptr().cast(), largest_of_eight(v));
            largest
        }
    }
    #[inline(always)]
    unsafe fn quantize<const WIDE: bool>(
        tiles: [&[f32; GROUP]; 8],
        inverse: &[f32; 8],
        lo: &mut [[i8; GROUP]; 8],
        hi: &mut [[i8; GROUP]; 8],
    ) -> ([[i32; 8]; 2], [[i32; 8]; 2]) {
        // SAFETY: AVX-512F and AVX-512BW by the contract; two tiles are 64 bytes.
        unsafe {
            // A register has the low bytes of two tiles, or their high bytes.
            let (mut low, mut high) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
            for pair in 0..4 {
                let mut q = [_mm512_setzero_si512(); 4];
                for i in 0..4 {
                    let r = 2 * pair + i / 2;
                    let x = _mm512_loadu_ps(tiles[r].as_ptr().add(i % 2 * LANES));
                    q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse[r])));
                }
                if WIDE {
                    // The low byte is signed, so the high plane is (q - lo) / 256, which is (q + 128) >> 8.
                    let mut h = [_mm512_setzero_si512(); 4];
                    for i in 0..4 {
                        h[i] = _mm512_srai_epi32::<8>(_mm512_add_epi32(q[i], _mm512_set1_epi32(128)));
                        q[i] = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(q[i]));
                    }
                    high[pair] = bytes(h);
                    _mm512_storeu_si512(hi[2 * pair..].as_mut_ptr().cast(), high[pair]);
                }
                low[pair] = bytes(q);
                _mm512_storeu_si512(lo[2 * pair..].as_mut_ptr().cast(), low[pair]);
            }
            (sums_of_tiles(low), if WIDE { sums_of_tiles(high) } else { [[0; 8]; 2] })
        }
    }
}
