// The emulator's version of welm-kernels/cuda/ptx.cuh: the same functions in plain C++, with the effects and the matrix
// layouts that the PTX ISA documents. Kernels include <ptx.cuh>, and the include path chooses one of the two files.
//
// As there, g = lane / 4 and t = lane % 4.
#pragma once
#include "runtime.h"
#include "sums.h"

#define __CUDA_ARCH_FEAT_SM90_ALL 1
#define DEVICE [[maybe_unused]] static inline
#define DEVICE_MEMBER inline
#define KERNEL(name, Params, threads, blocks)                                                     \
    static void name##_body(const Params &p);                                                     \
    static const emulator::Registered name##_registered(                                          \
        #name, threads, sizeof(Params), [](const void *p) { name##_body(*(const Params *)p); }); \
    static void name##_body(const Params &p)

#define threadIdx (emulator::state().current->thread)
#define blockIdx (emulator::state().block)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) int2 { int32_t x, y; };
struct alignas(16) int4 { int32_t x, y, z, w; };

template <typename T> static constexpr T min(T a, T b) { return b < a ? b : a; }
template <typename T> static constexpr T max(T a, T b) { return a < b ? b : a; }

namespace ptx {

using emulator::barrier;
using emulator::BarrierState;
using emulator::collective;
using emulator::fail;
using emulator::state;

DEVICE int own_lane() { return (int)(state().current->id % emulator::WARP); }
DEVICE emulator::Warp &own_warp() { return state().warps[state().current->id / emulator::WARP]; }

// ---- the block ----------------------------------------------------------------------------------------

DEVICE uint8_t *shared() { return state().shared; }

DEVICE void sync_block() { barrier(0, state().n_threads); }
DEVICE void sync_warp() {
    emulator::show_copies();
    int nothing = 0;
    collective("sync_warp", nothing, [](int **) {});
}
DEVICE void sync_named(int id, int threads) { barrier((uint32_t)id, (uint32_t)threads); }
DEVICE void arrive_named(int id, int threads) { barrier((uint32_t)id, (uint32_t)threads, false); }

template <typename T> struct Exchange {
    T value;
    int from;
    T result;
};
template <typename T> DEVICE T exchange(const char *name, T value, int from) {
    Exchange<T> args = {value, from, {}};
    collective(name, args, [](Exchange<T> **lanes) {
        for (uint32_t i = 0; i < emulator::WARP; ++i) lanes[i]->result = lanes[lanes[i]->from & 31]->value;
    });
    return args.result;
}
DEVICE float shfl_xor(float x, int mask) { return exchange("shfl_xor", x, own_lane() ^ mask); }
DEVICE uint32_t shfl_xor(uint32_t x, int mask) { return exchange("shfl_xor", x, own_lane() ^ mask); }
DEVICE float shfl(float x, int lane) { return exchange("shfl", x, lane); }
DEVICE uint32_t shfl(uint32_t x, int lane) { return exchange("shfl", x, lane); }

DEVICE void atomic_add(uint32_t *at, uint32_t x) { *at += x; }

// ---- numbers ------------------------------------------------------------------------------------------

DEVICE uint32_t bits(float x) {
    uint32_t d;
    memcpy(&d, &x, 4);
    return d;
}
DEVICE float from_bits(uint32_t x) {
    float d;
    memcpy(&d, &x, 4);
    return d;
}
DEVICE float f32_of_bf16(uint16_t x) { return from_bits((uint32_t)x << 16); }
DEVICE float bf16_lo(uint32_t x) { return from_bits(x << 16); }
DEVICE float bf16_hi(uint32_t x) { return from_bits(x & 0xffff0000u); }
DEVICE uint16_t bf16_of_f32(float x) {
    if (x != x) return 0x7fff;
    const uint32_t b = bits(x);
    return (uint16_t)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
}
DEVICE uint32_t pack_bf16(float lo, float hi) { return bf16_of_f32(lo) | (uint32_t)bf16_of_f32(hi) << 16; }
DEVICE uint32_t sub_bf16x2(uint32_t a, uint32_t b) {
    return pack_bf16(bf16_lo(a) - bf16_lo(b), bf16_hi(a) - bf16_hi(b));
}
DEVICE float f32_of_f16(uint16_t x) {
    const uint32_t sign = (uint32_t)(x >> 15) << 31, exponent = x >> 10 & 31, fraction = x & 1023;
    if (exponent == 0) return from_bits(sign | bits((float)fraction * 0x1p-24f));
    if (exponent == 31) return from_bits(sign | 0x7f800000u | fraction << 13);
    return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}
DEVICE int round_s8(float x) {
    if (x != x) return 0;
    return (int)nearbyintf(fmaxf(-127.0f, fminf(127.0f, x)));
}
DEVICE uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t both = (uint64_t)b << 32 | a;
    uint32_t d = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t nibble = selector >> (4 * i) & 15;
        uint32_t byte = (uint32_t)(both >> (8 * (nibble & 7))) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        d |= byte << (8 * i);
    }
    return d;
}
DEVICE float ex2(float x) {
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
DEVICE float rcp(float x) { return 1.0f / x; }
DEVICE float rsqrt(float x) { return 1.0f / sqrtf(x); }

// ---- memory -------------------------------------------------------------------------------------------

DEVICE uint4 load_stream(const void *global) { return *(const uint4 *)global; }

// Takes effect at once, or when it is waited for, or at the next barrier. Other threads may not rely on an earlier time.
// The thread itself may read its data after the wait; kernels do not use that, so it is not emulated. Collectives that
// only exchange values are no barriers.
DEVICE void cp_async_16(void *to, const void *global, bool valid = true) {
    emulator::check_shared(to, 16, 16, "cp.async");
    if ((uintptr_t)global % 16 != 0 && valid) fail("cp.async from an address that is not aligned to 16");
    const emulator::Copy copy = {to, valid ? global : nullptr};
    if (state().random.coin()) copy.run();
    else state().current->copies.push_back(copy);
}
DEVICE void cp_async_commit() {
    emulator::Fiber &fiber = *state().current;
    fiber.groups.push_back(std::move(fiber.copies));
    fiber.copies.clear();
}
template <int N> DEVICE void cp_async_wait() {
    emulator::Fiber &fiber = *state().current;
    while (fiber.groups.size() > N) {
        for (const emulator::Copy &copy : fiber.groups.front()) {
            if (state().random.coin()) copy.run();
            else fiber.unseen.push_back(copy);
        }
        fiber.groups.pop_front();
    }
}

// ---- warp matrices ------------------------------------------------------------------------------------

struct Ldmatrix {
    const void *row;
    uint32_t *d;
};
DEVICE void ldmatrix(const char *name, uint32_t (&d)[4], const void *row, bool transposed) {
    emulator::check_shared(row, 16, 16, name);
    Ldmatrix args = {row, d};
    collective(name, args, [transposed](Ldmatrix **lanes) {
        uint16_t m[4][8][8];
        for (int i = 0; i < 32; ++i) memcpy(m[i / 8][i % 8], lanes[i]->row, 16);
        for (int i = 0; i < 32; ++i) {
            const int g = i / 4, t = i % 4;
            for (int j = 0; j < 4; ++j) {
                const uint16_t lo = transposed ? m[j][2 * t][g] : m[j][g][2 * t];
                const uint16_t hi = transposed ? m[j][2 * t + 1][g] : m[j][g][2 * t + 1];
                lanes[i]->d[j] = lo | (uint32_t)hi << 16;
            }
        }
    });
}
DEVICE void ldmatrix_x4(uint32_t (&d)[4], const void *row) { ldmatrix("ldmatrix", d, row, false); }
DEVICE void ldmatrix_x4_trans(uint32_t (&d)[4], const void *row) { ldmatrix("ldmatrix.trans", d, row, true); }

// 16 rows of A from the registers of a warp, (16, 16) bf16 or (16, 32) s8, in the type of the product.
struct Bf16 {
    typedef float Value;
    static constexpr int K = 16, PER_WORD = 2, BYTES = 2;
    static float value(uint32_t word, int i) { return i ? bf16_hi(word) : bf16_lo(word); }
    static float value(const uint8_t *at) {
        uint16_t x;
        memcpy(&x, at, 2);
        return f32_of_bf16(x);
    }
};
struct S8 {
    typedef int32_t Value;
    static constexpr int K = 32, PER_WORD = 4, BYTES = 1;
    static int32_t value(uint32_t word, int i) { return (int8_t)(word >> (8 * i)); }
    static int32_t value(const uint8_t *at) { return (int8_t)*at; }
};
template <typename T, typename A> DEVICE void unpack_a(typename T::Value (&a)[16][T::K], A word_of) {
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int j = 0; j < 4; ++j)
            for (int i = 0; i < T::PER_WORD; ++i)
                a[g + j % 2 * 8][j / 2 * (T::K / 2) + T::PER_WORD * t + i] = T::value(word_of(lane, j), i);
    }
}

