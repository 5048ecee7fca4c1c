//! Instruction sets: sixteen lanes, whatever the machine.
//!
//! Every kernel is written once, against [`Simd`]: sixteen f32 lanes and sixteen i32 lanes. AVX-512 holds
//! them in one register, AVX2 in two, the scalar reference in an array. Each lane does the same IEEE
//! operations in the same order on all three (fused multiply-adds included) and [`Simd::sum`] folds the
//! lanes along one fixed tree, so the three give the *same bits*: the scalar version is a reference that
//! tests compare with `==`, and a service gives the same text on old and new machines.
//!
//! Why not let the compiler vectorise plain loops: it may not reorder f32 sums, and the baseline x86-64
//! target has no FMA. Why not one hand-written function per instruction set: three chances to differ.
//!
//! The instruction set is detected once, at load, and kept as an [`Isa`], which only detection can make
//! and which therefore proves that its instructions exist.

use half::{bf16, f16};

use crate::error::{Error, Result};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;
/// Values along K that share one int8 scale.
pub(crate) const GROUP: usize = 32;

/// Sixteen lanes of arithmetic.
///
/// # Safety
/// Every method requires that the CPU has the implementation's instructions; code reached through
/// [`Isa::dispatch`] may rely on it. Pointers must be valid for the lengths that each method states.
pub(crate) trait Simd: Copy + 'static {
    /// Sixteen f32 lanes.
    type V: Copy;
    /// Sixteen i32 lanes.
    type I: Copy;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Reads 16 f32.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Reads 16 bf16, widened exactly.
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    /// Reads 16 f16, widened exactly.
    unsafe fn load_f16(p: *const f16) -> Self::V;
    /// Writes 16 f32.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Sum of the lanes: 16 to 8 to 4 to 2 to 1, each time the lower half plus the upper half.
    unsafe fn sum(v: Self::V) -> f32;
    /// i32 to f32, rounded to nearest even.
    unsafe fn to_f32(v: Self::I) -> Self::V;
    /// `256 * hi + lo`, the two planes of a 16-bit activation put together again.
    unsafe fn join(hi: Self::I, lo: Self::I) -> Self::I;
    /// Integer dot products of one group of 32 along K: 16 weight rows with `R` activation rows.
    ///
    /// Lane `o` of result `r` is `init[r] + sum over k < 32 of w[k / 4][o][k % 4] * x[r][k]`, exactly.
    /// `w` points to 512 u8, `(8, 16, 4)`; each `x[r]` to 32 i8.
    unsafe fn dot_group<const R: usize>(w: *const u8, x: [*const i8; R], init: [i32; R]) -> [Self::I; R];
}

/// Something to run on the widest instructions at hand; implement `run` with `#[inline(always)]`.
pub(crate) trait Kernel {
    /// What the kernel returns.
    type Out;
    /// The kernel, once for every instruction set.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`, and the kernel's own fields keep what it says of them.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

/// Proof that this machine has an instruction set. Made by detection only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa(Level);

impl Isa {
    /// Every instruction set of this machine, the plainest first.
    pub(crate) fn all() -> Vec<Isa> {
        let mut all = vec![Isa(Level::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            if avx2 {
                all.push(Isa(Level::Avx2));
            }
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            if avx2 && avx512 && has!("avx512vnni") {
                all.push(Isa(Level::Avx512Vnni));
            }
        }
        all
    }

    /// The name as `WELM_ISA` and `LoadOptions::isa` spell it.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => "avx512vnni",
        }
    }

    /// The set asked for, else the one in `WELM_ISA`, else the best of this machine.
    pub(crate) fn select(asked: Option<&str>) -> Result<Isa> {
        let from_env = std::env::var("WELM_ISA").ok().filter(|name| !name.is_empty());
        let Some(name) = asked.or(from_env.as_deref()) else {
            return Ok(*Self::all().last().expect("the scalar set is always there"));
        };
        Self::all().into_iter().find(|isa| isa.name() == name).ok_or_else(|| Error::Unavailable {
            what: format!("instruction set `{name}`"),
            reason: format!(
                "this machine has {}",
                Self::all().iter().map(|i| i.name()).collect::<Vec<_>>().join(", ")
            ),
        })
    }

    /// Runs a kernel with this instruction set.
    ///
    /// # Safety
    /// The kernel's fields keep what the kernel says of them.
    #[inline]
    pub(crate) unsafe fn dispatch<K: Kernel>(self, kernel: K) -> K::Out {
        match self.0 {
            // SAFETY: plain Rust has no requirement; the fields are the caller's promise.
            Level::Scalar => unsafe { kernel.run::<Scalar>() },
            // SAFETY: an `Isa` of this level exists only where detection found its features.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => unsafe { x86::run_avx512vnni(kernel) },
        }
    }
}

