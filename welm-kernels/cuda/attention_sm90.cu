// Prefill attention for sm_90a. It computes what attention.cu does, whose header has the formula and the operands. Products
// run on wgmma, and the copy engine (TMA) reads the cache.
//
// Block (head, tile): 128 rows of one head, 64 for each of two consumer warpgroups. Four more warps, the producers, start
// the copies. A step is 128 keys, aligned to key 0, so that a row takes the same keys in the same steps, whatever other
// rows the tile has. A row also takes steps in which it sees no key, if another row needs them; attention.cuh says why
// these change no bit.
//
// - q is the A operand, from registers, and is loaded once. p is the A operand of the second product, from registers, too:
//   the accumulators of 16 keys, rounded, are its fragments. The cache has head_dim contiguous. That is K contiguous for
//   q k^T and N contiguous for p v, so that cache blocks are multiplied without a transposition.
// - The softmax of a step overlaps with the product with V of the previous step. The two warpgroups take turns at starting
//   products, so that the softmax of one also overlaps with the products of the other.
// - K and V have STAGES buffers each. K of a step is freed when its scores are computed, V one step later.
//
// Cache slots without a key may hold NaN, and the copy engine copies whole blocks. For K this does no harm, because masked
// scores are replaced, not multiplied. For V it does, as 0 * NaN is NaN. So a block in which some keys are outside the
// tile's range is copied row by row. For the keys outside, the copy asks for a row outside of the matrix, and the
// engine writes zeros. Blocks that are wholly outside are filled in the same way; their table entries are not read. The
// alternative, to overwrite such rows in shared memory, would need a barrier between the copy and both warpgroups.
#include "attention.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using namespace attention;

constexpr uint32_t GROUP_ROWS = 64, GROUPS = 2, ROWS = GROUPS * GROUP_ROWS;
constexpr uint32_t CONSUMERS = 128 * GROUPS;  // threads, before those of the producers' warpgroup
constexpr uint32_t STEP = 128, STEP_BLOCKS = STEP / BLOCK_KEYS;
constexpr uint32_t STAGES = 3;
// 64 columns of a key are a row of 128 bytes. 64 columns of all keys of a step are a piece.
constexpr uint32_t ROW_BYTES = 128, BLOCK_BYTES = BLOCK_KEYS * ROW_BYTES, PIECE_BYTES = STEP * ROW_BYTES;
// Whether V of 80 or 96 columns is multiplied in two products, one of 64 columns and one of the rest. Then no product goes
// from one piece into the next. A single product would save an instruction, but would use only a part of its second
// piece. The PTX ISA does not say whether that is allowed, and no known code does it. The bits are the same.
constexpr bool SPLIT_COLUMNS = true;
// Warps that copy K, and as many that copy V. Each copies a share of the blocks of every step.
constexpr uint32_t PRODUCERS = 2, SHARE = STEP_BLOCKS / PRODUCERS;
// A row number that is outside every tensor map. A box of 16 rows from it on is outside, too, and is copied as zeros.
constexpr int NOWHERE = -(int)BLOCK_KEYS;

struct Sm90Params {
    ptx::TensorMap k, v;   // (n_blocks * n_kv_heads * 16, head_dim) bf16, in boxes (16, 64)
    ptx::TensorMap v_row;  // v in boxes (1, 64)
    PrefillParams p;       // of which k and v are not used
};

// ---- shared memory --------------------------------------------------------------------------------------

// Steps use the buffers in turn. In one round through the buffers, all barriers are in phases of the same parity.
struct Stage {
    uint32_t index = 0, parity = 0;

    DEVICE_MEMBER void next() {
        if (++index < STAGES) return;
        index = 0;
        parity ^= 1;
    }
};

struct Barriers {
    ptx::Barrier k_full[STAGES], v_full[STAGES];    // wait for every producer, and for the bytes
    ptx::Barrier k_empty[STAGES], v_empty[STAGES];  // wait for every warp that computes
};

// K: (STAGES, pieces, 128 keys, 64 columns) bf16, swizzled; V likewise; barriers.
template <int HD> struct Shared {
    static constexpr uint32_t PIECES = (HD + 63) / 64, TILE_BYTES = PIECES * PIECE_BYTES;

    static DEVICE_MEMBER uint8_t *k(uint32_t stage) { return ptx::shared() + stage * TILE_BYTES; }
    static DEVICE_MEMBER uint8_t *v(uint32_t stage) { return k(STAGES + stage); }
    static DEVICE_MEMBER Barriers &barriers() { return *(Barriers *)k(2 * STAGES); }
};