// d (16, N) += rows (16, K) * cols (K, N). Products are added one after another, or as a tensor core does it.
template <typename T, int N>
DEVICE void multiply(const typename T::Value (&rows)[16][T::K], const typename T::Value (&cols)[T::K][N],
                     typename T::Value (&d)[16][N]) {
    if constexpr (T::BYTES == 2) {
        if (state().aligned_sums) {
            const tensor_core::Unit unit = state().has_sm90 ? tensor_core::HOPPER : tensor_core::AMPERE;
            for (int m = 0; m < 16; ++m)
                for (int n = 0; n < N; ++n) d[m][n] = tensor_core::aligned(unit, rows[m], &cols[0][n], N, T::K, d[m][n]);
            return;
        }
    }
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < T::K; ++k)
            for (int n = 0; n < N; ++n) d[m][n] += rows[m][k] * cols[k][n];
}

template <typename T> struct Mma {
    typename T::Value *d;
    const uint32_t *a, *b;
};
template <typename T>
DEVICE void mma(const char *name, typename T::Value (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Mma<T> args = {d, a, b};
    collective(name, args, [](Mma<T> **lanes) {
        typename T::Value rows[16][T::K], cols[T::K][8], sums[16][8];
        unpack_a<T>(rows, [lanes](int lane, int j) { return lanes[lane]->a[j]; });
        for (int lane = 0; lane < 32; ++lane) {
            const int g = lane / 4, t = lane % 4;
            for (int j = 0; j < 2; ++j)
                for (int i = 0; i < T::PER_WORD; ++i)
                    cols[j * (T::K / 2) + T::PER_WORD * t + i][g] = T::value(lanes[lane]->b[j], i);
            for (int j = 0; j < 4; ++j) sums[g + j / 2 * 8][2 * t + j % 2] = lanes[lane]->d[j];
        }
        multiply<T, 8>(rows, cols, sums);
        for (int lane = 0; lane < 32; ++lane)
            for (int j = 0; j < 4; ++j) lanes[lane]->d[j] = sums[lane / 4 + j / 2 * 8][2 * (lane % 4) + j % 2];
    });
}
DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma<Bf16>("mma_bf16", d, a, b); }
DEVICE void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma<S8>("mma_s8", d, a, b); }

