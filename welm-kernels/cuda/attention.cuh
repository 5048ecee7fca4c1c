// Shared by prefill and decode attention: 16 query rows of a warp attend to keys in shared memory.
//
//     out[r] = sum_j p[r][j] v[j] / sum_j p[r][j],    p[r][j] = 2^(c (q[r] . k[j] - max_r)),
//     c = scale * log2(e), over the keys j that row r sees.
//
// With a soft cap, tanh(scale / cap * q[r] . k[j]) takes the place of q[r] . k[j], and c = cap * log2(e).
//
// This is online softmax: maximum, sum and product with V are updated in steps over the keys. A step may raise the maximum;
// then the sums so far are multiplied by 2^(c (old - new)).
//
// The result of a row depends on that row only:
//
//   - Steps are aligned to key 0. So a row takes the same keys in the same steps, whatever other rows the tile has.
//   - A step in which a row sees no key does not change a bit of it: masked scores give p = 0, and the maximum, which
//     starts at the finite LOWEST, stays the same (the factor is 2^0 = 1). So a warp may skip such a step, or compute it
//     because another of its rows needs it.
//
// Cache slots without a key may hold NaN, and 0 * NaN is NaN. So copy_block writes zeros for keys outside its range. It
// reads neither their slots nor their entries in the block table.
#pragma once
#include <ptx.cuh>

namespace attention {

constexpr int BLOCK_KEYS = 16;       // keys of a cache block
constexpr float MASKED = -3.0e38f;   // the score of a key that a row does not see
constexpr float LOWEST = -1.0e30f;   // the maximum before the first score

// A range of keys, `first` and `last` included.
struct Keys {
    uint32_t first, last;
};

// The keys that a row at `pos` sees. A window of 0 means no limit.
DEVICE Keys seen_from(uint32_t pos, uint32_t window) {
    return {window != 0 && pos >= window ? pos - window + 1 : 0, pos};
}

// A score q . k with a soft cap; `cap_c` is 2 log2(e) scale / cap. tanh(x) = 1 - 2 / (1 + e^2x) has an absolute error
// of about 1e-7 here, which is less than the rounding of q and k to bf16.
DEVICE float capped(float score, float cap_c) {
    return fmaf(-2.0f, ptx::rcp(1.0f + ptx::ex2(score * cap_c)), 1.0f);
}

// ---- the cache ------------------------------------------------------------------------------------------

// Wrong values in the arrays never cause an access outside of the buffers: a row whose last key lies beyond the tables is
// skipped, and a block number outside the cache is taken as the last block.
DEVICE bool in_tables(uint32_t table_start, uint32_t last_key, uint32_t table_len) {
    return (uint64_t)table_start + last_key / BLOCK_KEYS < table_len;
}
DEVICE uint32_t cache_block(uint32_t entry, uint32_t n_blocks) { return min(entry, n_blocks - 1); }

// Shared memory holds keys as a cache block does, (keys, HD) bf16 without padding; only the 16-byte pieces of a row are
// swizzled. ldmatrix reads one piece of each of 8 rows at once. To be in different banks, the 8 pieces must be at
// different places modulo 8 pieces. Rows have 8, 10, 12 or 16 pieces; so rows that are 1, 4, 2 or 1 apart begin at the
// same place. Such rows differ in `row / REPEAT % GROUP`. The index of a piece is xored with this number, which swaps
// pieces within groups of GROUP.
//
// offset() is the place of a piece, in bytes from the start of the tile.
template <int HD> DEVICE int offset(int row, int piece) {
    constexpr int PIECES = HD / 8;
    constexpr int GROUP = PIECES % 8 == 0 ? 8 : PIECES % 4 == 0 ? 4 : 2;
    constexpr int REPEAT = 8 / GROUP;
    return row * (HD * 2) + ((piece ^ (row / REPEAT % GROUP)) << 4);
}

// One warp starts the copy of a cache block of one head, (16, HD) bf16, to 16 rows of a tile. `first` is its first key.
// Keys outside `valid` become zero.
template <int HD>
DEVICE void copy_block(uint8_t *tile, const uint16_t *block, uint32_t first, Keys valid, int lane) {
    constexpr int PIECES = HD / 8;
#pragma unroll
    for (int i = lane; i < BLOCK_KEYS * PIECES; i += 32) {
        const int row = i / PIECES;
        const uint32_t key = first + row;
        const bool inside = valid.first <= key && key <= valid.last;
        ptx::cp_async_16(tile + offset<HD>(row, i % PIECES), block + i * 8, inside);
    }
}

// ---- 16 rows of a warp ----------------------------------------------------------------------------------
// As in ptx.cuh, g = lane / 4 and t = lane % 4; a lane has parts of the rows g and g + 8, in this order.

// Query rows as the A operands of mma_bf16; zeros for a null pointer.
template <int HD>
DEVICE void load_query(uint32_t (&q)[HD / 16][4], const uint16_t *row_g, const uint16_t *row_g8, int lane) {
#pragma unroll
    for (int k = 0; k < HD / 16; ++k) {
        const int column = 16 * k + lane % 4 * 2;
        q[k][0] = row_g ? *(const uint32_t *)(row_g + column) : 0;
        q[k][1] = row_g8 ? *(const uint32_t *)(row_g8 + column) : 0;
        q[k][2] = row_g ? *(const uint32_t *)(row_g + column + 8) : 0;
        q[k][3] = row_g8 ? *(const uint32_t *)(row_g8 + column + 8) : 0;
    }
}

// The state of online softmax: the maximum, this lane's part of the sum (finish() adds the parts), and the product with V.
// acc[j] is columns 8j..8j+7, an accumulator of mma_bf16.
template <int HD> struct Rows {
    float max[2], sum[2];
    float acc[HD / 8][4];
};

template <int HD> DEVICE void start(Rows<HD> &rows) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        rows.max[h] = LOWEST;
        rows.sum[h] = 0.0f;
    }
