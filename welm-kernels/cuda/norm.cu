// Norms of rows, int8 activations, and the embedding: what stands before a matrix product.
//
//     rmsnorm:   y = x / sqrt(mean(x^2) + eps) * w                              (arXiv 1910.07467)
//     layernorm: y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b        (arXiv 1607.06450)
//     int8:      scale = max |y| / 127 over a group of 32 columns,  q = round(y * (127 / max |y|))
//
// The variance is taken around the mean in a second pass: mean(x^2) - mean^2 loses every digit where the mean
// is large, and the row is in shared memory anyway.
//
// A thread takes columns c, c + 1, c + 8, c + 9 with c = 16 s + 2 t, t < 4: what a lane of a matrix
// instruction holds of 16 columns. The four lie side by side in every layout here:
//
//     q               (n, stride) int8, permuted: bytes 16 s + 4 t .. + 3 are columns c, c + 1, c + 8, c + 9
//     scale           (stride / 32, scale_stride) f32: rows side by side, as the products read them
//     tables          packed weights, see gemm.cuh
//
// "Position" is 16 s + 4 t, the place of the four in such a row; 8 neighbouring lanes have a group of 32.
#include <ptx.cuh>

constexpr uint32_t THREADS = 256, WARPS = THREADS / 32;

// ---- four columns ---------------------------------------------------------------------------------------

struct alignas(16) Four {
    float v[4];
};

DEVICE uint32_t first_column(uint32_t position) { return position - position % 16 / 2; }
DEVICE uint32_t column(uint32_t first, int i) { return first + i % 2 + i / 2 * 8; }

// Zeros from column dim on. Rows of an even dim are aligned to two columns.
DEVICE Four load_four(const float *row, uint32_t first, uint32_t dim) {
    Four x;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t c = column(first, i);
        if (dim % 2 == 0) {
            const float2 pair = c < dim ? *(const float2 *)(row + c) : float2{0.0f, 0.0f};
            x.v[i] = pair.x;
            x.v[i + 1] = pair.y;
        } else {
            x.v[i] = c < dim ? row[c] : 0.0f;
            x.v[i + 1] = c + 1 < dim ? row[c + 1] : 0.0f;
        }
    }
    return x;
}

DEVICE void store_four(float *row, uint32_t first, uint32_t dim, const Four &x) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t c = column(first, i);
        if (dim % 2 == 0) {
            if (c < dim) *(float2 *)(row + c) = float2{x.v[i], x.v[i + 1]};
        } else {
            if (c < dim) row[c] = x.v[i];
            if (c + 1 < dim) row[c + 1] = x.v[i + 1];
        }
    }
}

// ---- int8 activations -----------------------------------------------------------------------------------

// Quantises a group of 32 bf16 columns, which the eight lanes from a multiple of 8 on have; this one has
// `low` (c, c + 1) and `high` (c + 8, c + 9). The whole warp calls this; only lanes `inside` store. `q` is that of
// the row; `scale` is that of the row in the first group.
//
// A NaN or an infinity leaves its mark in the scale, so that it is not lost: as bits, a NaN is the largest
// magnitude. Where 127 / max overflows (zeros, and what is next to nothing) all q are 0.
DEVICE void quantize_group(uint32_t low, uint32_t high, bool inside, uint32_t position, int8_t *q, float *scale,
                           uint32_t scale_stride) {
    const float x[4] = {ptx::bf16_lo(low), ptx::bf16_hi(low), ptx::bf16_lo(high), ptx::bf16_hi(high)};
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = max(largest, ptx::bits(x[i]) & 0x7fffffffu);
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) largest = max(largest, ptx::shfl_xor(largest, mask));
    const float amax = ptx::from_bits(largest);
    const float factor = 127.0f / amax;
    const bool usable = factor > 0.0f && factor <= 3.4028235e38f;
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int value = usable ? ptx::round_s8(x[i] * factor) : 0;
        word |= (uint32_t)(uint8_t)value << (8 * i);
    }
    if (!inside) return;
    *(uint32_t *)(q + position) = word;
    if (position % 32 == 0) scale[(size_t)(position / 32) * scale_stride] = amax / 127.0f;
}

struct QuantizeParams {
    const uint16_t *x;  // (n, stride) bf16
    int8_t *q;          // (n, stride)
    float *scale;       // (stride / 32, scale_stride)
    uint32_t n, stride, scale_stride, reserved;
};

// Block (row, 1,024 positions).
KERNEL(quantize_rows, QuantizeParams, 256, 8) {
    const uint32_t position = (blockIdx.y * THREADS + threadIdx.x) * 4;
    const bool inside = position < p.stride;
    const size_t row = (size_t)blockIdx.x * p.stride;
    const uint16_t *x = p.x + row + first_column(position);
    const uint32_t low = inside ? *(const uint32_t *)x : 0, high = inside ? *(const uint32_t *)(x + 8) : 0;
    quantize_group(low, high, inside, position, p.q + row, p.scale + blockIdx.x, p.scale_stride);
}

// ---- norms ----------------------------------------------------------------------------------------------

struct NormParams {
    const float *x;        // (n_rows, dim)
    const uint32_t *rows;  // (m): which row of x; null: the same
    const float *weight;   // (dim)
    const float *bias;     // (dim) or null
    uint16_t *out;         // (m, stride) bf16; columns from dim on become zero
    int8_t *q;             // (m, stride), or null: out is not quantised
    float *scale;          // (stride / 32, scale_stride)
    uint32_t n_rows, dim, stride, layernorm, scale_stride;
    float eps;
};

