// Every line of inline PTX, as small named device functions. The kernels themselves are plain C++.
//
// Only this file includes CUDA headers or uses intrinsics. The reason: the tests compile the same .cu files as C++ with
// another file in its place, tests/emulator/ptx.cuh, which has the same functions. For this to work a kernel
//
//   - includes <ptx.cuh>, so that the include path chooses the file,
//   - takes one struct of parameters,
//   - keeps all of its shared memory in ptx::shared().
//
// bf16 is a uint16_t; two of them are a uint32_t, the one with the lower index in the lower half. Matrix layouts are
// those of the PTX ISA, "Warp Level Matrix Instructions" and "Asynchronous Warpgroup Level Matrix Instructions". Below,
// g = lane / 4 and t = lane % 4.
#pragma once
#include <stdint.h>

// KERNEL(name, Params, threads, blocks) { ... p ... }: an entry point of `threads` threads a block, at least
// `blocks` blocks a multiprocessor, whose parameters `p` stay in constant memory.
#define KERNEL(name, Params, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p)

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__

namespace ptx {

// ---- the block ----------------------------------------------------------------------------------------

// Dynamic shared memory, aligned to 1,024 bytes.
DEVICE uint8_t *shared() {
    extern __shared__ __align__(1024) uint8_t memory[];
    return memory;
}

DEVICE uint32_t address(const void *shared) { return (uint32_t)__cvta_generic_to_shared(shared); }

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
// Barrier `id` (1 to 15) of `threads` threads, whole warps.
DEVICE void sync_named(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// Arrives at barrier `id` without waiting for the others.
DEVICE void arrive_named(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

DEVICE float shfl_xor(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
DEVICE uint32_t shfl_xor(uint32_t x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
DEVICE float shfl(float x, int lane) { return __shfl_sync(~0u, x, lane); }
DEVICE uint32_t shfl(uint32_t x, int lane) { return __shfl_sync(~0u, x, lane); }

// Shared or global memory.
DEVICE void atomic_add(uint32_t *at, uint32_t x) { atomicAdd(at, x); }

// ---- numbers ------------------------------------------------------------------------------------------

DEVICE float f32_of_bf16(uint16_t x) { return __uint_as_float((uint32_t)x << 16); }
DEVICE float bf16_lo(uint32_t x) { return __uint_as_float(x << 16); }
DEVICE float bf16_hi(uint32_t x) { return __uint_as_float(x & 0xffff0000u); }
// Round to nearest even.
DEVICE uint32_t pack_bf16(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
// a - b, both halves.
DEVICE uint32_t sub_bf16x2(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(b), "r"(0xbf80bf80u), "r"(a));
    return d;
}
DEVICE uint16_t bf16_of_f32(float x) { return (uint16_t)pack_bf16(x, 0.0f); }
DEVICE float f32_of_f16(uint16_t x) {
    float d;
    asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(x));
    return d;
}
DEVICE uint32_t bits(float x) { return __float_as_uint(x); }
DEVICE float from_bits(uint32_t x) { return __uint_as_float(x); }
// Nearest even, saturated to -127..=127.
DEVICE int round_s8(float x) { return max(-127, min(127, __float2int_rn(x))); }
// Byte i of the result is byte (selector nibble i) of the eight bytes b:a.
DEVICE uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
// 2^x, within 2 ulp; 0 for -inf.
DEVICE float ex2(float x) {
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}
// 1 / x, within 1 ulp; 0 for an infinity.
DEVICE float rcp(float x) {
    float d;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}
DEVICE float rsqrt(float x) { return rsqrtf(x); }

// ---- memory -------------------------------------------------------------------------------------------

// Loads 16 bytes that are read only once, and does not put them into the L1 cache.
DEVICE uint4 load_stream(const void *global) {
    uint4 d;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w)
                 : "l"(global));
    return d;
}

// Copies 16 bytes to shared memory, asynchronously and not through registers; zeros if not `valid`.
DEVICE void cp_async_16(void *shared, const void *global, bool valid = true) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the N newest of this thread's groups are unfinished. Other threads see the data of the finished
// ones after a barrier.
template <int N> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- warp matrices ------------------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8. Lane (g, t)
// receives values 2t, 2t + 1 of row g of each; transposed: of column g.
DEVICE void ldmatrix_x4(uint32_t (&d)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address(row))
                 : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t (&d)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address(row))
                 : "memory");
}

