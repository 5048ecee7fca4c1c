//! Vector instruction sets, with one interface of sixteen lanes.
//!
//! Every kernel is written once, against [`Simd`]: sixteen f32 lanes and sixteen i32 lanes. AVX-512 holds them in one
//! register, AVX2 in two, NEON in four, the scalar reference in an array. On all of them, each lane does the same IEEE
//! operations in the same order (fused multiply-adds included), and [`Simd::sum`] adds the lanes in one fixed order. So
//! all give the *same bits*. Tests compare them with the scalar reference by `==`, and a service gives the same text on
//! old and new machines.
//!
//! Plain loops are not enough: the compiler may not reorder f32 sums to vectorise them, and the baseline x86-64 target
//! has no FMA. Hand-written functions for each instruction set could differ from each other by mistake.
//!
//! The instruction set is detected once, at load, and kept as an [`Isa`]. Only detection makes an `Isa`, so it proves
//! that its instructions exist.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::{bf16, f16};

/// Lanes of a vector.
pub const LANES: usize = 16;
/// Values of one tile along K. They share a scale; in rotated groups, four tiles do (see [`crate::int8`]).
pub const GROUP: usize = 32;
/// Integer sums of products with 8-bit activations start from the bits of this f32. A sum `x` of magnitude below 2^22
/// then has the bits of the f32 `BIAS + x`. So one subtraction, or the addend of a fused multiply-add, makes it an f32.
pub const BIAS: f32 = 12_582_912.0; // 1.5 * 2^23
/// Values that one rotation mixes: the size of the Hadamard matrix.
pub const ROTATED: usize = 64;