// ---- the producers --------------------------------------------------------------------------------------

// A warp that copies K, or V, of its share of the blocks of each step. One elected lane starts the copies.
template <int HD, bool V> DEVICE void produce(const Sm90Params &all, const Tile &tile, uint32_t head, uint32_t warp) {
    typedef Shared<HD> S;
    const PrefillParams &p = all.p;
    const uint32_t kv_head = head / (p.n_heads / p.n_kv_heads);
    const int lane = threadIdx.x % 32;
    const Keys keys = tile.keys;
    Barriers &barriers = S::barriers();
    auto copy = [&](uint8_t *to, const ptx::TensorMap &map, int row, ptx::Barrier *full) {
#pragma unroll
        for (uint32_t i = 0; i < S::PIECES; ++i) ptx::tma_load_2d(to + i * PIECE_BYTES, &map, 64 * i, row, full);
    };
    Stage stage;
    int row = NOWHERE;
#pragma unroll 1
    for (uint32_t index = tile.first_step; index <= tile.last_step; ++index, stage.next()) {
        // Each lane reads where one cache block is, of the 32 of this step and the next three.
        if (index == tile.first_step || index % 4 == 0) {
            const uint32_t block = index / 4 * 32 + lane;
            row = NOWHERE;
            if (keys.first / BLOCK_KEYS <= block && block <= keys.last / BLOCK_KEYS) {
                const uint32_t entry = cache_block(p.block_tables[tile.table_start + block], p.n_blocks);
                row = (int)((entry * p.n_kv_heads + kv_head) * BLOCK_KEYS);
            }
        }
        int rows[SHARE];
#pragma unroll
        for (uint32_t i = 0; i < SHARE; ++i)
            rows[i] = (int)ptx::shfl((uint32_t)row, index % 4 * STEP_BLOCKS + warp * SHARE + i);

        ptx::barrier_wait(&(V ? barriers.v_empty : barriers.k_empty)[stage.index], stage.parity ^ 1);
        if (!ptx::elect_one()) continue;
        ptx::Barrier *full = &(V ? barriers.v_full : barriers.k_full)[stage.index];
        ptx::barrier_expect(full, S::TILE_BYTES / PRODUCERS);
#pragma unroll
        for (uint32_t i = 0; i < SHARE; ++i) {
            const uint32_t b = warp * SHARE + i, first = index * STEP + b * BLOCK_KEYS;
            uint8_t *to = (V ? S::v(stage.index) : S::k(stage.index)) + b * BLOCK_BYTES;
            if constexpr (V) {
                const bool whole = first >= keys.first && first + BLOCK_KEYS - 1 <= keys.last;
                if (!whole && rows[i] != NOWHERE) {
#pragma unroll 1
                    for (uint32_t key = 0; key < BLOCK_KEYS; ++key) {
                        const bool valid = keys.first <= first + key && first + key <= keys.last;
                        copy(to + key * ROW_BYTES, all.v_row, valid ? rows[i] + (int)key : NOWHERE, full);
                    }
                    continue;
                }
            }
            copy(to, V ? all.v : all.k, rows[i], full);
        }
    }
}

// ---- the consumers --------------------------------------------------------------------------------------

// s (64 rows, 128 keys) = q k^T.
template <int HD>
DEVICE void start_scores(float (&s)[STEP / 2], const uint32_t (&q)[HD / 16][4], const uint8_t *k) {
    const uint64_t desc = ptx::matrix_desc(k, 16, 8 * ROW_BYTES);
#pragma unroll
    for (int i = 0; i < HD / 16; ++i) {
        const uint32_t bytes = i / 4 * PIECE_BYTES + i % 4 * 32;
        ptx::wgmma_bf16<false>(s, q[i], desc + (bytes >> 4), i > 0);
    }
    ptx::wgmma_commit();
}

// acc (64 rows, HD) += p v.
template <int HD>
DEVICE void start_product(float (&acc)[HD / 2], const uint32_t (&p)[STEP_BLOCKS][4], const uint8_t *v) {
    const uint64_t desc = ptx::matrix_desc(v, PIECE_BYTES, 8 * ROW_BYTES);
    constexpr bool WHOLE = HD % 64 == 0 || !SPLIT_COLUMNS;
#pragma unroll
    for (uint32_t b = 0; b < STEP_BLOCKS; ++b) {
        const uint64_t block = desc + (b * BLOCK_BYTES >> 4);
        if constexpr (WHOLE) {
            ptx::wgmma_bf16<true>(acc, p[b], block, true);
        } else {
            constexpr int FIRST = 64 / 2, REST = HD / 2 - FIRST;
            ptx::wgmma_bf16<true>((float(&)[FIRST])acc, p[b], block, true);
            ptx::wgmma_bf16<true>((float(&)[REST])acc[FIRST], p[b], block + (PIECE_BYTES >> 4), true);
        }
    }
    ptx::wgmma_commit();
}

