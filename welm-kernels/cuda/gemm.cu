// Matrix products on mma.sync: up to 64 rows of a decode step, which are bound by memory, and tiles of many rows.
//
// W8A16, W16A16 and R8A16 are summed in the same order by every kernel of this file. So the result of a row of x has
// the same bits, however many other rows there are. The order is this:
//
//   - K is cut into 8 segments of whole groups of 32 columns.
//   - Inside a segment the groups are added in order. A group is two mma_bf16. With a scale for each group they start
//     from zero, and the result times the scale is added with one rounding (fmaf). Without one (bf16 or rotated
//     weights) they add to the sum itself.
//   - The sums of the segments are added in order, starting from zero.
//
//     up to 32 rows   "few". A block has one or two strips; each of its 8 warps computes one segment. With one warp for
//                     all of K there would be too few warps: a weight of 5,120 rows has 320 strips, and the loads of
//                     320 warps do not use all of the memory bandwidth.
//     33 to 64 rows   "split", if the weight has few tiles (src/gemm/choice.rs). A block is a tile of one segment, so
//                     that there are 8 times as many blocks. Sums of segments go to memory; "sum" adds them.
//     more            "tile". A block is a tile of all of K, and computes the segments one after another.
//
// W8A8: a group is one mma_s8 from zero, times the scales of weight and activation, in the order of K. Only tiles.
// R8A8: one int32 sum, which is exact. Only tiles.
//
// Considered for 33 to 64 rows and not written: "few" with more rows a block. Each block reads all of x for its one or
// two strips. With 64 rows of x that is 4 to 8 times the bytes of its weights. They come from the L2 cache, whose
// bandwidth would then be the limit.
#include "gemm.cuh"

using namespace gemm;

constexpr uint32_t SEGMENTS = 8, THREADS = 256;

// The first group of a segment.
DEVICE uint32_t segment_start(uint32_t segment, uint32_t n_groups) { return segment * n_groups / SEGMENTS; }

// sum += w x^T of one group of 32 columns, for 16 rows of W and 8 tokens.
template <Mode MODE>
DEVICE void add_group(float (&sum)[4], const uint32_t (&a)[2][4], const uint32_t (&b)[2][2], float scale_g,
                      float scale_g8) {
    if constexpr (!GROUP_SCALES<MODE>) {
        ptx::mma_bf16(sum, a[0], b[0]);
        ptx::mma_bf16(sum, a[1], b[1]);
    } else {
        float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        ptx::mma_bf16(d, a[0], b[0]);
        ptx::mma_bf16(d, a[1], b[1]);
        sum[0] = fmaf(scale_g, d[0], sum[0]);
        sum[1] = fmaf(scale_g, d[1], sum[1]);
        sum[2] = fmaf(scale_g8, d[2], sum[2]);
        sum[3] = fmaf(scale_g8, d[3], sum[3]);
    }
}

// ---- few rows -------------------------------------------------------------------------------------------