// D (16, 8) f32 += A (16, 16) bf16 B (16, 8) bf16. A register of a or b has two values: a has rows g, g+8, g, g+8, of
// which the first two have columns 2t, 2t+1, the others 2t+8, 2t+9; b has k 2t, 2t+1, then 2t+8, 2t+9, of column g.
// d: rows g, g, g+8, g+8, columns 2t, 2t+1, 2t, 2t+1.
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// D (16, 8) s32 += A (16, 32) s8 B (32, 8) s8. A register of a or b has four values: a has rows g, g+8, g, g+8, of
// which the first two have columns 4t..4t+3, the others 4t+16..4t+19; b has k 4t..4t+3, then 4t+16..4t+19, of column g.
// d as above.
DEVICE void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- sm_90: barriers in shared memory and the copy engine -----------------------------------------------

typedef uint64_t Barrier;
struct alignas(128) TensorMap {
    uint64_t opaque[16];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// True for one lane of the warp; all lanes have to call it. With it the compiler knows that only one thread runs the code
// that follows, and needs no loop over the lanes to pass addresses to the copy engine.
DEVICE bool elect_one() {
    uint32_t elected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(elected)::"memory");
    return elected != 0;
}

DEVICE void barrier_init(Barrier *b, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(b)), "r"(arrivals) : "memory");
}
// To be called after all barrier_init of the block, before sync_block.
DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_arrive(Barrier *b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(b)) : "memory");
}
// Arrives. The phase does not end before `bytes` more have been copied.
DEVICE void barrier_expect(Barrier *b, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(b)), "r"(bytes) : "memory");
}
// Waits for the end of the phase of this parity; the first phase has parity 0.
#if !defined(WELM_TRAP)
DEVICE void barrier_wait(Barrier *b, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}\n" ::"r"(address(b)),
                 "r"(parity)
                 : "memory");
}
#else
// For tests, see build.rs: after three seconds the launch ends with an error instead of hanging. A correct kernel waits
// far less. The time is the low 32 bits of a clock in ns, which wraps after 4.29 s; one try_wait takes far less than the
// difference.
DEVICE void barrier_wait(Barrier *b, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done, late;\n"
                 ".reg .u32 start, now;\n"
                 "mov.u32 start, %%globaltimer_lo;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra end;\n"
                 "mov.u32 now, %%globaltimer_lo;\n"
                 "sub.u32 now, now, start;\n"
                 "setp.gt.u32 late, now, 3000000000;\n"
                 "@!late bra again;\n"
                 "trap;\n"
                 "end:\n"
                 "}\n" ::"r"(address(b)),
                 "r"(parity)
                 : "memory");
}
#endif
// Ordinary stores to shared memory become visible to wgmma and to the copy engine; then a barrier.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Copies the box of the map at column x, row y; zeros where it lies outside the matrix. Completes on `b`.
DEVICE void tma_load_2d(void *shared, const TensorMap *map, int x, int y, Barrier *b) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(address(shared)),
                 "l"(map), "r"(x), "r"(y), "r"(address(b))
                 : "memory");
}
// Copies `bytes` contiguous bytes, a multiple of 16; both addresses are aligned to 16. Completes on `b`.
DEVICE void bulk_load(void *shared, const void *global, uint32_t bytes, Barrier *b) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     address(shared)),
                 "l"(global), "r"(bytes), "r"(address(b))
                 : "memory");
}

// Raises or lowers to N the registers that a thread of this warpgroup may have from here on.
template <int N> DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// ---- sm_90a: warpgroup matrices -------------------------------------------------------------------------