/// Sixteen lanes of arithmetic.
///
/// # Safety
/// Every method requires that the CPU has the implementation's instructions; code reached through
/// [`Isa::dispatch`] may rely on it. Pointers must be valid for the lengths that each method states.
#[allow(clippy::missing_safety_doc)] // all methods have one promise, which stands above
pub trait Simd: Copy + 'static {
    /// How many rows of activations a kernel multiplies at once with weights in registers: a power of two, at most 8.
    const ROWS: usize;
    /// Whether kernels multiply two strips of weights at once, to load each activation once for both. Their sums must
    /// fit in registers.
    const PAIRS: bool = false;
    /// Sixteen f32 lanes.
    type V: Copy;
    /// Sixteen i32 lanes.
    type I: Copy;
    /// 64 bytes.
    type B: Copy;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Reads 16 f32.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Reads 16 bf16, widened exactly.
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    /// Reads 16 f16, widened exactly.
    unsafe fn load_f16(p: *const f16) -> Self::V;
    /// Reads 16 i8, converted to f32.
    unsafe fn load_i8(p: *const i8) -> Self::V;
    /// Reads 64 bytes.
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    /// Writes 64 bytes.
    unsafe fn store_bytes(p: *mut u8, v: Self::B);
    /// `(byte >> down) & mask` of each byte, or `(byte << -down) & mask` if `down` is negative. `mask` must select no
    /// bit that is shifted in from a neighbouring byte.
    unsafe fn bits(v: Self::B, down: i32, mask: u8) -> Self::B;
    /// `a | b`.
    unsafe fn either(a: Self::B, b: Self::B) -> Self::B;
    /// Each byte plus `x`, wrapping.
    unsafe fn add_byte(v: Self::B, x: u8) -> Self::B;
    /// `table[byte]` of each byte; all bytes are below 16.
    unsafe fn look_up(table: &[u8; 16], v: Self::B) -> Self::B;
    /// Writes 16 f32.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Sum of the lanes: the lower half plus the upper half, from 16 lanes to 8, 4, 2 and 1.
    unsafe fn sum(v: Self::V) -> f32;
    /// `sum` of each vector.
    #[inline(always)]
    unsafe fn sums<const N: usize>(v: [Self::V; N]) -> [f32; N] {
        let mut sums = [0.0; N];
        for i in 0..N {
            // SAFETY: the caller's promise.
            sums[i] = unsafe { Self::sum(v[i]) };
        }
        sums
    }
    /// How many vectors of sixteen f32 the registers hold. It limits how many sums a tile keeps.
    const VECTORS: usize;
    /// `a - b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`, so `b` if one of them is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b { x } else { y }`, so `y` if `a` or `b` is NaN.
    unsafe fn if_greater(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Shifts the bits of each lane left by 23, so that an integer in the lowest bits becomes an f32's exponent.
    unsafe fn to_exponent(v: Self::V) -> Self::V;
    /// Writes 16 bf16, rounded to nearest even; NaN stays NaN. The same as `bf16::from_f32`.
    unsafe fn store_bf16(p: *mut bf16, v: Self::V);
    /// Writes 16 f16, rounded to nearest even; what is too large becomes infinite, and NaN stays NaN. The same as
    /// `f16::from_f32`.
    unsafe fn store_f16(p: *mut f16, v: Self::V);
    /// Prefetches the cache line of `p` into the L2 cache; `p` may point anywhere. Not into the L1 cache: prefetches
    /// come long before the use, and would evict lines in use.
    unsafe fn prefetch<T>(p: *const T);
    /// i32 to f32, rounded to nearest even.
    unsafe fn to_f32(v: Self::I) -> Self::V;
    /// The f32 with these bits.
    unsafe fn from_bits(v: Self::I) -> Self::V;
    /// Integer sums that started from the bits of [`BIAS`], as f32 without `BIAS`.
    #[inline(always)]
    unsafe fn unbias(v: Self::I) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { Self::sub(Self::from_bits(v), Self::splat(BIAS)) }
    }
    /// `256 * hi + lo`: the sum of a 16-bit activation, from the sums of its two planes.
    unsafe fn join(hi: Self::I, lo: Self::I) -> Self::I;
    /// All lanes `x`.
    unsafe fn splat_i32(x: i32) -> Self::I;
    /// Integer dot products of 16 weight rows with `R` activation rows, over `4 * FOURS` values along K: 16 or 32.
    ///
    /// Lane `o` of result `r` is `acc[r][o] + sum over k of w[k / 4][o][k % 4] * x[r][k]`, exactly.
    /// `w` points to u8 `(FOURS, 16, 4)`; each `x[r]` points to `4 * FOURS` i8.
    unsafe fn dot_group<const R: usize, const FOURS: usize>(
        w: *const u8,
        x: [*const i8; R],
        acc: [Self::I; R],
    ) -> [Self::I; R];
    /// `dot_group` of each of `T` strips of weights with the same activations.
    #[inline(always)]
    unsafe fn dot_groups<const R: usize, const T: usize, const FOURS: usize>(
        w: [*const u8; T],
        x: [*const i8; R],
        mut acc: [[Self::I; R]; T],
    ) -> [[Self::I; R]; T] {
        for t in 0..T {
            // SAFETY: the caller's promise.
            acc[t] = unsafe { Self::dot_group::<R, FOURS>(w[t], x, acc[t]) };
        }
        acc
    }
    /// Whether there are enough registers to multiply codes that are unpacked in registers. If so, `dot_four` is
    /// implemented.
    const IN_REGISTERS: bool = false;
    /// `dot_group` over four values along K, with the weights `(16, 4)` in `w`.
    unsafe fn dot_four<const R: usize>(_w: Self::B, _x: [*const i8; R], _acc: [Self::I; R]) -> [Self::I; R] {
        unreachable!("asked of instruction sets with enough registers")
    }
    /// `dot_group` over 32 values along K for four-bit weights, 0 to 15, starting from zero.
    ///
    /// `w` points to 256 u8, `(4, 16, 4)`: byte `(j, o, i)` has value `8 j + i` of row `o` in its low four bits and
    /// value `8 j + 4 + i` in its high four bits.
    unsafe fn dot_group4<const R: usize>(w: *const u8, x: [*const i8; R]) -> [Self::I; R];
    /// Multiplies 64 values by the Walsh-Hadamard matrix divided by 8, which is orthonormal. The division comes first,
    /// because it is exact there; then come sums and differences at distances 1, 2, 4, .. 32.
    #[inline(always)]
    unsafe fn rotate(from: &[f32; ROTATED], to: &mut [f32; ROTATED]) {
        to.iter_mut().zip(from).for_each(|(to, x)| *to = x * 0.125);
        for distance in [1, 2, 4, 8, 16, 32] {
            for pairs in to.chunks_exact_mut(2 * distance) {
                let (a, b) = pairs.split_at_mut(distance);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
        }
    }
    /// The largest magnitude in each of eight groups of tiles, as the bits of an f32. If a value is infinite or NaN,
    /// the result is at least the bits of infinity.
    #[inline(always)]
    unsafe fn largest_bits(groups: [&[[f32; GROUP]]; 8]) -> [u32; 8] {
        groups.map(|tiles| tiles.iter().flatten().fold(0, |largest, x| largest.max(x.abs().to_bits())))
    }
    /// Quantises eight tiles: `q = round_ties_even(x * inverse)`, as `256 * hi + lo` with `WIDE`, else as `lo` alone;
    /// `hi` is then left as it is, and its sums are 0.
    /// Returns the sums of the first and last 16 values of each tile of `lo` and of `hi`, `(2, 8)` each. Each product
    /// `x * inverse` is in +-32512 with `WIDE`, else in +-127.
    #[inline(always)]
    unsafe fn quantize<const WIDE: bool>(
        tiles: [&[f32; GROUP]; 8],
        inverse: &[f32; 8],
        lo: &mut [[i8; GROUP]; 8],
        hi: &mut [[i8; GROUP]; 8],
    ) -> ([[i32; 8]; 2], [[i32; 8]; 2]) {
        let (mut lo_sums, mut hi_sums) = ([[0; 8]; 2], [[0; 8]; 2]);
        for r in 0..8 {
            for k in 0..GROUP {
                let q = (tiles[r][k] * inverse[r]).round_ties_even() as i32;
                lo[r][k] = q as i8; // wraps on purpose: the low byte, signed
                lo_sums[k / 16][r] += i32::from(lo[r][k]);
                if WIDE {
                    hi[r][k] = ((q - i32::from(lo[r][k])) >> 8) as i8;
                    hi_sums[k / 16][r] += i32::from(hi[r][k]);
                }
            }
        }
        (lo_sums, hi_sums)
    }
}