// Block (TOKENS rows of x, STRIP_COUNT strips); warp w computes segment w. Weights are prefetched DEPTH groups ahead, into
// a ring of registers: as soon as a group is multiplied, its registers are loaded with the group DEPTH further on. x is
// prefetched one group ahead only. Every block reads it, so that it is mostly in the L2 cache.
// Shared memory: (8 segments, TOKENS, PITCH) f32.
template <Mode MODE, int TOKENS, int STRIP_COUNT, int DEPTH> DEVICE void few(const Params &p) {
    static_assert(DEPTH % 2 == 0, "x has two sets of registers");
    constexpr int COLUMNS = TOKENS / 8, ROWS = STRIP * STRIP_COUNT, PITCH = ROWS + 4;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t strip = blockIdx.y * STRIP_COUNT, first_token = blockIdx.x * TOKENS;
    uint32_t group = segment_start(warp, p.n_groups);
    const uint32_t end = segment_start(warp + 1, p.n_groups);

    // Pointers to the current group. They are advanced, because computing the addresses again takes more instructions.
    const uint8_t *w_at[STRIP_COUNT];
    const uint32_t *scales_at[STRIP_COUNT];
    const uint16_t *x_at[COLUMNS];
#pragma unroll
    for (int s = 0; s < STRIP_COUNT; ++s) {
        const size_t tile = (size_t)(strip + s) * p.n_groups + group;
        w_at[s] = (const uint8_t *)p.w + tile * TILE_BYTES<MODE> + lane * 16;
        scales_at[s] = (const uint32_t *)p.w_scale + tile * 8 + g;
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
        // Past the last row of x the last one is read again. Its result is not stored.
        const uint32_t token = min(first_token + 8 * c + g, p.n - 1);
        x_at[c] = p.x + ((size_t)token * p.n_groups + group) * GROUP + 2 * t;
    }

    float sum[STRIP_COUNT][COLUMNS][4] = {};
    Weights<MODE> w[DEPTH][STRIP_COUNT];
    uint32_t b[2][COLUMNS][2][2] = {};
    auto load_w = [&](uint32_t i, uint32_t ahead) {
#pragma unroll
        for (int s = 0; s < STRIP_COUNT; ++s) {
            const uint8_t *at = w_at[s] + ahead * TILE_BYTES<MODE>;
            w[i][s].words[0] = ptx::load_stream(at);
            if constexpr (MODE == W16A16) w[i][s].words[1] = ptx::load_stream(at + 512);
            if constexpr (GROUP_SCALES<MODE>) w[i][s].scales = scales_at[s][ahead * 8];
        }
    };
    auto load_x = [&](uint32_t ahead) {
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
#pragma unroll
            for (int j = 0; j < 4; ++j)
                b[ahead % 2][c][j / 2][j % 2] = *(const uint32_t *)(x_at[c] + ahead * GROUP + 8 * j);
        }
    };
    auto multiply = [&](uint32_t i) {
#pragma unroll
        for (int s = 0; s < STRIP_COUNT; ++s) {
            uint32_t a[2][4];
            w[i][s].operands(a);
            const float scale_g = GROUP_SCALES<MODE> ? w[i][s].scale(0) : 1.0f;
            const float scale_g8 = GROUP_SCALES<MODE> ? w[i][s].scale(1) : 1.0f;
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) add_group<MODE>(sum[s][c], a, b[i % 2][c], scale_g, scale_g8);
        }
    };

#pragma unroll
    for (uint32_t i = 0; i < DEPTH; ++i) {
        if (group + i < end) load_w(i, i);
    }
    if (group < end) load_x(0);
    for (; group < end; group += DEPTH) {
#pragma unroll
        for (uint32_t i = 0; i < DEPTH; ++i) {
            if (group + i >= end) break;
            if (group + i + 1 < end) load_x(i + 1);
            multiply(i);
            if (group + i + DEPTH < end) load_w(i, i + DEPTH);
        }
#pragma unroll
        for (int s = 0; s < STRIP_COUNT; ++s) {
            w_at[s] += DEPTH * TILE_BYTES<MODE>;
            scales_at[s] += DEPTH * 8;
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) x_at[c] += DEPTH * GROUP;
    }

    float *parts = (float *)ptx::shared(), *own = parts + warp * (TOKENS * PITCH);
#pragma unroll
    for (int s = 0; s < STRIP_COUNT; ++s) {
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
#pragma unroll
            for (int e = 0; e < 4; ++e)
                own[(8 * c + 2 * t + e % 2) * PITCH + STRIP * s + g + e / 2 * 8] = sum[s][c][e];
        }
    }
    ptx::sync_block();
    for (uint32_t i = threadIdx.x; i < TOKENS * ROWS; i += THREADS) {
        float *at = parts + i / ROWS * PITCH + i % ROWS;
        float total = 0.0f;
#pragma unroll
        for (uint32_t s = 0; s < SEGMENTS; ++s) total += at[s * (TOKENS * PITCH)];
        *at = total;
    }
    ptx::sync_block();
    store_tile<MODE, PITCH>(p, parts, ROWS, strip * STRIP, first_token, TOKENS, threadIdx.x, THREADS);
}

