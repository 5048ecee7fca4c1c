// Norms of rows, int8 and rotated activations, and the embedding: what stands before a matrix product.
//
//     rmsnorm:   y = x / sqrt(mean(x^2) + eps) * w                              (arXiv 1910.07467)
//     layernorm: y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b        (arXiv 1607.06450)
//     int8:      scale = max |y| / 127 over a group of 32 columns,  q = round(y * (127 / max |y|))
//     rotated:   z = y H / 8 for each 64 columns, H the Walsh-Hadamard matrix   (arXiv 2404.00456)
//     both:      z as int8, with one scale for all of the row
//
// y is rounded to bf16 first in every case, z is not before it becomes int8.
//
// The variance is taken around the mean in a second pass: mean(x^2) - mean^2 loses every digit where the mean
// is large, and the row is in shared memory anyway.
//
// A thread takes columns c, c + 1, c + 8, c + 9 with c = 16 s + 2 t, t < 4: what a lane of a matrix
// instruction holds of 16 columns. The four lie side by side in every layout here:
//
//     q               (n, stride) int8, permuted: bytes 16 s + 4 t .. + 3 are columns c, c + 1, c + 8, c + 9
//     scale           (stride / 32, scale_stride) f32: rows side by side, as the products read them; rotated: (n)
//     tables          packed weights, see gemm.cuh
//
// "Position" is 16 s + 4 t, the place of the four in such a row; 8 neighbouring lanes have a group of 32, 16 have 64.
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

DEVICE Four load_bf16(const uint16_t *row, uint32_t first) {
    const uint32_t low = *(const uint32_t *)(row + first), high = *(const uint32_t *)(row + first + 8);
    return {{ptx::bf16_lo(low), ptx::bf16_hi(low), ptx::bf16_lo(high), ptx::bf16_hi(high)}};
}

DEVICE void store_bf16(uint16_t *row, uint32_t first, const Four &x) {
    *(uint32_t *)(row + first) = ptx::pack_bf16(x.v[0], x.v[1]);
    *(uint32_t *)(row + first + 8) = ptx::pack_bf16(x.v[2], x.v[3]);
}

DEVICE Four round_bf16(const Four &x) {
    const uint32_t low = ptx::pack_bf16(x.v[0], x.v[1]), high = ptx::pack_bf16(x.v[2], x.v[3]);
    return {{ptx::bf16_lo(low), ptx::bf16_hi(low), ptx::bf16_lo(high), ptx::bf16_hi(high)}};
}

// ---- int8 -----------------------------------------------------------------------------------------------

// The largest magnitude, as bits: so a NaN is larger than an infinity, and neither is lost.
DEVICE uint32_t largest_of(const Four &x) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = max(largest, ptx::bits(x.v[i]) & 0x7fffffffu);
    return largest;
}

// The four as bytes. Where 127 / largest overflows (zeros, and what is next to nothing) or is no number, they are 0;
// scale_of then tells what was there.
DEVICE uint32_t quantize(const Four &x, uint32_t largest) {
    const float factor = 127.0f / ptx::from_bits(largest);
    const bool usable = factor > 0.0f && factor <= 3.4028235e38f;
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int value = usable ? ptx::round_s8(x.v[i] * factor) : 0;
        word |= (uint32_t)(uint8_t)value << (8 * i);
    }
    return word;
}

DEVICE float scale_of(uint32_t largest) { return ptx::from_bits(largest) / 127.0f; }

// Quantises a group of 32 columns, which the eight lanes from a multiple of 8 on have. The whole warp calls this; only
// lanes `inside` store. `q` is that of the row; `scale` is that of the row in the first group.
DEVICE void quantize_group(const Four &x, bool inside, uint32_t position, int8_t *q, float *scale,
                           uint32_t scale_stride) {
    uint32_t largest = largest_of(x);
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) largest = max(largest, ptx::shfl_xor(largest, mask));
    if (!inside) return;
    *(uint32_t *)(q + position) = quantize(x, largest);
    if (position % 32 == 0) scale[(size_t)(position / 32) * scale_stride] = scale_of(largest);
}