// Turns scores into p. The caller multiplies the products so far by `factor`. A lane has parts of two rows: keys 8j +
// 2t and 8j + 2t + 1 of each.
DEVICE void softmax(float (&s)[STEP / 2], float (&max)[2], float (&sum)[2], float (&factor)[2], float c) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float top = max[h];
#pragma unroll
        for (uint32_t j = 2 * h; j < STEP / 2; j += 4) top = fmaxf(top, fmaxf(s[j], s[j + 1]));
        top = fmaxf(top, ptx::shfl_xor(top, 1));
        top = fmaxf(top, ptx::shfl_xor(top, 2));
        factor[h] = ptx::ex2((max[h] - top) * c);
        max[h] = top;
        const float offset = -top * c;
        float part = 0.0f;
#pragma unroll
        for (uint32_t j = 2 * h; j < STEP / 2; j += 4) {
            s[j] = ptx::ex2(fmaf(s[j], c, offset));
            s[j + 1] = ptx::ex2(fmaf(s[j + 1], c, offset));
            part += s[j];
            part += s[j + 1];
        }
        sum[h] = fmaf(sum[h], factor[h], part);
    }
}

DEVICE void round_p(uint32_t (&p)[STEP_BLOCKS][4], const float (&s)[STEP / 2]) {
#pragma unroll
    for (uint32_t b = 0; b < STEP_BLOCKS; ++b) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[b][i] = ptx::pack_bf16(s[8 * b + 2 * i], s[8 * b + 2 * i + 1]);
    }
}

// A warpgroup with at least one row.
template <int HD> DEVICE void consume(const PrefillParams &p, const Tile &tile, uint32_t head) {
    typedef Shared<HD> S;
    const int lane = threadIdx.x % 32;
    const uint32_t group = threadIdx.x / 128;
    const bool both = tile.n > GROUP_ROWS;
    Barriers &barriers = S::barriers();

    // Rows of the warp, and of the lane: g and g + 8.
    const uint32_t warp_row = threadIdx.x / 32 * 16, lane_row = warp_row + lane / 4;
    const uint32_t first_pos = tile.pos + warp_row;
    const uint32_t every_row_from = seen_from(first_pos + 15, p.window).first;
    const Keys seen[2] = {seen_from(tile.pos + lane_row, p.window), seen_from(tile.pos + lane_row + 8, p.window)};

    uint32_t q[HD / 16][4];
    const uint16_t *row_g = p.qkv + (size_t)(tile.row + lane_row) * p.qkv_stride + head * HD;
    const uint16_t *row_g8 = row_g + 8 * (size_t)p.qkv_stride;
    load_query<HD>(q, lane_row < tile.n ? row_g : nullptr, lane_row + 8 < tile.n ? row_g8 : nullptr, lane);

    float s[STEP / 2], acc[HD / 2];
    uint32_t rounded[STEP_BLOCKS][4];
    float max[2] = {LOWEST, LOWEST}, sum[2] = {0.0f, 0.0f}, factor[2];
#pragma unroll
    for (int i = 0; i < HD / 2; ++i) acc[i] = 0.0f;

    // The soft cap and the mask, before the softmax.
    auto mask = [&](uint32_t index) {
        if (p.cap_c != 0.0f) {
#pragma unroll
            for (uint32_t j = 0; j < STEP / 2; ++j) s[j] = capped(s[j], p.cap_c);
        }
        const uint32_t first = index * STEP, last = first + STEP - 1;
        if (first >= every_row_from && last <= first_pos) return;
#pragma unroll
        for (uint32_t j = 0; j < STEP / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const uint32_t key = first + 8 * j + lane % 4 * 2 + e % 2;
                if (key < seen[e / 2].first || key > seen[e / 2].last) s[4 * j + e] = MASKED;
            }
        }
    };
    auto release = [&](ptx::Barrier *empty) {
        if (lane == 0) ptx::barrier_arrive(empty);
    };

    // `stage` is that of the scores; the product with V is one step later.
    Stage stage;
    ptx::barrier_wait(&barriers.k_full[0], 0);
    ptx::wgmma_fence();
    start_scores<HD>(s, q, S::k(0));
    ptx::wgmma_wait<0>();
    release(&barriers.k_empty[0]);
    mask(tile.first_step);
    softmax(s, max, sum, factor, p.c);
    ptx::barrier_wait(&barriers.v_full[0], 0);
    round_p(rounded, s);

    // Barrier 1 + group: it is the group's turn.
    if (both && group == 1 && tile.first_step < tile.last_step) ptx::arrive_named(1, CONSUMERS);
    for (uint32_t index = tile.first_step + 1; index <= tile.last_step; ++index) {
        const uint32_t before = stage.index;
        stage.next();
        ptx::barrier_wait(&barriers.k_full[stage.index], stage.parity);
        if (both) ptx::sync_named(1 + group, CONSUMERS);
        ptx::wgmma_fence();
        start_scores<HD>(s, q, S::k(stage.index));
        start_product<HD>(acc, rounded, S::v(before));
        if (both && (group == 0 || index < tile.last_step)) ptx::arrive_named(2 - group, CONSUMERS);
        ptx::wgmma_wait<1>();
        release(&barriers.k_empty[stage.index]);
        mask(index);
        softmax(s, max, sum, factor, p.c);
        // V of the next product. The wait is here for a reason: it contains a loop, and over a loop ptxas does not move
        // the wait for the previous product up, to before the softmax.
        ptx::barrier_wait(&barriers.v_full[stage.index], stage.parity);
        ptx::wgmma_wait<0>();
        release(&barriers.v_empty[before]);
#pragma unroll
        for (int i = 0; i < HD / 2; ++i) acc[i] *= factor[i / 2 % 2];
        round_p(rounded, s);
    }
    ptx::wgmma_fence();
    start_product<HD>(acc, rounded, S::v(stage.index));
    ptx::wgmma_wait<0>();

    uint16_t *out = p.out + (size_t)tile.row * p.out_stride;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        sum[h] += ptx::shfl_xor(sum[h], 1);
        sum[h] += ptx::shfl_xor(sum[h], 2);
        const uint32_t r = lane_row + 8 * h;
        if (r >= tile.n) continue;
        const float scale = 1.0f / sum[h];
        uint16_t *to = out + (size_t)r * p.out_stride + head * HD + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < HD / 8; ++j) {
            const float x = acc[4 * j + 2 * h] * scale, y = acc[4 * j + 2 * h + 1] * scale;
            *(uint32_t *)(to + 8 * j) = ptx::pack_bf16(x, y);
        }
    }
    if (head == p.n_heads - 1)
        zero_padding(out, p.out_stride, p.n_heads * HD, tile.n, both ? CONSUMERS : CONSUMERS / GROUPS);
}