KERNEL(gemm_w8a16_few8, Params, 256, 3) { few<W8A16, 8, 1, 8>(p); }
KERNEL(gemm_w8a16_few16, Params, 256, 2) { few<W8A16, 16, 2, 4>(p); }
KERNEL(gemm_w16a16_few8, Params, 256, 3) { few<W16A16, 8, 1, 4>(p); }
KERNEL(gemm_w16a16_few16, Params, 256, 2) { few<W16A16, 16, 1, 6>(p); }
KERNEL(gemm_r8a16_few8, Params, 256, 3) { few<R8A16, 8, 1, 8>(p); }
KERNEL(gemm_r8a16_few16, Params, 256, 2) { few<R8A16, 16, 2, 4>(p); }

// ---- tiles ----------------------------------------------------------------------------------------------

// A stage is 128 bytes of each row of x: 64 columns of bf16, 128 of int8.
template <Mode MODE> constexpr uint32_t STAGE_GROUPS = INT8_X<MODE> ? 4 : 2;

template <Mode MODE, int TOKENS> struct Stage {
    static constexpr uint32_t A = STRIPS * STAGE_GROUPS<MODE> * TILE_BYTES<MODE>;
    static constexpr uint32_t SCALES = GROUP_SCALES<MODE> ? STRIPS * STAGE_GROUPS<MODE> * SCALE_BYTES : 0;
    static constexpr uint32_t B = TOKENS * 128;
    static constexpr uint32_t B_SCALES = MODE == W8A8 ? STAGE_GROUPS<MODE> * TOKENS * 4 : 0;
    static constexpr uint32_t BYTES = A + SCALES + B + B_SCALES;
};