#pragma unroll
    for (int j = 0; j < HD / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) rows.acc[j][e] = 0.0f;
    }
}

// One step: the 16 * BLOCKS keys from `first` on, stored at k and v as offset() says. `seen` are the keys that each of the
// two rows sees; it is used only if `masked`. `cap_c` is 0 without a soft cap.
template <int HD, int BLOCKS>
DEVICE void step(Rows<HD> &rows, const uint32_t (&q)[HD / 16][4], const uint8_t *k, const uint8_t *v,
                 uint32_t first, const Keys (&seen)[2], bool masked, float c, float cap_c, int lane) {
    // s (16 rows, 16 * BLOCKS keys) = q k^T; a lane has keys 8j + 2t, 8j + 2t + 1.
    float s[2 * BLOCKS][4];
#pragma unroll
    for (int j = 0; j < 2 * BLOCKS; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[j][e] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < HD / 16; ++i) {
#pragma unroll
        for (int b = 0; b < BLOCKS; ++b) {
            // Matrices of 8 keys by 8 columns: (keys 0.., columns 0..), (0.., 8..), (8.., 0..), (8.., 8..).
            uint32_t keys[4];
            ptx::ldmatrix_x4(keys, k + offset<HD>(16 * b + lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2));
            const uint32_t low[2] = {keys[0], keys[1]}, high[2] = {keys[2], keys[3]};
            ptx::mma_bf16(s[2 * b], q[i], low);
            ptx::mma_bf16(s[2 * b + 1], q[i], high);
        }
    }
    if (cap_c != 0.0f) {
#pragma unroll
        for (int j = 0; j < 2 * BLOCKS; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) s[j][e] = capped(s[j][e], cap_c);
        }
    }
    if (masked) {
#pragma unroll
        for (int j = 0; j < 2 * BLOCKS; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const uint32_t key = first + 8 * j + lane % 4 * 2 + e % 2;
                if (key < seen[e / 2].first || key > seen[e / 2].last) s[j][e] = MASKED;
            }
        }
    }

    // s becomes p.
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float max = rows.max[h];
#pragma unroll
        for (int j = 0; j < 2 * BLOCKS; ++j) max = fmaxf(max, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
        max = fmaxf(max, ptx::shfl_xor(max, 1));
        max = fmaxf(max, ptx::shfl_xor(max, 2));
        const float factor = ptx::ex2((rows.max[h] - max) * c);
        rows.max[h] = max;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 2 * BLOCKS; ++j) {
#pragma unroll
            for (int e = 2 * h; e < 2 * h + 2; ++e) {
                s[j][e] = ptx::ex2(fmaf(s[j][e], c, -max * c));
                sum += s[j][e];
            }
        }
        rows.sum[h] = fmaf(rows.sum[h], factor, sum);
#pragma unroll
        for (int j = 0; j < HD / 8; ++j) {
            rows.acc[j][2 * h] *= factor;
            rows.acc[j][2 * h + 1] *= factor;
        }
    }

    // acc (16 rows, HD) += p v: the accumulators of 16 keys are, rounded, the A operand of those keys.
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b) {
        const uint32_t p[4] = {
            ptx::pack_bf16(s[2 * b][0], s[2 * b][1]),
            ptx::pack_bf16(s[2 * b][2], s[2 * b][3]),
            ptx::pack_bf16(s[2 * b + 1][0], s[2 * b + 1][1]),
            ptx::pack_bf16(s[2 * b + 1][2], s[2 * b + 1][3]),
        };
#pragma unroll
        for (int j = 0; j < HD / 16; ++j) {
            // Transposed: (keys 0.., columns 0..), (8.., 0..), (0.., 8..), (8.., 8..).
            uint32_t values[4];
            ptx::ldmatrix_x4_trans(values, v + offset<HD>(16 * b + lane % 16, 2 * j + lane / 16));
            const uint32_t low[2] = {values[0], values[1]}, high[2] = {values[2], values[3]};
            ptx::mma_bf16(rows.acc[2 * j], p, low);
            ptx::mma_bf16(rows.acc[2 * j + 1], p, high);
        }
    }
}

