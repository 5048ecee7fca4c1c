// Causal attention over a paged cache of keys and values, with grouped heads, an optional window and an optional cap.
//
//     out[r, h] = softmax_j(scale * q[r, h] . k[j, h'])  v[:, h'],   h' = h / (n_heads / n_kv_heads),
//
// or with a soft cap softmax_j(cap * tanh(scale / cap * q[r, h] . k[j, h'])),
// over the keys j of the row's sequence with pos - window < j <= pos (window 0: 0 <= j <= pos). Key j of a
// sequence is slot j % 16 of the cache block block_tables[table_start + j / 16].
//
//     qkv             (n_rows, qkv_stride) bf16, q of head h at column h * head_dim, after the rotary embedding
//     k, v            (n_blocks, n_kv_heads, 16, head_dim) bf16, the rows' own keys already in it
//     block_tables    (table_len) u32, the tables of all sequences one after another
//     out             (n_rows, out_stride) bf16, head h at column h * head_dim; further columns become zero
//
// attention.cuh has the arithmetic of a step and says why a row's result depends on that row only. In prefill 64 rows of
// one head share the loaded keys. In decode the heads of a group share them, and the keys of a row are split over blocks.
#include "attention.cuh"

using namespace attention;

// Query heads of one key-value head that a block computes: as many as mma_bf16 has rows.
constexpr uint32_t HEADS = 16;
constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;

// ---- prefill --------------------------------------------------------------------------------------------

// Block (head, tile): 64 rows, 16 for each warp. A step is 64 keys, which are four cache blocks. While one step is
// computed the next one is copied; warp w copies its cache block w. Shared memory: 2 stages of K, V (64 keys, HD) bf16.
template <int HD> DEVICE void prefill(const PrefillParams &p) {
    constexpr uint32_t ROWS = 16 * WARPS, STEP = BLOCK_KEYS * WARPS;
    constexpr int BLOCK_BYTES = BLOCK_KEYS * HD * 2, TILE_BYTES = STEP * HD * 2;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t head = blockIdx.x, kv_head = head / (p.n_heads / p.n_kv_heads);

    Tile tile;
    if (!find_tile<ROWS, STEP>(p, tile)) return;
    const uint32_t row = tile.row, n = tile.n, pos = tile.pos;
    const Keys keys = tile.keys;
    const uint32_t first_step = tile.first_step, last_step = tile.last_step;

    // The warp has 16 of the tile's rows, at first_pos..last_pos; a lane has parts of rows g and g + 8 of these.
    const uint32_t warp_row = 16 * warp, lane_row = warp_row + lane / 4;
    const bool idle = warp_row >= n;
    const uint32_t first_pos = pos + warp_row, last_pos = pos + min(warp_row + 16, n) - 1;
    const uint32_t every_row_from = seen_from(last_pos, p.window).first;
    const Keys warp_keys = {seen_from(first_pos, p.window).first, last_pos};
    const Keys seen[2] = {seen_from(pos + lane_row, p.window), seen_from(pos + lane_row + 8, p.window)};

    uint32_t q[HD / 16][4];
    const uint16_t *row_g = p.qkv + (size_t)(row + lane_row) * p.qkv_stride + head * HD;
    const uint16_t *row_g8 = row_g + 8 * (size_t)p.qkv_stride;
    load_query<HD>(q, lane_row < n ? row_g : nullptr, lane_row + 8 < n ? row_g8 : nullptr, lane);
    Rows<HD> rows;
    start(rows);

    // Table entries of this warp's cache blocks: lane l has that of step index / 32 * 32 + l.
    uint32_t entries = 0;
    auto copy_step = [&](uint32_t index) {
        if (index == first_step || index % 32 == 0) {
            const uint32_t block = WARPS * (index / 32 * 32 + lane) + warp;
            const bool used = keys.first / BLOCK_KEYS <= block && block <= keys.last / BLOCK_KEYS;
            entries = used ? p.block_tables[tile.table_start + block] : 0;
        }
        const uint32_t block = cache_block(ptx::shfl(entries, index % 32), p.n_blocks);
        const size_t at = ((size_t)block * p.n_kv_heads + kv_head) * (BLOCK_KEYS * HD);
        const uint32_t first = index * STEP + warp * BLOCK_KEYS;
        uint8_t *k = ptx::shared() + index % 2 * (2 * TILE_BYTES) + warp * BLOCK_BYTES;
        copy_block<HD>(k, p.k + at, first, keys, lane);
        copy_block<HD>(k + TILE_BYTES, p.v + at, first, keys, lane);
        ptx::cp_async_commit();
    };

    copy_step(first_step);
    for (uint32_t index = first_step; index <= last_step; ++index) {
        ptx::cp_async_wait<0>();
        ptx::sync_block();  // this step has arrived, and all warps have read the one before
        if (index < last_step) copy_step(index + 1);
        const uint32_t first = index * STEP, last = first + STEP - 1;
        if (idle || first > warp_keys.last || last < warp_keys.first) continue;
        const bool masked = first < every_row_from || last > first_pos;
        const uint8_t *k = ptx::shared() + index % 2 * (2 * TILE_BYTES);
        step<HD, WARPS>(rows, q, k, k + TILE_BYTES, first, seen, masked, p.c, p.cap_c, lane);
    }
    finish(rows);

    uint16_t *out = p.out + (size_t)row * p.out_stride;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const uint32_t r = lane_row + 8 * h;
        if (r >= n) continue;
        const float factor = 1.0f / rows.sum[h];
        uint16_t *to = out + (size_t)r * p.out_stride + head * HD + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < HD / 8; ++j) {
            const float x = rows.acc[j][2 * h] * factor, y = rows.acc[j][2 * h + 1] * factor;
            *(uint32_t *)(to + 8 * j) = ptx::pack_bf16(x, y);
        }
    }
    if (head == p.n_heads - 1) zero_padding(out, p.out_stride, p.n_heads * HD, n, THREADS);
}