// Block (TOKENS rows of x, 128 rows of W). Blocks next to each other in x read the same weights. 8 warps, 4 along W
// and 2 along x: a warp has 32 rows and TOKENS / 2 tokens. In shared memory the 16-byte pieces of a row of x are
// swizzled, piece ^ token % 8, so that ldmatrix reads 8 rows without bank conflicts. Shared memory: STAGES stages; after
// the last product (TOKENS, PITCH) f32.
//
// PART: the block computes only the groups of segment blockIdx.z. Its sums go to `parts`, (8 segments, n, part_rows).
// Stages are counted from the start of the segment. Its last stage may have one group only.
template <Mode MODE, int TOKENS, int STAGES, bool PART = false>
DEVICE void tile(const Params &p, float *parts = nullptr, uint64_t part_rows = 0) {
    typedef Stage<MODE, TOKENS> S;
    constexpr uint32_t GROUPS = STAGE_GROUPS<MODE>;
    constexpr int COLUMNS = TOKENS / 2 / 8, PITCH = TILE_ROWS + 4;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int warp_strip = warp % 4 * 2, warp_token = warp / 4 * (TOKENS / 2);
    const uint32_t first_token = blockIdx.x * TOKENS, first_strip = blockIdx.y * STRIPS;
    const uint32_t first_group = PART ? segment_start(blockIdx.z, p.n_groups) : 0;
    const uint32_t n_groups = PART ? segment_start(blockIdx.z + 1, p.n_groups) - first_group : p.n_groups;
    const uint32_t n_stages = PART ? (n_groups + GROUPS - 1) / GROUPS : n_groups / GROUPS;
    uint8_t *shared = ptx::shared();

    auto copy_stage = [&](uint32_t index) {
        // Whether piece i of a stage, which has `pieces` of them, belongs to a group that exists.
        auto exists = [&](uint32_t i, uint32_t pieces) {
            return !PART || index * GROUPS + i / (pieces / GROUPS) < n_groups;
        };
        if (index < n_stages) {
            uint8_t *a = shared + index % STAGES * S::BYTES, *scales = a + S::A;
            uint8_t *b = scales + S::SCALES, *b_scales = b + S::B;
            constexpr uint32_t A_PIECES = GROUPS * TILE_BYTES<MODE> / 16;
#pragma unroll
            for (uint32_t i = threadIdx.x; i < S::A / 16; i += THREADS) {
                const size_t tile = (size_t)(first_strip + i / A_PIECES) * p.n_groups + first_group + index * GROUPS;
                const uint8_t *from = (const uint8_t *)p.w + tile * TILE_BYTES<MODE>;
                if (exists(i % A_PIECES, A_PIECES)) ptx::cp_async_16(a + i * 16, from + i % A_PIECES * 16);
            }
            if constexpr (GROUP_SCALES<MODE>) {
                constexpr uint32_t PIECES = GROUPS * SCALE_BYTES / 16;
                const uint32_t i = threadIdx.x;
                const size_t tile = (size_t)(first_strip + i / PIECES) * p.n_groups + first_group + index * GROUPS;
                const uint8_t *from = (const uint8_t *)p.w_scale + tile * SCALE_BYTES;
                if (i < STRIPS * PIECES && exists(i % PIECES, PIECES))
                    ptx::cp_async_16(scales + i * 16, from + i % PIECES * 16);
            }
#pragma unroll
            for (uint32_t i = threadIdx.x; i < S::B / 16; i += THREADS) {
                const uint32_t token = i / 8, piece = i % 8;
                const bool inside = first_token + token < p.n;
                const size_t row = inside ? first_token + token : 0;
                constexpr uint32_t GROUP_BYTES = 128 / GROUPS;
                const uint32_t row_bytes = p.n_groups * GROUP_BYTES, column = first_group * GROUP_BYTES + index * 128;
                const uint8_t *x = INT8_X<MODE> ? (const uint8_t *)p.q : (const uint8_t *)p.x;
                uint8_t *to = b + token * 128 + ((piece ^ token % 8) << 4);
                if (exists(piece, 8)) ptx::cp_async_16(to, x + row * row_bytes + column + piece * 16, inside);
            }
            if (MODE == W8A8 && threadIdx.x < GROUPS * TOKENS / 4) {
                const uint32_t group = threadIdx.x / (TOKENS / 4), token = threadIdx.x % (TOKENS / 4) * 4;
                // The stride and the first row are multiples of 4. So if the first of four is in the array, all are.
                const bool inside = first_token + token < p.n;
                const float *from = p.q_scale + (size_t)(index * GROUPS + group) * p.q_scale_stride + first_token;
                ptx::cp_async_16(b_scales + threadIdx.x * 16, inside ? from + token : p.q_scale, inside);
            }
        }
        ptx::cp_async_commit();
    };

    typename SumOf<MODE>::Type sum[2][COLUMNS][4] = {};
    float total[2][COLUMNS][4] = {};  // of the segments that are complete
    uint32_t segment = 1;
    auto end_segments = [&](uint32_t group) {
        if constexpr (!INT8_X<MODE> && !PART) {
            while (segment <= SEGMENTS && group == segment_start(segment, p.n_groups)) {
#pragma unroll
                for (int i = 0; i < 2 * COLUMNS * 4; ++i) {
                    const int s = i / (COLUMNS * 4), c = i / 4 % COLUMNS, e = i % 4;
                    total[s][c][e] += sum[s][c][e];
                    sum[s][c][e] = 0.0f;
                }
                ++segment;
            }
        }
    };

#pragma unroll
    for (uint32_t i = 0; i < STAGES - 1; ++i) copy_stage(i);
    for (uint32_t index = 0; index < n_stages; ++index) {
        ptx::cp_async_wait<STAGES - 2>();
        ptx::sync_block();  // this stage has arrived, and all warps have read the one before
        copy_stage(index + STAGES - 1);
        const uint8_t *a = shared + index % STAGES * S::BYTES, *scales = a + S::A;
        const uint8_t *b = scales + S::SCALES, *b_scales = b + S::B;
        // Int8 has four groups. If all four were unrolled, their addresses would need too many registers.
#pragma unroll 2
        for (uint32_t group = 0; group < GROUPS; ++group) {
            if (PART && index * GROUPS + group == n_groups) break;
            end_segments(index * GROUPS + group);
            Weights<MODE> w[2];
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                const uint32_t in_stage = (warp_strip + s) * GROUPS + group;
                const uint8_t *at = a + in_stage * TILE_BYTES<MODE> + lane * 16;
                w[s].words[0] = *(const uint4 *)at;
                if constexpr (MODE == W16A16) w[s].words[1] = *(const uint4 *)(at + 512);
                if constexpr (GROUP_SCALES<MODE>)
                    w[s].scales = *(const uint32_t *)(scales + in_stage * SCALE_BYTES + g * 4);
            }
            auto piece = [&](int token, int i) { return b + token * 128 + ((i ^ token % 8) << 4); };
            const int row = warp_token + lane % 8 + lane / 16 * 8;
            if constexpr (INT8_X<MODE>) {
#pragma unroll
                for (int c = 0; c < COLUMNS; c += 2) {
                    // Tokens 0.., 8.., of each the first and the second 16 columns.
                    uint32_t q[4];
                    ptx::ldmatrix_x4(q, piece(row + 8 * c, group * 2 + lane / 8 % 2));
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const uint32_t columns[2] = {q[2 * h], q[2 * h + 1]};
#pragma unroll
                        for (int s = 0; s < 2; ++s) {
                            const uint4 v = w[s].words[0];
                            const uint32_t rows[4] = {v.x, v.y, v.z, v.w};
                            if constexpr (MODE == R8A8) {
                                ptx::mma_s8(sum[s][c + h], rows, columns);
                            } else {
                                int32_t d[4] = {0, 0, 0, 0};
                                ptx::mma_s8(d, rows, columns);
                                const uint32_t token = warp_token + 8 * (c + h) + 2 * t;
                                const float2 q_scale = *(const float2 *)(b_scales + (group * TOKENS + token) * 4);
                                const float scale_g = w[s].scale(0), scale_g8 = w[s].scale(1);
                                float(&to)[4] = sum[s][c + h];
                                to[0] = fmaf((float)d[0], scale_g * q_scale.x, to[0]);
                                to[1] = fmaf((float)d[1], scale_g * q_scale.y, to[1]);
                                to[2] = fmaf((float)d[2], scale_g8 * q_scale.x, to[2]);
                                to[3] = fmaf((float)d[3], scale_g8 * q_scale.y, to[3]);
                            }
                        }
                    }
                }
            } else {
                uint32_t rows[2][2][4];
                w[0].operands(rows[0]);
                w[1].operands(rows[1]);
#pragma unroll
                for (int c = 0; c < COLUMNS; c += 2) {
                    uint32_t x[2][4];  // of 16 columns each: tokens 0.. columns 0.., 8.., tokens 8.. columns 0.., 8..
#pragma unroll
                    for (int h = 0; h < 2; ++h)
                        ptx::ldmatrix_x4(x[h], piece(row + 8 * c, group * 4 + 2 * h + lane / 8 % 2));
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const uint32_t columns[2][2] = {{x[0][2 * half], x[0][2 * half + 1]},
                                                        {x[1][2 * half], x[1][2 * half + 1]}};
#pragma unroll
                        for (int s = 0; s < 2; ++s) {
                            const float scale_g = GROUP_SCALES<MODE> ? w[s].scale(0) : 1.0f;
                            const float scale_g8 = GROUP_SCALES<MODE> ? w[s].scale(1) : 1.0f;
                            add_group<MODE>(sum[s][c + half], rows[s], columns, scale_g, scale_g8);
                        }
                    }
                }
            }
        }
    }
    end_segments(p.n_groups);
    ptx::cp_async_wait<0>();
    ptx::sync_block();

    float *out = (float *)shared;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int token = warp_token + 8 * c + 2 * t + e % 2, r = (warp_strip + s) * STRIP + g + e / 2 * 8;
                out[token * PITCH + r] = INT8_X<MODE> || PART ? (float)sum[s][c][e] : total[s][c][e];
            }
        }
    }
    ptx::sync_block();
    if constexpr (PART) {
        for (uint32_t i = threadIdx.x; i < TOKENS * TILE_ROWS / 4; i += THREADS) {
            const uint32_t token = i / (TILE_ROWS / 4), r = i % (TILE_ROWS / 4) * 4;
            if (first_token + token >= p.n) break;
            float *to = parts + ((size_t)blockIdx.z * p.n + first_token + token) * part_rows + first_strip * STRIP + r;
            *(float4 *)to = *(const float4 *)(out + token * PITCH + r);
        }
    } else {
        store_tile<MODE, PITCH>(p, out, TILE_ROWS, first_strip * STRIP, first_token, TOKENS, threadIdx.x, THREADS);
    }
}