template <int HD> DEVICE void prefill(const Sm90Params &all) {
    Tile tile;
    if (!find_tile<ROWS, STEP>(all.p, tile)) return;
    if (threadIdx.x == 0) {
        Barriers &barriers = Shared<HD>::barriers();
        const int warps = tile.n > GROUP_ROWS ? CONSUMERS / 32 : CONSUMERS / GROUPS / 32;
        for (uint32_t i = 0; i < STAGES; ++i) {
            ptx::barrier_init(&barriers.k_full[i], PRODUCERS);
            ptx::barrier_init(&barriers.v_full[i], PRODUCERS);
            ptx::barrier_init(&barriers.k_empty[i], warps);
            ptx::barrier_init(&barriers.v_empty[i], warps);
        }
        ptx::barrier_init_fence();
    }
    ptx::sync_block();
    // A block of 384 threads has 168 registers each, 64,512 in all: 128 * 24 + 256 * 240.
    if (threadIdx.x < CONSUMERS) {
        ptx::take_registers<240>();
        if (threadIdx.x / 128 * GROUP_ROWS < tile.n) consume<HD>(all.p, tile, blockIdx.x);
    } else {
        ptx::give_registers<24>();
        // Read from one lane, so that the compiler knows that it is the same in all lanes of the warp.
        const uint32_t warp = ptx::shfl((threadIdx.x - CONSUMERS) / 32, 0);
        if (warp < PRODUCERS) produce<HD, false>(all, tile, blockIdx.x, warp);
        else produce<HD, true>(all, tile, blockIdx.x, warp - PRODUCERS);
    }
}

KERNEL(attention_prefill_sm90_hd64, Sm90Params, 384, 1) { prefill<64>(p); }
KERNEL(attention_prefill_sm90_hd80, Sm90Params, 384, 1) { prefill<80>(p); }
KERNEL(attention_prefill_sm90_hd96, Sm90Params, 384, 1) { prefill<96>(p); }
KERNEL(attention_prefill_sm90_hd128, Sm90Params, 384, 1) { prefill<128>(p); }

#endif