// ---- sm_90: barriers in shared memory and the copy engine -----------------------------------------------

typedef uint64_t Barrier;
struct alignas(128) TensorMap {
    uint64_t magic, address, rows, cols, row_bytes, box_rows, box_cols, element_bytes;
    uint64_t unused[8];
};

// A random lane each time. On a GPU it is always the same one, but which one is not documented.
DEVICE bool elect_one() {
    bool elected = false;
    collective("elect", elected, [](bool **lanes) { *lanes[state().random.below(emulator::WARP)] = true; });
    return elected;
}

DEVICE BarrierState &barrier_state(Barrier *b) {
    const std::vector<BarrierState *> &known = state().mbarriers;
    for (size_t i = 0; i < known.size(); ++i) {
        if (known[i] != (BarrierState *)b) continue;
        if (i >= state().n_fenced) fail("an mbarrier without a fence since it was initialised");
        return *known[i];
    }
    fail("an mbarrier that is not initialised");
}
DEVICE void barrier_step(Barrier *b) {
    BarrierState &s = *(BarrierState *)b;
    if (s.pending > 0 || s.bytes != 0) return;
    s.phase ^= 1;
    s.pending = s.expected;
    // They look at the phase themselves.
    for (uint32_t i = 0; i < state().n_threads; ++i) {
        emulator::Fiber &fiber = state().fibers[i];
        if (fiber.waits_for && strcmp(fiber.waits_for, "an mbarrier") == 0) emulator::wake(fiber);
    }
}
DEVICE void barrier_init(Barrier *b, int arrivals) {
    emulator::check_shared(b, 8, 8, "mbarrier.init");
    *(BarrierState *)b = {0, (uint32_t)arrivals, (uint32_t)arrivals, 0};
    state().mbarriers.push_back((BarrierState *)b);
}
DEVICE void barrier_init_fence() { state().n_fenced = state().mbarriers.size(); }
DEVICE void barrier_arrive(Barrier *b) {
    BarrierState &s = barrier_state(b);
    if (s.pending == 0) fail("an mbarrier has more arrivals than it expects");
    --s.pending;
    barrier_step(b);
    emulator::pause();
}
DEVICE void barrier_expect(Barrier *b, uint32_t bytes) {
    barrier_state(b).bytes += (int32_t)bytes;
    barrier_arrive(b);
}
DEVICE void barrier_wait(Barrier *b, uint32_t parity) {
    emulator::pause();
    while (barrier_state(b).phase == parity) emulator::wait_for("an mbarrier");
}
DEVICE void fence_async() {}

