// Matrix products of many rows on wgmma, for prompts on Hopper.
//
// A block computes 128 rows of W by TOKENS rows of x. Two warpgroups, the consumers, multiply 64 rows each; a third one,
// the producer, copies.
//
//     W   is the A operand, from registers, since int8 must be unpacked first. It is packed as fragments: bulk copies
//         bring it to shared memory, and a lane reads 16 bytes at a time.
//     x   is the B operand, from shared memory. The copy engine (TMA) copies it with a 128-byte swizzle.
//
// While one consumer unpacks, the other one's products run.
//
//     W8A16, W16A16   256 tokens, or 128, stages of 64 columns. A weight times its scale is rounded to bf16 once; sums
//                     are f32.
//     W8A8            128 tokens, stages of 128 columns. The sums of a group of 32 are int32, exactly; then times the
//                     scales of weight and activation, in f32, in the order of K.
//     R8A8            256 tokens, or 128, stages of 128 columns. One exact int32 sum over all of K.
//
// Kernels named "few" have tiles of 128 tokens. They are for products with too few tiles of 256 tokens to keep all
// multiprocessors busy (`narrow_tiles` in src/gemm/choice.rs). The result of a row depends on that row only: it is one
// column of B, and all blocks go through K in the same order.
#include "gemm.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using namespace gemm;

constexpr uint32_t CONSUMERS = 256;  // threads
constexpr uint32_t PRODUCERS = 4;    // warps, after them

struct Sm90Params {
    ptx::TensorMap x;  // (n, K), boxes of TOKENS rows of 128 bytes
    Params p;
};

template <Mode MODE, int TOKENS, int STAGES> struct Layout {
    static constexpr uint32_t GROUPS = INT8_X<MODE> ? 4 : 2;
    // Bytes of a stage. B comes first, because the swizzle needs it aligned to 1,024 bytes.
    static constexpr uint32_t B = TOKENS * 128;
    static constexpr uint32_t A_STRIP = GROUPS * TILE_BYTES<MODE>, A = STRIPS * A_STRIP;
    static constexpr uint32_t SCALES_STRIP = GROUP_SCALES<MODE> ? GROUPS * SCALE_BYTES : 0;
    static constexpr uint32_t SCALES = STRIPS * SCALES_STRIP;
    static constexpr uint32_t B_SCALES = MODE == W8A8 ? GROUPS * TOKENS * 4 : 0;
    static constexpr uint32_t BYTES = (B + A + SCALES + B_SCALES + 1023) / 1024 * 1024;
};

// Fills the stages, one after another. Each of the four warps copies two strips of W and, for W8A8, the scales of one
// group of x. The first warp also copies x. Each warp announces its own bytes. So a stage is full when all four warps have
// arrived and all bytes are there.
template <Mode MODE, int TOKENS, int STAGES>
DEVICE void produce(const Sm90Params &all, ptx::Barrier *full, ptx::Barrier *empty) {
    typedef Layout<MODE, TOKENS, STAGES> L;
    constexpr uint32_t OWN_STRIPS = STRIPS / PRODUCERS;
    static_assert(STRIPS % PRODUCERS == 0 && (MODE != W8A8 || L::GROUPS == PRODUCERS));
    const Params &p = all.p;
    // Read from one lane, so that the compiler knows that it is the same in all lanes of the warp.
    const uint32_t warp = ptx::shfl((threadIdx.x - CONSUMERS) / 32, 0);
    const uint32_t first_token = blockIdx.x * TOKENS;
    const uint32_t n_stages = p.n_groups / L::GROUPS;
    // Scales of tokens are copied 16 bytes at a time, and not past the last token.
    const uint32_t b_scale_bytes = MODE == W8A8 ? min((uint32_t)TOKENS, (p.n - first_token + 3) / 4 * 4) * 4 : 0;
    const size_t first_tile = (size_t)(blockIdx.y * STRIPS + warp * OWN_STRIPS) * p.n_groups;
    const uint32_t bytes = OWN_STRIPS * (L::A_STRIP + L::SCALES_STRIP) + b_scale_bytes + (warp == 0 ? L::B : 0);
#pragma unroll 1
    for (uint32_t index = 0; index < n_stages; ++index) {
        const uint32_t stage = index % STAGES;
        if (index >= STAGES) ptx::barrier_wait(empty + stage, (index / STAGES - 1) % 2);
        if (!ptx::elect_one()) continue;
        uint8_t *b = ptx::shared() + stage * L::BYTES, *a = b + L::B;
        uint8_t *scales = a + L::A, *b_scales = scales + L::SCALES;
        ptx::Barrier *barrier = full + stage;
        ptx::barrier_expect(barrier, bytes);
        if (warp == 0) ptx::tma_load_2d(b, &all.x, (int)(index * (INT8_X<MODE> ? 128 : 64)), (int)first_token, barrier);
#pragma unroll
        for (uint32_t i = 0; i < OWN_STRIPS; ++i) {
            const uint32_t s = warp * OWN_STRIPS + i;
            const size_t tile = first_tile + (size_t)i * p.n_groups + index * L::GROUPS;
            const uint8_t *w = (const uint8_t *)p.w + tile * TILE_BYTES<MODE>;
            ptx::bulk_load(a + s * L::A_STRIP, w, L::A_STRIP, barrier);
            if constexpr (GROUP_SCALES<MODE>) {
                const uint8_t *w_scale = (const uint8_t *)p.w_scale + tile * SCALE_BYTES;
                ptx::bulk_load(scales + s * L::SCALES_STRIP, w_scale, L::SCALES_STRIP, barrier);
            }
        }
        if constexpr (MODE == W8A8) {
            const size_t at = (size_t)(index * L::GROUPS + warp) * p.q_scale_stride + first_token;
            ptx::bulk_load(b_scales + warp * TOKENS * 4, p.q_scale + at, b_scale_bytes, barrier);
        }
    }
}

