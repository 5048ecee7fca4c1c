//! AArch64: NEON holds the sixteen lanes in four registers.
//!
//! `sdot`, prefetching and the widening of f16 are written in assembly: their intrinsics are newer than the oldest
//! compiler that this crate builds with, or not stable at all. As in `x86`, code uses loops instead of closures.

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};

/// Runs a kernel with NEON.
///
/// # Safety
/// The CPU has NEON; the kernel's fields are as their comments say.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run_neon<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the feature is enabled here, which is what `Neon` asks for.
    unsafe { kernel.run::<Neon<Pairs>>() }
}

/// Runs a kernel with NEON and `sdot`.
///
/// # Safety
/// The CPU has NEON and dotprod; the kernel's fields are as their comments say.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn run_neondot<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here, which is what `Neon` and `Sdot` ask for.
    unsafe { kernel.run::<Neon<Sdot>>() }
}

/// Four registers of four lanes. `D` computes the integer dot products.
#[derive(Clone, Copy)]
pub(super) struct Neon<D>(PhantomData<D>);

/// The integer dot products of [`Simd`], with the sixteen lanes in four registers.
///
/// # Safety
/// The same as for the methods of [`Simd`].
pub(super) trait Dot: Copy + 'static {
    /// As [`Simd::ROWS`].
    const ROWS: usize;
    /// As [`Simd::dot_group`].
    unsafe fn group<const R: usize, const FOURS: usize>(
        w: *const u8,
        x: [*const i8; R],
        acc: [[int32x4_t; 4]; R],
    ) -> [[int32x4_t; 4]; R];
    /// As [`Simd::dot_group4`].
    unsafe fn group4<const R: usize>(w: *const u8, x: [*const i8; R]) -> [[int32x4_t; 4]; R];
}

/// For every NEON: products of i8 in 16 bits, of which pairs are added.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

/// For CPUs with `dotprod`: `sdot` adds four products at a time.
#[derive(Clone, Copy)]
pub(super) struct Sdot;

/// Adds to each lane four products of i8: of the lane's four bytes of `w` and of bytes `4 * I..4 * I + 4` of `x`.
///
/// # Safety
/// The CPU has dotprod.
#[inline(always)]
unsafe fn sdot<const I: usize>(acc: &mut int32x4_t, w: int8x16_t, x: int8x16_t) {
    // SAFETY: the caller's promise; registers only.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.4b[{i}]",
            acc = inout(vreg) *acc, w = in(vreg) w, x = in(vreg) x, i = const I,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// 16 stored weights minus their offset of 128, as i8.
///
/// # Safety
/// The CPU has NEON; 16 u8 at `w`.
#[inline(always)]
unsafe fn centred(w: *const u8) -> int8x16_t {
    // SAFETY: the caller's promise.
    unsafe { vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w), vdupq_n_u8(128))) }
}

/// The low four bits and the high four bits of 16 bytes.
///
/// # Safety
/// The CPU has NEON; 16 u8 at `w`.
#[inline(always)]
unsafe fn nibbles(w: *const u8) -> [int8x16_t; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let both = vld1q_u8(w);
        let (low, high) = (vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both));
        [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)]
    }
}

/// `128 * sum(x)`: what a dot product lacks if 128 was subtracted from its weights.
///
/// # Safety
/// The CPU has NEON; `4 * FOURS` i8 at `x`.
#[inline(always)]
unsafe fn left_out<const FOURS: usize>(x: *const i8) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = 0;
        for half in 0..FOURS / 4 {
            sum += i32::from(vaddlvq_s8(vld1q_s8(x.add(half * LANES))));
        }
        vdupq_n_s32(128 * sum)
    }
}

impl Dot for Sdot {
    const ROWS: usize = 4;
    #[inline(always)]
    unsafe fn group<const R: usize, const FOURS: usize>(
        w: *const u8,
        x: [*const i8; R],
        acc: [[int32x4_t; 4]; R],
    ) -> [[int32x4_t; 4]; R] {
        // SAFETY: dotprod by the contract; `(FOURS, 16, 4)` u8 at `w`, `4 * FOURS` i8 at each `x`.
        unsafe {
            let mut acc = acc;
            for r in 0..R {
                let left_out = left_out::<FOURS>(x[r]);
                for q in 0..4 {
                    acc[r][q] = vaddq_s32(acc[r][q], left_out);
                }
            }
            for half in 0..FOURS / 4 {
                let w = w.add(half * 256);
                for q in 0..4 {
                    let w = w.add(q * 16);
                    let w = [centred(w), centred(w.add(64)), centred(w.add(128)), centred(w.add(192))];
                    for r in 0..R {
                        let xk = vld1q_s8(x[r].add(half * LANES));
                        sdot::<0>(&mut acc[r][q], w[0], xk);
                        sdot::<1>(&mut acc[r][q], w[1], xk);
                        sdot::<2>(&mut acc[r][q], w[2], xk);
                        sdot::<3>(&mut acc[r][q], w[3], xk);
                    }
                }
            }
            acc
        }
    }
    #[inline(always)]
    unsafe fn group4<const R: usize>(w: *const u8, x: [*const i8; R]) -> [[int32x4_t; 4]; R] {
        // SAFETY: dotprod by the contract; 256 u8 at `w`, 32 i8 at each `x`.
        unsafe {
            let mut acc = [[vdupq_n_s32(0); 4]; R];
            for half in 0..2 {
                for q in 0..4 {
                    let w = w.add(half * 128 + q * 16);
                    let (a, b) = (nibbles(w), nibbles(w.add(64)));
                    for r in 0..R {
                        let xk = vld1q_s8(x[r].add(half * LANES));
                        sdot::<0>(&mut acc[r][q], a[0], xk);
                        sdot::<1>(&mut acc[r][q], a[1], xk);
                        sdot::<2>(&mut acc[r][q], b[0], xk);
                        sdot::<3>(&mut acc[r][q], b[1], xk);
                    }
                }
            }
            acc
        }
    }
}