DEVICE uint8_t *swizzled(uint8_t *at) {
    const size_t offset = (size_t)(at - shared());
    return shared() + (offset ^ ((offset >> 7 & 7) << 4));
}

DEVICE void complete(Barrier *b, uint32_t bytes) {
    ((BarrierState *)b)->bytes -= (int32_t)bytes;
    barrier_step(b);
}
DEVICE void tma_load_2d(void *to, const TensorMap *map, int x, int y, Barrier *b) {
    if (map->magic != 0x7e500a11) fail("not a tensor map");
    if (map->box_cols * map->element_bytes != 128) fail("a box that is not 128 bytes wide");
    emulator::check_shared(to, map->box_rows * 128, 128, "tma");
    barrier_state(b);
    const TensorMap m = *map;
    state().transfers.push_back({[=] {
        for (uint32_t r = 0; r < m.box_rows; ++r) {
            for (uint32_t c = 0; c < m.box_cols; ++c) {
                const int64_t row = (int64_t)y + r, col = (int64_t)x + c;
                const bool inside = row >= 0 && col >= 0 && row < (int64_t)m.rows && col < (int64_t)m.cols;
                uint8_t *at = swizzled((uint8_t *)to + r * 128 + c * m.element_bytes);
                if (inside) memcpy(at, (const uint8_t *)m.address + row * m.row_bytes + col * m.element_bytes,
                                   m.element_bytes);
                else memset(at, 0, m.element_bytes);
            }
        }
        complete(b, m.box_rows * 128);
    }});
}
DEVICE void bulk_load(void *to, const void *global, uint32_t bytes, Barrier *b) {
    emulator::check_shared(to, bytes, 16, "bulk copy");
    if (bytes % 16 != 0 || (uintptr_t)global % 16 != 0) fail("a bulk copy that is not aligned to 16");
    barrier_state(b);
    state().transfers.push_back({[=] {
        memcpy(to, global, bytes);
        complete(b, bytes);
    }});
}

template <int N> DEVICE void take_registers() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }
template <int N> DEVICE void give_registers() { static_assert(N % 8 == 0 && N >= 24 && N <= 256); }

// ---- sm_90a: warpgroup matrices -------------------------------------------------------------------------

// As packed by the original: addresses count from the start of shared memory.
DEVICE uint64_t matrix_desc(const void *start, uint32_t leading, uint32_t stride) {
    const uint64_t offset = (uint64_t)((const uint8_t *)start - shared());
    return (offset & 0x3ffff) >> 4 | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 | 1ull << 62;
}

DEVICE void wgmma_fence() {
    int nothing = 0;
    collective("wgmma.fence", nothing, [](int **) { own_warp().fenced = true; });
}

// A product takes effect anywhere between its commit and the wait, in order.
DEVICE void run_products(std::vector<emulator::Product> &products) {
    for (const emulator::Product &product : products) product();
    products.clear();
}
DEVICE void wgmma_commit() {
    int nothing = 0;
    collective("wgmma.commit", nothing, [](int **) {
        emulator::Warp &warp = own_warp();
        warp.groups.push_back(std::move(warp.products));
        warp.products.clear();
        if (state().random.coin())
            for (std::vector<emulator::Product> &group : warp.groups) run_products(group);
    });
}
template <int N> DEVICE void wgmma_wait() {
    int nothing = 0;
    collective("wgmma.wait", nothing, [](int **) {
        emulator::Warp &warp = own_warp();
        if (!warp.products.empty()) fail("wgmma.wait before a commit");
        while (warp.groups.size() > N) {
            run_products(warp.groups.front());
            warp.groups.pop_front();
        }
        warp.fenced = false;
    });
}