KERNEL(attention_prefill_hd64, PrefillParams, 128, 3) { prefill<64>(p); }
KERNEL(attention_prefill_hd80, PrefillParams, 128, 3) { prefill<80>(p); }
KERNEL(attention_prefill_hd96, PrefillParams, 128, 3) { prefill<96>(p); }
KERNEL(attention_prefill_hd128, PrefillParams, 128, 2) { prefill<128>(p); }

// ---- decode ---------------------------------------------------------------------------------------------

constexpr uint32_t SPLIT_KEYS = 512;

struct DecodeParams {
    const uint16_t *qkv, *k, *v;
    const uint32_t *block_tables;
    const uint32_t *positions;     // (n_rows)
    const uint32_t *table_starts;  // (n_rows)
    float *acc;                    // (n_rows, n_splits, n_heads, head_dim): product with V, not yet divided
    float *max;                    // (n_rows, n_splits, n_heads)
    float *sum;                    // (n_rows, n_splits, n_heads)
    uint16_t *out;
    uint32_t qkv_stride, out_stride, n_rows, table_len, n_blocks, n_splits;
    uint32_t n_heads, n_kv_heads, head_dim, window;
    float c, cap_c;
};

// A split is SPLIT_KEYS keys, aligned to key 0. The splits of a row are numbered from 0: the first has the first key
// that the row sees, the last has the last one.
DEVICE uint32_t splits_of(Keys seen) { return seen.last / SPLIT_KEYS - seen.first / SPLIT_KEYS + 1; }