/// Four i8, repeated twice.
///
/// # Safety
/// The CPU has NEON; 4 i8 at `x`.
#[inline(always)]
unsafe fn four(x: *const i8) -> int8x8_t {
    // SAFETY: the caller's promise.
    unsafe { vreinterpret_s8_s32(vdup_n_s32(x.cast::<i32>().read_unaligned())) }
}

impl Dot for Pairs {
    const ROWS: usize = 2;
    #[inline(always)]
    unsafe fn group<const R: usize, const FOURS: usize>(
        w: *const u8,
        x: [*const i8; R],
        acc: [[int32x4_t; 4]; R],
    ) -> [[int32x4_t; 4]; R] {
        // SAFETY: NEON by the contract; `(FOURS, 16, 4)` u8 at `w`, `4 * FOURS` i8 at each `x`.
        unsafe {
            let mut sums = acc;
            for q in 0..4 {
                let mut acc = [[vdupq_n_s32(0); 2]; R]; // each has two outputs, in two partial sums
                for kk in 0..FOURS {
                    let wk = centred(w.add(64 * kk + 16 * q));
                    for r in 0..R {
                        let xk = four(x[r].add(4 * kk));
                        acc[r][0] = vpadalq_s16(acc[r][0], vmull_s8(vget_low_s8(wk), xk));
                        acc[r][1] = vpadalq_s16(acc[r][1], vmull_s8(vget_high_s8(wk), xk));
                    }
                }
                for r in 0..R {
                    let sum = vaddq_s32(vpaddq_s32(acc[r][0], acc[r][1]), left_out::<FOURS>(x[r]));
                    sums[r][q] = vaddq_s32(sums[r][q], sum);
                }
            }
            sums
        }
    }
    /// Products with four-bit weights are added in 16 bits without overflow: `8 * 15 * 128` is 15,360.
    #[inline(always)]
    unsafe fn group4<const R: usize>(w: *const u8, x: [*const i8; R]) -> [[int32x4_t; 4]; R] {
        // SAFETY: NEON by the contract; 256 u8 at `w`, 32 i8 at each `x`.
        unsafe {
            let mut sums = [[vdupq_n_s32(0); 4]; R];
            for q in 0..4 {
                let mut acc = [[vdupq_n_s16(0); 2]; R];
                for j in 0..4 {
                    let parts = nibbles(w.add(64 * j + 16 * q));
                    for part in 0..2 {
                        for r in 0..R {
                            let xk = four(x[r].add(8 * j + 4 * part));
                            acc[r][0] = vmlal_s8(acc[r][0], vget_low_s8(parts[part]), xk);
                            acc[r][1] = vmlal_s8(acc[r][1], vget_high_s8(parts[part]), xk);
                        }
                    }
                }
                for r in 0..R {
                    sums[r][q] = vpaddq_s32(vpaddlq_s16(acc[r][0]), vpaddlq_s16(acc[r][1]));
                }
            }
            sums
        }
    }
}

/// Calls an intrinsic on each of the four registers.
macro_rules! each {
    ($f:expr, $($v:expr),+) => { [$f($($v[0]),+), $f($($v[1]),+), $f($($v[2]),+), $f($($v[3]),+)] };
}

/// Four f16, widened exactly.
///
/// # Safety
/// The CPU has NEON; 4 f16 at `p`.
#[inline(always)]
unsafe fn widen_f16(p: *const f16) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let (halves, wide): (uint16x4_t, float32x4_t);
        halves = vld1_u16(p.cast());
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h", wide = out(vreg) wide, halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
        wide
    }
}

/// Four f32 to f16, rounded to nearest even; NaN stays NaN.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn narrow_f16(v: float32x4_t) -> uint16x4_t {
    let halves: uint16x4_t;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "fcvtn {halves:v}.4h, {v:v}.4s", halves = out(vreg) halves, v = in(vreg) v,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    halves
}

/// Four bf16, widened exactly.
///
/// # Safety
/// The CPU has NEON; 4 bf16 at `p`.
#[inline(always)]
unsafe fn widen_bf16(p: *const bf16) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(p.cast())))) }
}