// Element (row, k) of a matrix with K contiguous, or (k, n) of one with N contiguous.
template <typename T> DEVICE typename T::Value element(uint64_t desc, bool transposed, int mn, int k) {
    const size_t start = (desc & 0x3fff) << 4, leading = (desc >> 16 & 0x3fff) << 4, stride = (desc >> 32 & 0x3fff) << 4;
    // The pattern of the swizzle counts from addresses that are multiples of 1,024, with a base offset of 0.
    if (start % 1024 >= 128 || stride % 1024 != 0 || (transposed && mn >= 64 && leading % 1024 != 0))
        fail("wgmma: a matrix at %zu, stride %zu, leading %zu", start, stride, leading);
    size_t at = start;
    if (transposed) at += mn / 64 * leading + k / 8 * stride + k % 8 * 128 + mn % 64 * T::BYTES;
    else at += mn / 8 * stride + mn % 8 * 128 + k * T::BYTES;
    const uint8_t *p = swizzled(shared() + at);
    emulator::check_shared(p, T::BYTES, 1, "wgmma");
    return T::value(p);
}

template <typename T> struct Wgmma {
    typename T::Value *d;  // (N / 2)
    const uint32_t *a;     // null: from shared memory
};
template <typename T, int N>
DEVICE void wgmma(const char *name, typename T::Value *d, const uint32_t *a_registers, uint64_t a_desc, uint64_t b_desc,
                  bool transposed, bool accumulate) {
    Wgmma<T> args = {d, a_registers};
    collective(name, args, [=](Wgmma<T> **lanes) {
        emulator::Warp &warp = own_warp();
        if (!warp.fenced) fail("wgmma without a fence since the last wait");
        const uint32_t warp_row = state().current->id / 32 % 4 * 16;
        struct Lanes {
            Wgmma<T> of[32];
        } all;
        for (int i = 0; i < 32; ++i) all.of[i] = *lanes[i];
        warp.products.push_back([=] {
            static typename T::Value rows[16][T::K], cols[T::K][N], sums[16][N];
            // Registers are read as late as this: they must not change before the wait.
            if (all.of[0].a) {
                unpack_a<T>(rows, [&all](int lane, int j) { return all.of[lane].a[j]; });
            } else {
                for (int m = 0; m < 16; ++m)
                    for (int k = 0; k < T::K; ++k) rows[m][k] = element<T>(a_desc, false, (int)warp_row + m, k);
            }
            for (int n = 0; n < N; ++n)
                for (int k = 0; k < T::K; ++k) cols[k][n] = element<T>(b_desc, transposed, n, k);
            auto at = [&all](int m, int n) -> typename T::Value & {
                return all.of[m % 8 * 4 + n % 8 / 2].d[n / 8 * 4 + m / 8 * 2 + n % 2];
            };
            for (int m = 0; m < 16; ++m)
                for (int n = 0; n < N; ++n) sums[m][n] = accumulate ? at(m, n) : 0;
            multiply<T, N>(rows, cols, sums);
            for (int m = 0; m < 16; ++m)
                for (int n = 0; n < N; ++n) at(m, n) = sums[m][n];
        });
    });
}

template <bool TRANS, int D> DEVICE void wgmma_bf16(float (&d)[D], uint64_t a, uint64_t b, bool accumulate) {
    wgmma<Bf16, 2 * D>("wgmma_bf16", d, nullptr, a, b, TRANS, accumulate);
}
template <bool TRANS, int D>
DEVICE void wgmma_bf16(float (&d)[D], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    wgmma<Bf16, 2 * D>("wgmma_bf16", d, a, 0, b, TRANS, accumulate);
}
template <int D> DEVICE void wgmma_s8(int32_t (&d)[D], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    wgmma<S8, 2 * D>("wgmma_s8", d, a, 0, b, false, accumulate);
}

}  // namespace ptx