// ---- rotation -------------------------------------------------------------------------------------------

DEVICE void butterfly(float &a, float &b) {
    const float sum = a + b;
    b = a - b;
    a = sum;
}

// Rotates 64 columns, which the 16 lanes from a multiple of 16 on have; the whole warp calls this. Column i of H is
// column j with the sign (-1)^(ones in i & j): a butterfly for each of the six bits of a column. Bits 0 and 3 are in
// the four, 1, 2, 4, 5 in the lane. The eighth comes first, where it rounds nothing.
DEVICE void rotate(Four &x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x.v[i] *= 0.125f;
    butterfly(x.v[0], x.v[1]);
    butterfly(x.v[2], x.v[3]);
    butterfly(x.v[0], x.v[2]);
    butterfly(x.v[1], x.v[3]);
#pragma unroll
    for (int mask = 1; mask < 16; mask *= 2) {
        const bool second = threadIdx.x & mask;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float other = ptx::shfl_xor(x.v[i], mask);
            x.v[i] = second ? other - x.v[i] : x.v[i] + other;
        }
    }
}

// ---- over a block ---------------------------------------------------------------------------------------

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

DEVICE uint32_t block_max(uint32_t x, uint32_t *partials) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) x = max(x, ptx::shfl_xor(x, mask));
    if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = x;
    ptx::sync_block();
    uint32_t largest = 0;
#pragma unroll
    for (uint32_t w = 0; w < WARPS; ++w) largest = max(largest, partials[w]);
    return largest;
}

// ---- rows of bf16 ---------------------------------------------------------------------------------------

struct ConvertParams {
    const uint16_t *x;  // (n, stride) bf16
    uint16_t *out;      // (n, stride) bf16; of these two one is null
    int8_t *q;          // (n, stride)
    float *scale;       // of q
    uint32_t stride, scale_stride;
};

// Block (row, 1,024 positions).
KERNEL(quantize_rows, ConvertParams, 256, 6) {
    const uint32_t position = (blockIdx.y * THREADS + threadIdx.x) * 4;
    const bool inside = position < p.stride;
    const size_t row = (size_t)blockIdx.x * p.stride;
    const Four x = inside ? load_bf16(p.x + row, first_column(position)) : Four{};
    quantize_group(x, inside, position, p.q + row, p.scale + blockIdx.x, p.scale_stride);
}

// Block (row, 1,024 positions).
KERNEL(rotate_rows, ConvertParams, 256, 6) {
    const uint32_t position = (blockIdx.y * THREADS + threadIdx.x) * 4, first = first_column(position);
    const bool inside = position < p.stride;
    const size_t row = (size_t)blockIdx.x * p.stride;
    Four x = inside ? load_bf16(p.x + row, first) : Four{};
    rotate(x);
    if (inside) store_bf16(p.out + row, first, x);
}

// Block: a row. It is rotated twice, for its largest value and again to be stored, so that it need not fit shared
// memory: the widest rows, a feed-forward layer's, would take all of it, and leave one block to a multiprocessor.
// Shared memory: (WARPS) u32.
KERNEL(rotate_rows_int8, ConvertParams, 256, 4) {
    const size_t row = (size_t)blockIdx.x * p.stride;
    auto rotated = [&](uint32_t position) {
        Four x = position < p.stride ? load_bf16(p.x + row, first_column(position)) : Four{};
        rotate(x);
        return x;
    };
    // Whole warps go round together.
    uint32_t largest = 0;
    for (uint32_t start = 0; start < p.stride; start += 4 * THREADS)
        largest = max(largest, largest_of(rotated(start + 4 * threadIdx.x)));
    largest = block_max(largest, (uint32_t *)ptx::shared());
    for (uint32_t start = 0; start < p.stride; start += 4 * THREADS) {
        const uint32_t position = start + 4 * threadIdx.x;
        const Four x = rotated(position);
        if (position < p.stride) *(uint32_t *)(p.q + row + position) = quantize(x, largest);
    }
    if (threadIdx.x == 0) p.scale[blockIdx.x] = scale_of(largest);
}