/// Code that [`Isa::dispatch`] compiles for every instruction set. Implement `run` with `#[inline(always)]`.
pub trait Kernel {
    /// What the kernel returns.
    type Out;
    /// Whether it computes integer dot products. Some instruction sets differ only in these. A kernel without them is
    /// compiled for one of these sets only.
    const DOTS: bool;
    /// Runs the kernel with the instructions of `S`.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`, and the kernel's fields are as their comments say.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// The same as `AvxVnni`, in the encoding of AVX-512, for machines without AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    AvxVnniEvex,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

/// An instruction set that this machine has. Only detection makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Level);

impl Isa {
    /// All instruction sets of this machine, the slowest first.
    pub fn all() -> Vec<Isa> {
        let mut all = vec![Isa(Level::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            if avx2 {
                all.push(Isa(Level::Avx2));
            }
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            let avx512vnni = avx2 && avx512 && has!("avx512vnni");
            if avx2 && has!("avxvnni") {
                all.push(Isa(Level::AvxVnni));
            } else if avx512vnni {
                all.push(Isa(Level::AvxVnniEvex));
            }
            if avx512vnni {
                all.push(Isa(Level::Avx512Vnni));
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            if has!("neon") {
                all.push(Isa(Level::Neon));
            }
            if has!("neon") && has!("dotprod") {
                all.push(Isa(Level::NeonDot));
            }
        }
        all
    }

    /// The name as `WELM_ISA` and `LoadOptions::isa` spell it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni | Level::AvxVnniEvex => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => "avx512vnni",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot => "neondot",
        }
    }

    /// The best of this machine.
    pub fn best() -> Isa {
        *Self::all().last().expect("the scalar set is always there")
    }

    /// The one of this name, if this machine has it.
    pub fn named(name: &str) -> Option<Isa> {
        Self::all().into_iter().find(|isa| isa.name() == name)
    }