/// Four f32 to bf16, rounded to nearest even; NaN stays NaN.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn narrow_bf16(v: float32x4_t) -> uint16x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = vreinterpretq_u32_f32(v);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
        vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(v, v), up, quiet))
    }
}

impl<D: Dot> Simd for Neon<D> {
    const ROWS: usize = D::ROWS;
    const VECTORS: usize = 8;
    type V = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: NEON by the contract of `Simd`, as in every method below; so are the lengths of pointers.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: 16 readable f32.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        // SAFETY: 16 readable bf16.
        unsafe { [widen_bf16(p), widen_bf16(p.add(4)), widen_bf16(p.add(8)), widen_bf16(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: 16 readable f16.
        unsafe { [widen_f16(p), widen_f16(p.add(4)), widen_f16(p.add(8)), widen_f16(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::V {
        // SAFETY: 16 readable i8.
        unsafe {
            let bytes = vld1q_s8(p);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
            let quarters = [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)];
            let wide = each!(vmovl_s16, quarters);
            each!(vcvtq_f32_s32, wide)
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: 64 readable bytes.
        unsafe { [vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))] }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::B) {
        for i in 0..4 {
            // SAFETY: 64 writable bytes.
            unsafe { vst1q_u8(p.add(16 * i), v[i]) };
        }
    }
    #[inline(always)]
    unsafe fn bits(mut v: Self::B, down: i32, mask: u8) -> Self::B {
        for i in 0..4 {
            // SAFETY: NEON by the contract; `vshlq_u8` shifts right if the count is negative.
            unsafe { v[i] = vandq_u8(vshlq_u8(v[i], vdupq_n_s8(-down as i8)), vdupq_n_u8(mask)) };
        }
        v
    }
    #[inline(always)]
    unsafe fn either(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: NEON by the contract.
        unsafe { each!(vorrq_u8, a, b) }
    }
    #[inline(always)]
    unsafe fn add_byte(mut v: Self::B, x: u8) -> Self::B {
        for i in 0..4 {
            // SAFETY: NEON by the contract.
            unsafe { v[i] = vaddq_u8(v[i], vdupq_n_u8(x)) };
        }
        v
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], mut v: Self::B) -> Self::B {
        for i in 0..4 {
            // SAFETY: NEON by the contract; 16 readable bytes.
            unsafe { v[i] = vqtbl1q_u8(vld1q_u8(table.as_ptr()), v[i]) };
        }
        v
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        for i in 0..4 {
            // SAFETY: 16 writable f32.
            unsafe { vst1q_f32(p.add(4 * i), v[i]) };
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: NEON by the contract.
        unsafe { each!(vaddq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: NEON by the contract.
        unsafe { each!(vmulq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: NEON by the contract.
        unsafe { each!(vfmaq_f32, c, a, b) }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        // SAFETY: NEON by the contract.
        unsafe {
            let v = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: NEON by the contract.
        unsafe { each!(vsubq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: NEON by the contract.
        unsafe { each!(vdivq_f32, a, b) }
    }
    /// Does not use `fmax`, which returns NaN if either value is NaN.
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: NEON by the contract.
        unsafe { Self::if_greater(a, b, a, b) }
    }
    #[inline(always)]
    unsafe fn if_greater(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        // SAFETY: NEON by the contract.
        unsafe {
            let greater = each!(vcgtq_f32, a, b);
            each!(vbslq_f32, greater, x, y)
        }
    }
    #[inline(always)]
    unsafe fn to_exponent(v: Self::V) -> Self::V {
        // SAFETY: NEON by the contract.
        unsafe {
            let bits = each!(vreinterpretq_s32_f32, v);
            let bits = each!(vshlq_n_s32::<23>, bits);
            each!(vreinterpretq_f32_s32, bits)
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: Self::V) {
        for i in 0..4 {
            // SAFETY: NEON by the contract; 16 writable f16.
            unsafe { vst1_u16(p.add(4 * i).cast(), narrow_f16(v[i])) };
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Self::V) {
        for i in 0..4 {
            // SAFETY: NEON by the contract; 16 writable bf16.
            unsafe { vst1_u16(p.add(4 * i).cast(), narrow_bf16(v[i])) };
        }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        // SAFETY: a prefetch reads nothing.
        unsafe { asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly)) }
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::V {
        // SAFETY: NEON by the contract.
        unsafe { each!(vcvtq_f32_s32, v) }
    }
    #[inline(always)]
    unsafe fn from_bits(v: Self::I) -> Self::V {
        // SAFETY: NEON by the contract.
        unsafe { each!(vreinterpretq_f32_s32, v) }
    }
    #[inline(always)]
    unsafe fn join(hi: Self::I, lo: Self::I) -> Self::I {
        // SAFETY: NEON by the contract.
        unsafe {
            let hi = each!(vshlq_n_s32::<8>, hi);
            each!(vaddq_s32, hi, lo)
        }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        // SAFETY: NEON by the contract.
        unsafe { [vdupq_n_s32(x); 4] }
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