KERNEL(gemm_w8a16_tile64, Params, 256, 1) { tile<W8A16, 64, 4>(p); }
KERNEL(gemm_w8a16_tile128, Params, 256, 1) { tile<W8A16, 128, 3>(p); }
KERNEL(gemm_w16a16_tile64, Params, 256, 1) { tile<W16A16, 64, 3>(p); }
KERNEL(gemm_w16a16_tile128, Params, 256, 1) { tile<W16A16, 128, 3>(p); }
KERNEL(gemm_w8a8_tile64, Params, 256, 1) { tile<W8A8, 64, 3>(p); }
KERNEL(gemm_w8a8_tile128, Params, 256, 1) { tile<W8A8, 128, 2>(p); }
KERNEL(gemm_r8a16_tile64, Params, 256, 1) { tile<R8A16, 64, 4>(p); }
KERNEL(gemm_r8a16_tile128, Params, 256, 1) { tile<R8A16, 128, 3>(p); }
KERNEL(gemm_r8a8_tile64, Params, 256, 2) { tile<R8A8, 64, 3>(p); }
KERNEL(gemm_r8a8_tile128, Params, 256, 2) { tile<R8A8, 128, 2>(p); }

// ---- tiles of a segment, and the sum of the segments ------------------------------------------------------

struct SplitParams {
    Params p;
    float *parts;   // (8 segments, n, rows)
    uint64_t rows;  // of the packed weight
};