// Every thread gets the sum over the block, in a fixed order. `partials`: (WARPS), not in use.
DEVICE float block_sum(float x, float *partials) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x += ptx::shfl_xor(x, mask);
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = x;
    ptx::sync_block();
    float sum = 0.0f;
#pragma unroll
    for (uint32_t w = 0; w < WARPS; ++w) sum += partials[w];
    return sum;
}

// Block: a row of out. Shared memory: (stride / 4) Four, each of one thread; (2, WARPS) f32.
KERNEL(norm_rows, NormParams, 256, 4) {
    Four *row = (Four *)ptx::shared();
    float *partials = (float *)(row + p.stride / 4);
    const uint32_t from = p.rows ? min(p.rows[blockIdx.x], p.n_rows - 1) : blockIdx.x;
    const float *x = p.x + (size_t)from * p.dim;

    float sum = 0.0f;
    for (uint32_t position = 4 * threadIdx.x; position < p.stride; position += 4 * THREADS) {
        const Four four = load_four(x, first_column(position), p.dim);
        row[position / 4] = four;
        sum += (four.v[0] + four.v[1]) + (four.v[2] + four.v[3]);
    }
    const float mean = p.layernorm ? block_sum(sum, partials) / (float)p.dim : 0.0f;

    float squares = 0.0f;
    for (uint32_t position = 4 * threadIdx.x; position < p.stride; position += 4 * THREADS) {
        Four four = row[position / 4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            four.v[i] = column(first_column(position), i) < p.dim ? four.v[i] - mean : 0.0f;
            squares = fmaf(four.v[i], four.v[i], squares);
        }
        row[position / 4] = four;
    }
    const float inverse = 1.0f / sqrtf(block_sum(squares, partials + WARPS) / (float)p.dim + p.eps);

    // Whole warps go round together, for quantize_group.
    for (uint32_t start = 0; start < p.stride; start += 4 * THREADS) {
        const uint32_t position = start + 4 * threadIdx.x, first = first_column(position);
        const bool inside = position < p.stride;
        uint32_t low = 0, high = 0;
        const size_t out = (size_t)blockIdx.x * p.stride;
        if (inside) {
            Four y = row[position / 4];
            const Four weight = load_four(p.weight, first, p.dim);
            const Four bias = p.bias ? load_four(p.bias, first, p.dim) : Four{};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float value = y.v[i] * inverse * weight.v[i] + bias.v[i];
                y.v[i] = column(first, i) < p.dim ? value : 0.0f;  // a NaN does not spread to the padding
            }
            low = ptx::pack_bf16(y.v[0], y.v[1]);
            high = ptx::pack_bf16(y.v[2], y.v[3]);
            *(uint32_t *)(p.out + out + first) = low;
            *(uint32_t *)(p.out + out + first + 8) = high;
        }
        if (p.q) quantize_group(low, high, inside, position, p.q + out, p.scale + blockIdx.x, p.scale_stride);
    }
}

// ---- embedding ------------------------------------------------------------------------------------------

struct EmbedParams {
    const uint32_t *tokens;  // (n)
    const void *table;       // packed, vocab rows
    const uint16_t *scale;   // (rows / 16, K / 32, 8, 2) f16; null with a bf16 table
    float *x;                // (n, dim)
    uint32_t vocab, dim, n_groups, reserved;  // n_groups = K / 32
};

// Where a token's four columns at a position of its row lie. A token outside the table is its last.
struct Place {
    size_t tile;    // of 16 rows and 32 columns
    uint32_t row;   // in it
    uint32_t half;  // 16 of the 32 columns
    uint32_t lane;
};

DEVICE Place place_of(uint32_t token, uint32_t position, const EmbedParams &p) {
    const uint32_t row = min(token, p.vocab - 1);
    const size_t tile = (size_t)(row / 16) * p.n_groups + position / 32;
    return {tile, row % 16, position % 32 / 16, row % 8 * 4 + position % 16 / 4};
}

// Block (row of x, 1,024 positions).
KERNEL(embed_int8, EmbedParams, 256, 8) {
    const uint32_t position = (blockIdx.y * THREADS + threadIdx.x) * 4;
    if (position >= p.n_groups * 32) return;
    const Place at = place_of(p.tokens[blockIdx.x], position, p);
    const size_t word = (at.tile * 32 + at.lane) * 4 + at.half * 2 + at.row / 8;
    const uint32_t q = ((const uint32_t *)p.table)[word];
    const float scale = ptx::f32_of_f16(p.scale[at.tile * 16 + at.row % 8 * 2 + at.row / 8]);
    Four x;
#pragma unroll
    for (int i = 0; i < 4; ++i) x.v[i] = (float)(int8_t)(q >> (8 * i)) * scale;
    store_four(p.x + (size_t)blockIdx.x * p.dim, first_column(position), p.dim, x);
}

KERNEL(embed_bf16, EmbedParams, 256, 8) {
    const uint32_t position = (blockIdx.y * THREADS + threadIdx.x) * 4;
    if (position >= p.n_groups * 32) return;
    const Place at = place_of(p.tokens[blockIdx.x], position, p);
    const size_t pair = ((at.tile * 2 + at.half) * 32 + at.lane) * 2 + at.row / 8;
    const uint2 w = ((const uint2 *)p.table)[pair];
    const Four x = {{ptx::bf16_lo(w.x), ptx::bf16_hi(w.x), ptx::bf16_lo(w.y), ptx::bf16_hi(w.y)}};
    store_four(p.x + (size_t)blockIdx.x * p.dim, first_column(position), p.dim, x);
}