/// The reference: what every other implementation must equal, bit for bit.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type V = [f32; LANES];
    type I = [i32; LANES];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller gives 16 readable f32.
        std::array::from_fn(|i| unsafe { p.add(i).read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        // SAFETY: the caller gives 16 readable bf16.
        std::array::from_fn(|i| unsafe { p.add(i).read_unaligned() }.to_f32())
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: the caller gives 16 readable f16.
        std::array::from_fn(|i| unsafe { p.add(i).read_unaligned() }.to_f32())
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        for (i, x) in v.into_iter().enumerate() {
            // SAFETY: the caller gives 16 writable f32.
            unsafe { p.add(i).write_unaligned(x) };
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn sum(mut v: Self::V) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                v[i] += v[i + half];
            }
            half /= 2;
        }
        v[0]
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::V {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn join(hi: Self::I, lo: Self::I) -> Self::I {
        std::array::from_fn(|i| (hi[i] << 8) + lo[i])
    }
    #[inline(always)]
    unsafe fn dot_group<const R: usize>(w: *const u8, x: [*const i8; R], init: [i32; R]) -> [Self::I; R] {
        std::array::from_fn(|r| {
            let mut acc = [init[r]; LANES];
            for k in 0..GROUP {
                // SAFETY: the caller gives 32 readable i8.
                let xk = i32::from(unsafe { *x[r].add(k) });
                for (o, a) in acc.iter_mut().enumerate() {
                    // SAFETY: the caller gives 512 readable u8; the index is below (7 * 16 + 15) * 4 + 4.
                    *a += i32::from(unsafe { *w.add(((k / 4) * LANES + o) * 4 + k % 4) }) * xk;
                }
            }
            acc
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
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
                (
                    _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                    _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())),
                )
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
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Everything<'a> {
        f: &'a [f32],
        w: &'a [u8],
        x: &'a [i8],
    }

    impl Kernel for Everything<'_> {
        type Out = Vec<u32>;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Vec<u32> {
            let mut bits = Vec::new();
            let mut keep = |v: [f32; LANES]| bits.extend(v.map(f32::to_bits));
            // SAFETY: the test gives 64 floats, 512 u8 and 64 i8; the instructions are `S`'s.
            unsafe {
                let out = |v: S::V| {
                    let mut o = [0.0; LANES];
                    S::store(o.as_mut_ptr(), v);
                    o
                };
                let p = self.f.as_ptr();
                let (a, b, c) = (S::load(p), S::load(p.add(16)), S::load(p.add(32)));
                keep(out(S::fma(a, b, c)));
                keep(out(S::add(S::mul(a, b), S::splat(0.1))));
                keep(out(S::splat(S::sum(S::fma(a, b, c)))));
                let brains: Vec<bf16> = self.f.iter().map(|&x| bf16::from_f32(x)).collect();
                keep(out(S::load_bf16(brains.as_ptr())));
                let halves: Vec<f16> = self.f.iter().map(|&x| f16::from_f32(x)).collect();
                keep(out(S::load_f16(halves.as_ptr())));
                let x = [self.x.as_ptr(), self.x.as_ptr().add(32)];
                let [r0, r1] = S::dot_group(self.w.as_ptr(), x, [-77, 12_345]);
                keep(out(S::to_f32(r0)));
                keep(out(S::to_f32(S::join(r1, r0))));
            }
            bits
        }
    }

    #[test]
    fn every_instruction_set_gives_the_bits_of_the_scalar_reference() {
        for round in 0..50u32 {
            let noise = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(round * 40_503)) >> 8;
            let f: Vec<f32> = (0..64).map(|i| (noise(i) % 20_000) as f32 / 777.0 - 12.0).collect();
            let mut w: Vec<u8> = (0..512).map(|i| noise(i + 64) as u8).collect();
            let mut x: Vec<i8> = (0..64).map(|i| noise(i + 600) as i8).collect();
            if round == 0 {
                w.fill(255);
                x.fill(-128);
            }
            // SAFETY: lengths as the kernel asks.
            let run = |isa: Isa| unsafe { isa.dispatch(Everything { f: &f, w: &w, x: &x }) };
            let want = run(Isa::all()[0]);
            for isa in Isa::all() {
                assert_eq!(run(isa), want, "{} in round {round}", isa.name());
            }
        }
    }

    #[test]
    fn an_unknown_instruction_set_is_an_error_that_lists_the_known() {
        let message = Isa::select(Some("neon512")).unwrap_err().to_string();
        assert!(message.contains("neon512") && message.contains("scalar"), "{message}");
        assert_eq!(Isa::select(Some("scalar")).unwrap().name(), "scalar");
    }
}