// Shared memory: STAGES stages, then two barriers for each. Afterwards (TOKENS, PITCH) f32.
template <Mode MODE, int TOKENS, int STAGES> DEVICE void product(const Sm90Params &all) {
    typedef Layout<MODE, TOKENS, STAGES> L;
    constexpr int PITCH = TILE_ROWS + 4;
    const Params &p = all.p;
    uint8_t *shared = ptx::shared();
    ptx::Barrier *full = (ptx::Barrier *)(shared + STAGES * L::BYTES), *empty = full + STAGES;
    const uint32_t first_token = blockIdx.x * TOKENS, first_strip = blockIdx.y * STRIPS;
    const uint32_t n_stages = p.n_groups / L::GROUPS;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            ptx::barrier_init(full + i, PRODUCERS);
            ptx::barrier_init(empty + i, CONSUMERS / 32);
        }
        ptx::barrier_init_fence();
    }
    ptx::sync_block();

    if (threadIdx.x >= CONSUMERS) {
        ptx::give_registers<24>();
        produce<MODE, TOKENS, STAGES>(all, full, empty);
    } else {
        ptx::take_registers<240>();
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
        typename SumOf<MODE>::Type sum[TOKENS / 2];
#pragma unroll
        for (int i = 0; i < TOKENS / 2; ++i) sum[i] = 0;

        auto stage_of = [&](uint32_t index) { return shared + index % STAGES * L::BYTES; };
        auto wait_full = [&](uint32_t index) { ptx::barrier_wait(full + index % STAGES, index / STAGES % 2); };
        // To be called when all products of this warp that read the stage are done.
        auto release = [&](uint32_t index) {
            ptx::sync_warp();
            if (lane == 0) ptx::barrier_arrive(empty + index % STAGES);
        };
        auto load = [&](uint32_t index, uint32_t group) {
            const uint8_t *a = stage_of(index) + L::B + warp * L::A_STRIP + group * TILE_BYTES<MODE> + lane * 16;
            Weights<MODE> w;
            w.words[0] = *(const uint4 *)a;
            if constexpr (MODE == W16A16) w.words[1] = *(const uint4 *)(a + 512);
            if constexpr (GROUP_SCALES<MODE>) {
                const uint8_t *scales = stage_of(index) + L::B + L::A + warp * L::SCALES_STRIP;
                w.scales = *(const uint32_t *)(scales + group * SCALE_BYTES + g * 4);
            }
            return w;
        };
        // 32 bytes along K of every row of x: 16 columns of bf16, 32 of int8.
        auto b_desc = [&](uint32_t index, uint32_t step) {
            return ptx::matrix_desc(stage_of(index) + step * 32, 16, 1024);
        };

        if constexpr (MODE == W8A8) {
            int32_t d[2][TOKENS / 2];
            for (uint32_t index = 0; index < n_stages; ++index) {
                wait_full(index);
                Weights<MODE> w[2];
                uint32_t a[2][4];
                const uint8_t *b_scales = stage_of(index) + L::B + L::A + L::SCALES;
                // While the product of one group runs, the sums of the group before it are scaled.
#pragma unroll
                for (uint32_t group = 0; group <= L::GROUPS; ++group) {
                    if (group < L::GROUPS) {
                        w[group % 2] = load(index, group);
                        const uint4 words = w[group % 2].words[0];
                        uint32_t(&rows)[4] = a[group % 2];
                        rows[0] = words.x;
                        rows[1] = words.y;
                        rows[2] = words.z;
                        rows[3] = words.w;
                        ptx::wgmma_fence();
                        ptx::wgmma_s8(d[group % 2], rows, b_desc(index, group), false);
                        ptx::wgmma_commit();
                    }
                    if (group == 0) continue;
                    if (group < L::GROUPS) ptx::wgmma_wait<1>();
                    else ptx::wgmma_wait<0>();
                    const uint32_t done = group - 1;
                    const float scale_g = w[done % 2].scale(0), scale_g8 = w[done % 2].scale(1);
#pragma unroll
                    for (int j = 0; j < TOKENS / 8; ++j) {
                        const float2 q_scale = *(const float2 *)(b_scales + (done * TOKENS + 8 * j + 2 * t) * 4);
                        const int32_t *from = d[done % 2] + 4 * j;
                        float *to = sum + 4 * j;
                        to[0] = fmaf((float)from[0], scale_g * q_scale.x, to[0]);
                        to[1] = fmaf((float)from[1], scale_g * q_scale.y, to[1]);
                        to[2] = fmaf((float)from[2], scale_g8 * q_scale.x, to[2]);
                        to[3] = fmaf((float)from[3], scale_g8 * q_scale.y, to[3]);
                    }
                }
                release(index);
            }
        } else if constexpr (MODE == R8A8) {
            // The products of a stage are issued before those of the previous stage have ended, so that the tensor cores
            // never wait. Meanwhile the fragments of the next stage are loaded into the other registers.
            uint32_t even[L::GROUPS][4], odd[L::GROUPS][4];
            auto fetch = [&](uint32_t (&a)[L::GROUPS][4], uint32_t index) {
                if (index >= n_stages) return;
                wait_full(index);
#pragma unroll
                for (uint32_t group = 0; group < L::GROUPS; ++group) {
                    const uint4 words = load(index, group).words[0];
                    a[group][0] = words.x;
                    a[group][1] = words.y;
                    a[group][2] = words.z;
                    a[group][3] = words.w;
                }
            };
            auto step = [&](uint32_t (&now)[L::GROUPS][4], uint32_t (&next)[L::GROUPS][4], uint32_t index) {
                ptx::wgmma_fence();
#pragma unroll
                for (uint32_t group = 0; group < L::GROUPS; ++group)
                    ptx::wgmma_s8(sum, now[group], b_desc(index, group), true);
                ptx::wgmma_commit();
                ptx::wgmma_wait<1>();
                if (index > 0) release(index - 1);
                fetch(next, index + 1);
            };
            fetch(even, 0);
            for (uint32_t index = 0; index < n_stages; index += 2) {
                step(even, odd, index);
                if (index + 1 < n_stages) step(odd, even, index + 1);
            }
            ptx::wgmma_wait<0>();
        } else {
            // While the products of one stage run, the weights of the next one are unpacked into the other registers.
            uint32_t even[L::GROUPS][2][4], odd[L::GROUPS][2][4];
            auto unpack = [&](uint32_t (&a)[L::GROUPS][2][4], uint32_t index) {
                if (index >= n_stages) return;
                wait_full(index);
#pragma unroll
                for (uint32_t group = 0; group < L::GROUPS; ++group) load(index, group).scaled_operands(a[group]);
            };
            auto multiply = [&](const uint32_t (&a)[L::GROUPS][2][4], uint32_t index) {
                ptx::wgmma_fence();
#pragma unroll
                for (uint32_t step = 0; step < 2 * L::GROUPS; ++step)
                    ptx::wgmma_bf16<false>(sum, a[step / 2][step % 2], b_desc(index, step), true);
                ptx::wgmma_commit();
            };
            unpack(even, 0);
            for (uint32_t index = 0; index < n_stages; index += 2) {
                multiply(even, index);
                unpack(odd, index + 1);
                ptx::wgmma_wait<0>();
                release(index);
                if (index + 1 == n_stages) break;
                multiply(odd, index + 1);
                unpack(even, index + 2);
                ptx::wgmma_wait<0>();
                release(index + 1);
            }
        }

        // All stages have been read, so that their memory can hold the sums.
        ptx::sync_named(1, CONSUMERS);
        float *out = (float *)shared;
#pragma unroll
        for (int i = 0; i < TOKENS / 2; ++i) {
            const int token = i / 4 * 8 + 2 * t + i % 2, row = warp * 16 + g + i / 2 % 2 * 8;
            out[token * PITCH + row] = (float)sum[i];
        }
        ptx::sync_named(1, CONSUMERS);
        store_tile<MODE, PITCH>(p, out, TILE_ROWS, first_strip * STRIP, first_token, TOKENS, threadIdx.x, CONSUMERS);
    }
}

KERNEL(gemm_w8a16_few_sm90, Sm90Params, 384, 1) { product<W8A16, 128, 8>(p); }
KERNEL(gemm_w8a16_sm90, Sm90Params, 384, 1) { product<W8A16, 256, 5>(p); }
KERNEL(gemm_w16a16_few_sm90, Sm90Params, 384, 1) { product<W16A16, 128, 6>(p); }
KERNEL(gemm_w16a16_sm90, Sm90Params, 384, 1) { product<W16A16, 256, 4>(p); }
KERNEL(gemm_w8a8_sm90, Sm90Params, 384, 1) { product<W8A8, 128, 6>(p); }
KERNEL(gemm_r8a8_few_sm90, Sm90Params, 384, 1) { product<R8A8, 128, 6>(p); }
KERNEL(gemm_r8a8_sm90, Sm90Params, 384, 1) { product<R8A8, 256, 4>(p); }

#endif