// A matrix in shared memory, in rows of 128 bytes whose 16-byte pieces are swizzled (piece ^= row % 8), as the
// copy engine writes it with a 128-byte swizzle; the tile is aligned to 1,024 bytes.
// K contiguous: rows are M or N; `stride` bytes lie between groups of 8 rows; `leading` is unused. 16 (bf16) or
// 32 (s8) further along K is start + 32 bytes.
// MN contiguous (transposed): rows are K; `stride` bytes lie between groups of 8 k, `leading` between pieces of
// 64 columns, the last of which may be used in part (N of 16, 32, 80 or 96).
DEVICE uint64_t matrix_desc(const void *start, uint32_t leading, uint32_t stride) {
    uint64_t d = (address(start) & 0x3ffff) >> 4;
    d |= (uint64_t)(leading >> 4) << 16;
    d |= (uint64_t)(stride >> 4) << 32;
    return d | (1ull << 62);
}

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define WELM_8(c, d, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define WELM_16(c, d) WELM_8(c, d, 0), WELM_8(c, d, 8)
#define WELM_32(c, d, i) WELM_8(c, d, i), WELM_8(c, d, i + 8), WELM_8(c, d, i + 16), WELM_8(c, d, i + 24)
#define WELM_40(c, d) WELM_32(c, d, 0), WELM_8(c, d, 32)
#define WELM_48(c, d) WELM_40(c, d), WELM_8(c, d, 40)
#define WELM_64(c, d) WELM_32(c, d, 0), WELM_32(c, d, 32)
#define WELM_128(c, d) WELM_64(c, d), WELM_32(c, d, 64), WELM_32(c, d, 96)
#define WELM_D8 "{%0, %1, %2, %3, %4, %5, %6, %7}"
#define WELM_D16 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define WELM_D32                                                                                             \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "   \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define WELM_D40 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39}"
#define WELM_D48 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, " \
    "%41, %42, %43, %44, %45, %46, %47}"
#define WELM_D64                                                                                             \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "   \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "    \
    "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "    \
    "%62, %63}"
#define WELM_D128 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
    "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, " \
    "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, " \
    "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, " \
    "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"

// D (64, N) f32 = A (64, 16) bf16 B (16, N) bf16 + (accumulate ? D : 0), asynchronously, by the 128 threads of
// a warpgroup. Warp w holds rows 16w..16w+15; d[4j..4j+3] are columns 8j..8j+7 laid out as in mma_bf16; A from
// registers is laid out as in mma_bf16, too. TRANS: B is stored with N contiguous.
template <bool TRANS> DEVICE void wgmma_bf16(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WELM_D32 ", %32, %33, p, 1, 1, 0, %35;\n}\n"
                 : WELM_32("+f", d, 0)
                 : "l"(a), "l"(b), "r"((int)accumulate), "n"(TRANS));
}
template <bool TRANS> DEVICE void wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " WELM_D64 ", %64, %65, p, 1, 1, 0, %67;\n}\n"
                 : WELM_64("+f", d)
                 : "l"(a), "l"(b), "r"((int)accumulate), "n"(TRANS));
}
template <bool TRANS> DEVICE void wgmma_bf16(float (&d)[8], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 " WELM_D8
                 ", {%8, %9, %10, %11}, %12, p, 1, 1, %14;\n}\n"
                 : WELM_8("+f", d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(TRANS));
}
template <bool TRANS> DEVICE void wgmma_bf16(float (&d)[16], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 " WELM_D16
                 ", {%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}\n"
                 : WELM_16("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(TRANS));
}
template <bool TRANS> DEVICE void wgmma_bf16(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WELM_D32
                 ", {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
                 : WELM_32("+f", d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(TRANS));
}
template <bool TRANS> DEVICE void wgmma_bf16(float (&d)[40], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %45, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 " WELM_D40
                 ", {%40, %41, %42, %43}, %44, p, 1, 1, %46;\n}\n"
                 : WELM_40("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(TRANS));
}
template <bool TRANS> DEVICE void wgmma_bf16(float (&d)[48], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %53, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 " WELM_D48
                 ", {%48, %49, %50, %51}, %52, p, 1, 1, %54;\n}\n"
                 : WELM_48("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(TRANS));
}
template <bool TRANS> DEVICE void wgmma_bf16(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " WELM_D64
                 ", {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
                 : WELM_64("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(TRANS));
}
template <bool TRANS> DEVICE void wgmma_bf16(float (&d)[128], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " WELM_D128
                 ", {%128, %129, %130, %131}, %132, p, 1, 1, %134;\n}\n"
                 : WELM_128("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(TRANS));
}
// D (64, 2 * len d) s32 = A (64, 32) s8 B (32, N) s8 + (accumulate ? D : 0); A in registers as in mma_s8.
DEVICE void wgmma_s8(int32_t (&d)[32], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 " WELM_D32 ", {%32, %33, %34, %35}, %36, p;\n}\n"
                 : WELM_32("+r", d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
}
DEVICE void wgmma_s8(int32_t (&d)[64], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 " WELM_D64 ", {%64, %65, %66, %67}, %68, p;\n}\n"
                 : WELM_64("+r", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
}
DEVICE void wgmma_s8(int32_t (&d)[128], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 " WELM_D128
                 ", {%128, %129, %130, %131}, %132, p;\n}\n"
                 : WELM_128("+r", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));
}
#undef WELM_8
#undef WELM_16
#undef WELM_32
#undef WELM_40
#undef WELM_48
#undef WELM_64
#undef WELM_128
#undef WELM_D8
#undef WELM_D16
#undef WELM_D32
#undef WELM_D40
#undef WELM_D48
#undef WELM_D64
#undef WELM_D128
#endif

}  // namespace ptx