// After the last step: every lane gets the whole sums of its rows.
template <int HD> DEVICE void finish(Rows<HD> &rows) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        rows.sum[h] += ptx::shfl_xor(rows.sum[h], 1);
        rows.sum[h] += ptx::shfl_xor(rows.sum[h], 2);
    }
}

// ---- tiles of prefill -----------------------------------------------------------------------------------

// `n_rows` rows of one sequence: `first_row` and the rows after it, at position `first_pos` and the positions after it.
struct Span {
    uint32_t first_row, n_rows, first_pos, table_start, reserved;
};

struct PrefillParams {
    const uint16_t *qkv, *k, *v;
    const uint32_t *block_tables;
    const Span *spans;
    const uint32_t *tiles;  // (n_tiles, 2): a span's index, and the tile's first row, counted from the span's first row
    uint16_t *out;
    uint32_t qkv_stride, out_stride, n_rows, table_len, n_blocks, n_spans;
    uint32_t n_heads, n_kv_heads, window;
    float c, cap_c;
    uint32_t reserved;
};

// A tile: rows row..row + n - 1 at positions from pos on, the keys that they see, and the steps that have these keys.
struct Tile {
    uint32_t row, n, pos, table_start;
    Keys keys;
    uint32_t first_step, last_step;
};

// Finds the tile of this block. False if it does not lie within the buffers, which wrong spans or tiles can cause.
template <uint32_t ROWS, uint32_t STEP> DEVICE bool find_tile(const PrefillParams &p, Tile &tile) {
    const uint32_t span_index = p.tiles[2 * blockIdx.y], row_in_span = p.tiles[2 * blockIdx.y + 1];
    if (span_index >= p.n_spans) return false;
    const Span span = p.spans[span_index];
    if (span.first_row >= p.n_rows) return false;
    const uint32_t span_rows = min(span.n_rows, p.n_rows - span.first_row);
    if (row_in_span >= span_rows) return false;
    tile.n = min(ROWS, span_rows - row_in_span);
    tile.row = span.first_row + row_in_span;
    tile.pos = span.first_pos + row_in_span;
    tile.table_start = span.table_start;
    tile.keys = {seen_from(tile.pos, p.window).first, tile.pos + tile.n - 1};
    tile.first_step = tile.keys.first / STEP;
    tile.last_step = tile.keys.last / STEP;
    return tile.keys.last >= tile.pos && in_tables(span.table_start, tile.keys.last, p.table_len);
}

// ---- parts of a row -------------------------------------------------------------------------------------

// 4 columns of a row and its sum, merged from parts. Each part has its own maximum and is added with the factor
// 2^(c (its maximum - maximum of all)).
struct Merged {
    float sum;
    float4 acc;
};

DEVICE void add_part(Merged &to, float factor, float sum, float4 acc) {
    to.sum = fmaf(factor, sum, to.sum);
    to.acc.x = fmaf(factor, acc.x, to.acc.x);
    to.acc.y = fmaf(factor, acc.y, to.acc.y);
    to.acc.z = fmaf(factor, acc.z, to.acc.z);
    to.acc.w = fmaf(factor, acc.w, to.acc.w);
}

// acc / sum to 4 columns. Adding 0 turns -0 into 0, as add_part does. So merging a single part, with the factor 1, changes
// no bit of the result.
DEVICE void store_divided(uint16_t *out, const Merged &from) {
    const float factor = 1.0f / from.sum;
    const float x = fmaf(from.acc.x, factor, 0.0f), y = fmaf(from.acc.y, factor, 0.0f);
    const float z = fmaf(from.acc.z, factor, 0.0f), w = fmaf(from.acc.w, factor, 0.0f);
    *(uint2 *)out = {ptx::pack_bf16(x, y), ptx::pack_bf16(z, w)};
}

// Writes zeros to the columns from `n_columns` to the end of `n_rows` rows. `threads` threads of the block do it.
DEVICE void zero_padding(uint16_t *out, uint32_t out_stride, uint32_t n_columns, uint32_t n_rows,
                         int threads) {
    const uint32_t padding = out_stride - n_columns;
    for (uint32_t i = threadIdx.x; i < n_rows * padding; i += threads)
        out[(size_t)(i / padding) * out_stride + n_columns + i % padding] = 0;
}

}  // namespace attention