// Block (8 rows of x, 128 rows of W). A thread adds four of the sums. It issues the loads of all segments before it
// adds. Shared memory: (8, PITCH) f32.
template <Mode MODE> DEVICE void add_segments(const SplitParams &split) {
    constexpr uint32_t TOKENS = THREADS * 4 / TILE_ROWS;
    constexpr int PITCH = TILE_ROWS + 4;
    const Params &p = split.p;
    const uint32_t first_token = blockIdx.x * TOKENS, first_row = blockIdx.y * TILE_ROWS;
    const uint32_t token = threadIdx.x / (TILE_ROWS / 4), r = threadIdx.x % (TILE_ROWS / 4) * 4;
    // Past the last row of x the last one is read again. Its result is not stored.
    const uint32_t row_of_x = min(first_token + token, p.n - 1);
    float part[SEGMENTS][4], total[4] = {};
#pragma unroll
    for (uint32_t s = 0; s < SEGMENTS; ++s)
        load_four(part[s], split.parts + ((size_t)s * p.n + row_of_x) * split.rows + first_row + r);
#pragma unroll
    for (uint32_t s = 0; s < SEGMENTS; ++s) {
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j) total[j] += part[s][j];
    }
    float *sums = (float *)ptx::shared();
    *(float4 *)(sums + token * PITCH + r) = {total[0], total[1], total[2], total[3]};
    ptx::sync_block();
    store_tile<MODE, PITCH>(p, sums, TILE_ROWS, first_row, first_token, TOKENS, threadIdx.x, THREADS);
}

KERNEL(gemm_w8a16_split, SplitParams, 256, 2) { tile<W8A16, 64, 4, true>(p.p, p.parts, p.rows); }
KERNEL(gemm_w8a16_sum, SplitParams, 256, 4) { add_segments<W8A16>(p); }
KERNEL(gemm_w16a16_split, SplitParams, 256, 2) { tile<W16A16, 64, 3, true>(p.p, p.parts, p.rows); }
KERNEL(gemm_w16a16_sum, SplitParams, 256, 4) { add_segments<W16A16>(p); }
KERNEL(gemm_r8a16_split, SplitParams, 256, 2) { tile<R8A16, 64, 4, true>(p.p, p.parts, p.rows); }
KERNEL(gemm_r8a16_sum, SplitParams, 256, 4) { add_segments<R8A16>(p); }