    /// Runs a kernel with this instruction set.
    ///
    /// # Safety
    /// The kernel's fields are as their comments say.
    #[inline]
    pub unsafe fn dispatch<K: Kernel>(self, kernel: K) -> K::Out {
        match self.0 {
            // SAFETY: scalar code needs no special instructions; the fields are the caller's promise.
            Level::Scalar => unsafe { kernel.run::<Scalar>() },
            // SAFETY: an `Isa` of this level exists only where detection found its features.
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni if K::DOTS => unsafe { x86::run_avxvnni(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnniEvex if K::DOTS => unsafe { x86::run_avxvnni_evex(kernel) },
            // SAFETY: as above; both others have AVX2 as well.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::AvxVnni | Level::AvxVnniEvex => unsafe { x86::run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => unsafe { x86::run_avx512vnni(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => unsafe { aarch64::run_neon(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Level::NeonDot => unsafe { aarch64::run_neondot(kernel) },
        }
    }
}

/// The scalar reference. Every other implementation must give the same bits.
#[derive(Clone, Copy)]
pub struct Scalar;

impl Simd for Scalar {
    const ROWS: usize = 1;
    type V = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 64];

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
    unsafe fn load_i8(p: *const i8) -> Self::V {
        // SAFETY: the caller gives 16 readable i8.
        std::array::from_fn(|i| f32::from(unsafe { *p.add(i) }))
    }
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: the caller gives 64 readable bytes.
        unsafe { p.cast::<[u8; 64]>().read() }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::B) {
        // SAFETY: the caller gives 64 writable bytes.
        unsafe { p.cast::<[u8; 64]>().write(v) }
    }
    #[inline(always)]
    unsafe fn bits(v: Self::B, down: i32, mask: u8) -> Self::B {
        v.map(|x| (if down < 0 { x << -down } else { x >> down }) & mask)
    }
    #[inline(always)]
    unsafe fn either(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn add_byte(v: Self::B, x: u8) -> Self::B {
        v.map(|byte| byte.wrapping_add(x))
    }
    #[inline(always)]
    unsafe fn look_up(table: &[u8; 16], v: Self::B) -> Self::B {
        v.map(|code| table[usize::from(code & 15)])
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
    const VECTORS: usize = 4;
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn if_greater(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] > b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    unsafe fn to_exponent(v: Self::V) -> Self::V {
        v.map(|x| f32::from_bits(x.to_bits() << 23))
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Self::V) {
        for (i, x) in v.into_iter().enumerate() {
            // SAFETY: the caller gives 16 writable bf16.
            unsafe { p.add(i).write_unaligned(bf16::from_f32(x)) };
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: Self::V) {
        for (i, x) in v.into_iter().enumerate() {
            // SAFETY: the caller gives 16 writable f16.
            unsafe { p.add(i).write_unaligned(f16::from_f32(x)) };
        }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(_: *const T) {}
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::V {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn from_bits(v: Self::I) -> Self::V {
        v.map(|x| f32::from_bits(x.cast_unsigned()))
    }
    #[inline(always)]
    unsafe fn join(hi: Self::I, lo: Self::I) -> Self::I {
        std::array::from_fn(|i| (hi[i] << 8) + lo[i])
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn dot_group<const R: usize, const FOURS: usize>(
        w: *const u8,
        x: [*const i8; R],
        acc: [Self::I; R],
    ) -> [Self::I; R] {
        std::array::from_fn(|r| {
            let mut acc = acc[r];
            for k in 0..4 * FOURS {
                // SAFETY: the caller gives `4 * FOURS` readable i8.
                let xk = i32::from(unsafe { *x[r].add(k) });
                for (o, a) in acc.iter_mut().enumerate() {
                    // SAFETY: the caller gives 64 readable u8 for four values along K.
                    *a += i32::from(unsafe { *w.add(((k / 4) * LANES + o) * 4 + k % 4) }) * xk;
                }
            }
            acc
        })
    }
    #[inline(always)]
    unsafe fn dot_group4<const R: usize>(w: *const u8, x: [*const i8; R]) -> [Self::I; R] {
        std::array::from_fn(|r| {
            let mut acc = [0; LANES];
            for k in 0..GROUP {
                // SAFETY: the caller gives 32 readable i8.
                let xk = i32::from(unsafe { *x[r].add(k) });
                for (o, a) in acc.iter_mut().enumerate() {
                    // SAFETY: the caller gives 256 readable u8; the index is below (3 * 16 + 15) * 4 + 4.
                    let byte = unsafe { *w.add((k / 8 * LANES + o) * 4 + k % 4) };
                    *a += i32::from(if k % 8 < 4 { byte & 15 } else { byte >> 4 }) * xk;
                }
            }
            acc
        })
    }
}