// Block (row, kv head and up to 16 of its query heads, split). These query heads take the place of the 16 rows of a
// step. The split has 32 cache blocks; warp w takes w, w + 4, ..., through STAGES buffers of its own. The results of
// the four warps are merged in their order. If no row can have a second split, the block writes `out` itself; otherwise
// attention_combine does.
// Shared memory: per warp STAGES of K, V (16 keys, HD) bf16, after the last step acc (16 rows, HD + 8) f32, where the 8
// more columns avoid bank conflicts; then max and sum, (4 warps, 16 rows) f32 each.
template <int HD> DEVICE void decode(const DecodeParams &p) {
    constexpr int STAGES = 3, SLOTS = SPLIT_KEYS / BLOCK_KEYS / WARPS;
    constexpr int TILE_BYTES = BLOCK_KEYS * HD * 2, WARP_BYTES = STAGES * 2 * TILE_BYTES, PITCH = HD + 8;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t row = blockIdx.x, split = blockIdx.z;
    const uint32_t pos = p.positions[row], table_start = p.table_starts[row];
    const Keys keys = seen_from(pos, p.window);
    if (split >= splits_of(keys) || !in_tables(table_start, pos, p.table_len)) return;

    const uint32_t group = p.n_heads / p.n_kv_heads, passes = (group + HEADS - 1) / HEADS;
    const uint32_t kv_head = blockIdx.y / passes, pass = blockIdx.y % passes;
    const uint32_t head = kv_head * group + pass * HEADS, n_heads = min(HEADS, group - pass * HEADS);

    uint32_t q[HD / 16][4];
    const uint32_t g = lane / 4;
    const uint16_t *from = p.qkv + (size_t)row * p.qkv_stride + (head + g) * HD;
    load_query<HD>(q, g < n_heads ? from : nullptr, g + 8 < n_heads ? from + 8 * HD : nullptr, lane);
    Rows<HD> rows;
    start(rows);

    // Slot i of the warp is cache block 4 i + warp of the split. The slots with visible keys are consecutive.
    const uint32_t split_key = (keys.first / SPLIT_KEYS + split) * SPLIT_KEYS;
    const Keys seen[2] = {keys, keys};
    auto slot_key = [&](uint32_t slot) { return split_key + (slot * WARPS + warp) * BLOCK_KEYS; };
    auto visible = [&](uint32_t slot) {
        return slot < SLOTS && slot_key(slot) + BLOCK_KEYS > keys.first && slot_key(slot) <= keys.last;
    };
    uint32_t first_slot = 0;
    while (first_slot < SLOTS && !visible(first_slot)) ++first_slot;

    const uint32_t entries = visible(lane) ? p.block_tables[table_start + slot_key(lane) / BLOCK_KEYS] : 0;
    uint8_t *shared = ptx::shared() + warp * WARP_BYTES;
    auto copy_slot = [&](uint32_t slot) {
        const uint32_t block = cache_block(ptx::shfl(entries, slot % 32), p.n_blocks);
        if (visible(slot)) {
            const size_t at = ((size_t)block * p.n_kv_heads + kv_head) * (BLOCK_KEYS * HD);
            uint8_t *k = shared + slot % STAGES * (2 * TILE_BYTES);
            copy_block<HD>(k, p.k + at, slot_key(slot), keys, lane);
            copy_block<HD>(k + TILE_BYTES, p.v + at, slot_key(slot), keys, lane);
        }
        ptx::cp_async_commit();
    };

    for (uint32_t slot = first_slot; slot < first_slot + STAGES - 1; ++slot) copy_slot(slot);
    for (uint32_t slot = first_slot; visible(slot); ++slot) {
        ptx::cp_async_wait<STAGES - 2>();
        ptx::sync_warp();  // this slot has arrived, and all lanes have read the one before
        copy_slot(slot + STAGES - 1);
        const uint32_t first = slot_key(slot);
        const bool masked = first < keys.first || first + BLOCK_KEYS - 1 > keys.last;
        const uint8_t *k = shared + slot % STAGES * (2 * TILE_BYTES);
        step<HD, 1>(rows, q, k, k + TILE_BYTES, first, seen, masked, p.c, p.cap_c, lane);
    }
    finish(rows);

    // Merge the warps: acc = sum of 2^(c (max_w - max)) acc_w, likewise sum.
    float *maxima = (float *)(ptx::shared() + WARPS * WARP_BYTES), *sums = maxima + WARPS * 16;
    ptx::sync_warp();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int r = g + 8 * h;
        float *to = (float *)shared + r * PITCH + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < HD / 8; ++j) {
            to[8 * j] = rows.acc[j][2 * h];
            to[8 * j + 1] = rows.acc[j][2 * h + 1];
        }
        if (lane % 4 == 0) {
            maxima[warp * 16 + r] = rows.max[h];
            sums[warp * 16 + r] = rows.sum[h];
        }
    }
    ptx::sync_block();
    for (uint32_t i = threadIdx.x; i < n_heads * (HD / 4); i += THREADS) {
        const uint32_t r = i / (HD / 4), column = i % (HD / 4) * 4;
        float max = maxima[r];
#pragma unroll
        for (int w = 1; w < WARPS; ++w) max = fmaxf(max, maxima[w * 16 + r]);
        Merged all = {};
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float4 acc = *(const float4 *)(ptx::shared() + w * WARP_BYTES + (r * PITCH + column) * 4);
            add_part(all, ptx::ex2((maxima[w * 16 + r] - max) * p.c), sums[w * 16 + r], acc);
        }
        if (p.n_splits == 1) {
            store_divided(p.out + (size_t)row * p.out_stride + (head + r) * HD + column, all);
        } else {
            const size_t at = ((size_t)row * p.n_splits + split) * p.n_heads + head + r;
            *(float4 *)(p.acc + at * HD + column) = all.acc;
            if (column == 0) {
                p.max[at] = max;
                p.sum[at] = all.sum;
            }
        }
    }
    if (p.n_splits == 1 && blockIdx.y == 0)
        zero_padding(p.out + (size_t)row * p.out_stride, p.out_stride, p.n_heads * HD, 1, THREADS);
}

KERNEL(attention_decode_hd64, DecodeParams, 128, 4) { decode<64>(p); }
KERNEL(attention_decode_hd80, DecodeParams, 128, 3) { decode<80>(p); }
KERNEL(attention_decode_hd96, DecodeParams, 128, 3) { decode<96>(p); }
KERNEL(attention_decode_hd128, DecodeParams, 128, 2) { decode<128>(p); }

// Block (row, 512 columns of out), 4 columns a thread: merges the splits of the row in their order. If there is only one
// split, the result is bit for bit what decode would have written.
KERNEL(attention_combine, DecodeParams, 128, 4) {
    const uint32_t row = blockIdx.x, column = (blockIdx.y * THREADS + threadIdx.x) * 4;
    if (column >= p.out_stride) return;
    uint16_t *out = p.out + (size_t)row * p.out_stride + column;
    if (column >= p.n_heads * p.head_dim) {
        *(uint2 *)out = {0, 0};
        return;
    }
    const uint32_t head = column / p.head_dim;
    const uint32_t n = min(splits_of(seen_from(p.positions[row], p.window)), p.n_splits);
    const size_t first = (size_t)row * p.n_splits * p.n_heads + head;
    float max = p.max[first];
    for (uint32_t i = 1; i < n; ++i) max = fmaxf(max, p.max[first + (size_t)i * p.n_heads]);
    Merged all = {};
    for (uint32_t i = 0; i < n; ++i) {
        const size_t at = first + (size_t)i * p.n_heads;
        const float4 acc = *(const float4 *)(p.acc + at * p.head_dim + column % p.head_dim);
        add_part(all, ptx::ex2((p.max[at] - max) * p.c), p.sum[at], acc);
    }
    store_divided(out, all);
}