// ---- norms ----------------------------------------------------------------------------------------------

struct NormParams {
    const float *x;          // (n_rows, dim)
    const uint32_t *source;  // (m): which row of x; null: the same
    const float *weight;     // (dim)
    const float *bias;       // (dim) or null
    uint16_t *out;           // (m, stride) bf16; of these two one is null
    int8_t *q;               // (m, stride)
    float *scale;            // of q
    uint32_t n_rows, dim, stride, layernorm, scale_stride;
    float eps;
};

// What becomes of a row. Columns from dim on are zero, before they are rotated.
enum Finish { BF16, INT8, ROTATED, ROTATED_INT8 };

// Block: a row. Shared memory: (stride / 4) Four, each of one thread; (2, WARPS) f32.
template <Finish FINISH> DEVICE void norm_row(const NormParams &p) {
    Four *row = (Four *)ptx::shared();
    float *partials = (float *)(row + p.stride / 4);
    const uint32_t from = p.source ? min(p.source[blockIdx.x], p.n_rows - 1) : blockIdx.x;
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

    const size_t out = (size_t)blockIdx.x * p.stride;
    uint32_t largest = 0;
    // Whole warps go round together.
    for (uint32_t start = 0; start < p.stride; start += 4 * THREADS) {
        const uint32_t position = start + 4 * threadIdx.x, first = first_column(position);
        const bool inside = position < p.stride;
        Four y = {};
        if (inside) {
            y = row[position / 4];
            const Four weight = load_four(p.weight, first, p.dim);
            const Four bias = p.bias ? load_four(p.bias, first, p.dim) : Four{};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float value = y.v[i] * inverse * weight.v[i] + bias.v[i];
                y.v[i] = column(first, i) < p.dim ? value : 0.0f;  // a NaN does not spread to the padding
            }
        }
        if constexpr (FINISH != BF16) y = round_bf16(y);
        if constexpr (FINISH == ROTATED || FINISH == ROTATED_INT8) rotate(y);
        if constexpr (FINISH == INT8)
            quantize_group(y, inside, position, p.q + out, p.scale + blockIdx.x, p.scale_stride);
        if constexpr (FINISH == ROTATED_INT8) {
            largest = max(largest, largest_of(y));
            if (inside) row[position / 4] = y;
        }
        if constexpr (FINISH == BF16 || FINISH == ROTATED)
            if (inside) store_bf16(p.out + out, first, y);
    }
    if constexpr (FINISH == ROTATED_INT8) {
        largest = block_max(largest, (uint32_t *)partials);  // all have read the mean's
        for (uint32_t position = 4 * threadIdx.x; position < p.stride; position += 4 * THREADS)
            *(uint32_t *)(p.q + out + position) = quantize(row[position / 4], largest);
        if (threadIdx.x == 0) p.scale[blockIdx.x] = scale_of(largest);
    }
}

KERNEL(norm_bf16, NormParams, 256, 4) { norm_row<BF16>(p); }
KERNEL(norm_int8, NormParams, 256, 4) { norm_row<INT8>(p); }
KERNEL(norm_rotated, NormParams, 256, 4) { norm_row<ROTATED>(p); }
KERNEL(norm_rotated_int8, NormParams, 256, 4) { norm_row<ROTATED_INT8>(p); }

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
KERNEL(embed_int8, EmbedParams, 256, 6) {
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

KERNEL(embed_bf16, EmbedParams, 256, 6) {
    const uint32_t position = (blockIdx.y * THREADS + threadIdx.x) * 4;
    if (position >= p.n_groups * 32) return;
    const Place at = place_of(p.tokens[blockIdx.x], position, p);
    const size_t pair = ((at.tile * 2 + at.half) * 32 + at.lane) * 2 + at.row / 8;
    const uint2 w = ((const uint2 *)p.table)[pair];
    const Four x = {{ptx::bf16_lo(w.x), ptx::bf16_hi(w.x), ptx::bf16_lo(w.y), ptx::bf16_hi(w.y)}};
    store_four(p.x + (size_t)blockIdx.x * p.dim, first_column(position), p.dim, x);
}
