// Norms of rows, int8 and rotated activations, and the embedding: what runs before a matrix product.
//
//     rmsnorm:   y = x / sqrt(mean(x^2) + eps) * w                              (arXiv 1910.07467)
//     layernorm: y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b        (arXiv 1607.06450)
//     int8:      scale = max |y| / 127 over a group of 32 columns,  q = round(y * (127 / max |y|))
//     rotated:   z = y H / 8 for each 64 columns, H the Walsh-Hadamard matrix   (arXiv 2404.00456)
//     both:      z as int8, with one scale for all of the row
//     added:     s + y, where s is a row of f32
//
// y is first rounded to bf16, except where it is added. z is not rounded before it becomes int8.
//
// The variance is computed around the mean, in a second pass: mean(x^2) - mean^2 would lose all digits if the mean is
// large. The second pass is cheap, as the row is in registers or in shared memory.
//
// A thread has four columns, in one of two orders:
//
//     side by side    columns 4 i .. 4 i + 3 for thread i: one instruction loads or stores them
//     paired          c, c + 1, c + 8, c + 9 with c = 16 s + 2 t, t < 4: the part of 16 columns that a lane of a matrix
//                     instruction holds. Every sum here is added in this order
//
// Lanes whose numbers differ by 2 exchange a pair to get from one order to the other (`exchange`). Of four neighbouring
// lanes, the first then has t = 0, the others t = 2, 1, 3. In these layouts the four paired columns of a thread lie
// side by side:
//
//     q               (n, stride) int8, permuted: bytes 16 s + 4 t .. + 3 are columns c, c + 1, c + 8, c + 9
//     scale           (stride / 32, scale_stride) f32: rows side by side, as the products read them; rotated: (n)
//     tables          packed weights, see gemm.cuh
//
// "Position" is 16 s + 4 t, the place of the four columns in such a row. 8 neighbouring lanes have a group of 32 columns,
// 16 have 64.
#include <ptx.cuh>

constexpr uint32_t THREADS = 256, WARPS = THREADS / 32, BLOCK_COLUMNS = 4 * THREADS;

// ---- four columns ---------------------------------------------------------------------------------------

struct alignas(16) Four {
    float v[4];
};

// The first column of thread i in the order side by side, and its position in the paired order.
DEVICE uint32_t column_of(uint32_t i) { return 4 * i; }
DEVICE uint32_t position_of(uint32_t i) { return 16 * (i / 4) + 8 * (i % 2) + 4 * (i / 2 % 2); }

// From side by side to paired, and back. The whole warp calls this. Of two lanes, the lower one gives its second pair,
// the upper one its first pair.
template <typename T> DEVICE void exchange(T &first, T &second) {
    const bool upper = threadIdx.x & 2;
    const T other = ptx::shfl_xor(upper ? first : second, 2);
    (upper ? first : second) = other;
}

DEVICE Four paired(Four x) {
    exchange(x.v[0], x.v[2]);
    exchange(x.v[1], x.v[3]);
    return x;
}

// Side by side; zeros from column dim on. `aligned`: dim is a multiple of four.
DEVICE Four load_four(const float *row, uint32_t column, uint32_t dim, bool aligned) {
    if (aligned) return column < dim ? *(const Four *)(row + column) : Four{};
    Four x;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) x.v[i] = column + i < dim ? row[column + i] : 0.0f;
    return x;
}

DEVICE void store_four(float *row, uint32_t column, uint32_t dim, const Four &x) {
    if (dim % 4 == 0) {
        if (column < dim) *(Four *)(row + column) = x;
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i)
        if (column + i < dim) row[column + i] = x.v[i];
}

// Two pairs of bf16.
DEVICE uint2 pack(const Four &x) { return {ptx::pack_bf16(x.v[0], x.v[1]), ptx::pack_bf16(x.v[2], x.v[3])}; }
DEVICE Four unpack(uint2 x) {
    return {{ptx::bf16_lo(x.x), ptx::bf16_hi(x.x), ptx::bf16_lo(x.y), ptx::bf16_hi(x.y)}};
}

// Load or store four columns in the paired order. The whole warp calls these; `inside` says whether the columns of this
// lane are in the row.
DEVICE Four load_bf16(const uint16_t *row, uint32_t column, bool inside) {
    uint2 x = inside ? *(const uint2 *)(row + column) : uint2{0, 0};
    exchange(x.x, x.y);
    return unpack(x);
}

DEVICE void store_bf16(uint16_t *row, uint32_t column, bool inside, const Four &x) {
    uint2 packed = pack(x);
    exchange(packed.x, packed.y);
    if (inside) *(uint2 *)(row + column) = packed;
}

// ---- int8 -----------------------------------------------------------------------------------------------

// The largest magnitude, compared as bits. So a NaN is larger than an infinity, and neither is lost.
DEVICE uint32_t largest_of(const Four &x) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = max(largest, ptx::bits(x.v[i]) & 0x7fffffffu);
    return largest;
}

// The four values as bytes. If 127 / largest overflows (zeros and very small values) or is NaN, they are 0. A NaN or an
// infinity is then still visible in the scale (scale_of).
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

// Quantises a group of 32 columns, which eight neighbouring lanes have. The whole warp calls this; only lanes `inside`
// store. `q` is the row's; `scale` points to the row's scale of the first group.
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

// Rotates 64 paired columns, which 16 neighbouring lanes have. The whole warp calls this.
//
// H[i][j] = (-1)^(ones in i & j), so that the product is a butterfly for each of the six bits of a column. Bits 0 and 3
// are inside the four columns of a thread; bits 1, 2, 4, 5 are bits 1, 0, 2, 3 of the lane. The division by 8 comes first,
// where it rounds nothing.
DEVICE void rotate(Four &x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x.v[i] *= 0.125f;
    butterfly(x.v[0], x.v[1]);
    butterfly(x.v[2], x.v[3]);
    butterfly(x.v[0], x.v[2]);
    butterfly(x.v[1], x.v[3]);
    constexpr int MASKS[4] = {2, 1, 4, 8};
#pragma unroll
    for (int bit = 0; bit < 4; ++bit) {
        const int mask = MASKS[bit];
        const bool second = threadIdx.x & mask;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float other = ptx::shfl_xor(x.v[i], mask);
            x.v[i] = second ? other - x.v[i] : x.v[i] + other;
        }
    }
}

// ---- over a block ---------------------------------------------------------------------------------------

// Every thread gets the sum over the block, added in a fixed order. `partials`: (WARPS) f32 that nothing else uses.
DEVICE float block_sum(float x, float *partials) {
    constexpr int MASKS[5] = {16, 8, 4, 1, 2};  // in the order of positions, where lane 2 comes before lane 1
#pragma unroll
    for (int i = 0; i < 5; ++i) x += ptx::shfl_xor(x, MASKS[i]);
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
    uint16_t *out;      // (n, stride) bf16; either out or q is null
    int8_t *q;          // (n, stride)
    float *scale;       // of q
    uint32_t stride, scale_stride;
};

// Block (row, 1,024 positions).
KERNEL(quantize_rows, ConvertParams, 256, 6) {
    const uint32_t i = blockIdx.y * THREADS + threadIdx.x, column = column_of(i), position = position_of(i);
    const bool inside = column < p.stride;
    const size_t row = (size_t)blockIdx.x * p.stride;
    const Four x = load_bf16(p.x + row, column, inside);
    quantize_group(x, inside, position, p.q + row, p.scale + blockIdx.x, p.scale_stride);
}

// Block (row, 1,024 positions).
KERNEL(rotate_rows, ConvertParams, 256, 6) {
    const uint32_t column = column_of(blockIdx.y * THREADS + threadIdx.x);
    const bool inside = column < p.stride;
    const size_t row = (size_t)blockIdx.x * p.stride;
    Four x = load_bf16(p.x + row, column, inside);
    rotate(x);
    store_bf16(p.out + row, column, inside, x);
}

// Block: a row. The rotation is computed twice, first for the largest value, then for the values to store. So the row
// need not be kept in shared memory. The widest rows, those of a feed-forward layer, would fill it, and a
// multiprocessor would run only one block. Shared memory: (WARPS) u32.
KERNEL(rotate_rows_int8, ConvertParams, 256, 4) {
    const size_t row = (size_t)blockIdx.x * p.stride;
    auto rotated = [&](uint32_t column) {
        Four x = load_bf16(p.x + row, column, column < p.stride);
        rotate(x);
        return x;
    };
    // All lanes of a warp make the same number of rounds.
    uint32_t largest = 0;
    for (uint32_t start = 0; start < p.stride; start += BLOCK_COLUMNS)
        largest = max(largest, largest_of(rotated(start + column_of(threadIdx.x))));
    largest = block_max(largest, (uint32_t *)ptx::shared());
    for (uint32_t start = 0; start < p.stride; start += BLOCK_COLUMNS) {
        const Four x = rotated(start + column_of(threadIdx.x));
        const uint32_t position = start + position_of(threadIdx.x);
        if (position < p.stride) *(uint32_t *)(p.q + row + position) = quantize(x, largest);
    }
    if (threadIdx.x == 0) p.scale[blockIdx.x] = scale_of(largest);
}

// ---- norms ----------------------------------------------------------------------------------------------

struct NormParams {
    const float *x;          // (n_rows, dim)
    const uint32_t *source;  // (m): the row of x for each row of the result; null: the same row
    const float *weight;     // (dim)
    const float *bias;       // (dim) or null
    void *out;               // (m, stride) bf16, or (m, dim) f32 that y is added to; either out or q is null
    int8_t *q;               // (m, stride)
    float *scale;            // of q
    uint32_t n_rows, dim, stride, layernorm, scale_stride;
    float eps;
};

// The form of the result. Columns from dim on are zero before they are rotated.
enum Finish { BF16, INT8, ROTATED, ROTATED_INT8, ADD };

// Calls f(round, first column of the round) until the block has gone through the whole row. All lanes of a warp make
// the same number of rounds.
template <uint32_t ROUNDS, typename F> DEVICE void rounds(uint32_t stride, F f) {
    if constexpr (ROUNDS > 0) {
#pragma unroll
        for (uint32_t i = 0; i < ROUNDS; ++i) f(i, i * BLOCK_COLUMNS);
    } else {
        for (uint32_t i = 0; i * BLOCK_COLUMNS < stride; ++i) f(i, i * BLOCK_COLUMNS);
    }
}

// Block: a row.
//
//   ROUNDS > 0   for rows of at most ROUNDS * 1,024 columns, if dim is a multiple of four. The row stays in registers, and
//                all loads of x, weight and bias are issued before the first wait. In a decode step a norm has few
//                rows, and its time depends on how often a block waits for memory.
//   ROUNDS = 0   for any row that fits in shared memory.
//
// The order of summation is the same in both: 256 threads take the columns in turn.
// Shared memory: (2, WARPS) f32; with ROUNDS 0 also THREADS Fours for each round, one of each thread.
template <Finish FINISH, uint32_t ROUNDS> DEVICE void norm_row(const NormParams &p) {
    constexpr bool KEPT = ROUNDS > 0;
    float *partials = (float *)ptx::shared();
    Four own[KEPT ? ROUNDS : 1], weights[KEPT ? ROUNDS : 1], biases[KEPT ? ROUNDS : 1];
    auto row = [&](uint32_t round) -> Four & {
        if constexpr (KEPT) return own[round];
        else return ((Four *)(partials + 2 * WARPS))[round * THREADS + threadIdx.x];
    };
    const bool aligned = KEPT || p.dim % 4 == 0;
    const uint32_t from = p.source ? min(p.source[blockIdx.x], p.n_rows - 1) : blockIdx.x;
    const float *x = p.x + (size_t)from * p.dim;
    auto load = [&](const float *values, uint32_t start) {
        return load_four(values, start + column_of(threadIdx.x), values ? p.dim : 0, aligned);
    };
    auto in_dim = [&](uint32_t start, uint32_t i) {
        return start + column_of(threadIdx.x) + (KEPT ? 0 : i) < p.dim;  // all of four or none
    };

    rounds<ROUNDS>(p.stride, [&](uint32_t round, uint32_t start) { row(round) = load(x, start); });
    if constexpr (KEPT) {
        rounds<ROUNDS>(p.stride, [&](uint32_t round, uint32_t start) { weights[round] = load(p.weight, start); });
        rounds<ROUNDS>(p.stride, [&](uint32_t round, uint32_t start) { biases[round] = load(p.bias, start); });
    }

    float mean = 0.0f;
    if (p.layernorm) {
        float sum = 0.0f;
        rounds<ROUNDS>(p.stride, [&](uint32_t round, uint32_t) {
            const Four &four = row(round);
            float low = four.v[0] + four.v[1], high = four.v[2] + four.v[3];
            exchange(low, high);
            sum += low + high;
        });
        mean = block_sum(sum, partials) / (float)p.dim;
    }

    float squares = 0.0f;
    rounds<ROUNDS>(p.stride, [&](uint32_t round, uint32_t start) {
        Four &four = row(round);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) four.v[i] = in_dim(start, i) ? four.v[i] - mean : 0.0f;
        const Four terms = paired(four);
#pragma unroll
        for (int i = 0; i < 4; ++i) squares = fmaf(terms.v[i], terms.v[i], squares);
    });
    const float inverse = 1.0f / sqrtf(block_sum(squares, partials + WARPS) / (float)p.dim + p.eps);

    const size_t out = (size_t)blockIdx.x * p.stride;
    uint32_t largest = 0;
    rounds<ROUNDS>(p.stride, [&](uint32_t round, uint32_t start) {
        const uint32_t column = start + column_of(threadIdx.x), position = start + position_of(threadIdx.x);
        const bool inside = column < p.stride;
        if constexpr (!KEPT) weights[0] = load(p.weight, start), biases[0] = load(p.bias, start);
        const Four &weight = weights[KEPT ? round : 0], &bias = biases[KEPT ? round : 0];
        Four y = row(round);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const float value = y.v[i] * inverse * weight.v[i] + bias.v[i];
            y.v[i] = in_dim(start, i) ? value : 0.0f;  // a NaN does not spread to the padding
        }
        if constexpr (FINISH == ADD) {
            float *to = (float *)p.out + (size_t)blockIdx.x * p.dim;
            Four sum = load_four(to, column, p.dim, aligned);
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) sum.v[i] += y.v[i];
            store_four(to, column, p.dim, sum);
            return;
        }
        uint2 rounded = pack(y);
        if constexpr (FINISH == BF16) {
            if (inside) *(uint2 *)((uint16_t *)p.out + out + column) = rounded;
            return;
        }
        exchange(rounded.x, rounded.y);
        y = unpack(rounded);
        if constexpr (FINISH == INT8)
            quantize_group(y, inside, position, p.q + out, p.scale + blockIdx.x, p.scale_stride);
        if constexpr (FINISH == ROTATED || FINISH == ROTATED_INT8) rotate(y);
        if constexpr (FINISH == ROTATED) store_bf16((uint16_t *)p.out + out, column, inside, y);
        if constexpr (FINISH == ROTATED_INT8) {
            largest = max(largest, largest_of(y));
            row(round) = y;
        }
    });
    if constexpr (FINISH == ROTATED_INT8) {
        largest = block_max(largest, (uint32_t *)partials);  // all threads have read the partial sums of the mean
        rounds<ROUNDS>(p.stride, [&](uint32_t round, uint32_t start) {
            const uint32_t position = start + position_of(threadIdx.x);
            if (position < p.stride) *(uint32_t *)(p.q + out + position) = quantize(row(round), largest);
        });
        if (threadIdx.x == 0) p.scale[blockIdx.x] = scale_of(largest);
    }
}

// The number in a name is the widest row that the kernel takes.
KERNEL(norm_bf16_2048, NormParams, 256, 4) { norm_row<BF16, 2>(p); }
KERNEL(norm_bf16_5120, NormParams, 256, 3) { norm_row<BF16, 5>(p); }
KERNEL(norm_bf16_8192, NormParams, 256, 2) { norm_row<BF16, 8>(p); }
KERNEL(norm_bf16, NormParams, 256, 4) { norm_row<BF16, 0>(p); }
KERNEL(norm_int8_2048, NormParams, 256, 4) { norm_row<INT8, 2>(p); }
KERNEL(norm_int8_5120, NormParams, 256, 2) { norm_row<INT8, 5>(p); }
KERNEL(norm_int8_8192, NormParams, 256, 2) { norm_row<INT8, 8>(p); }
KERNEL(norm_int8, NormParams, 256, 4) { norm_row<INT8, 0>(p); }
KERNEL(norm_rotated_2048, NormParams, 256, 4) { norm_row<ROTATED, 2>(p); }
KERNEL(norm_rotated_5120, NormParams, 256, 3) { norm_row<ROTATED, 5>(p); }
KERNEL(norm_rotated_8192, NormParams, 256, 1) { norm_row<ROTATED, 8>(p); }
KERNEL(norm_rotated, NormParams, 256, 4) { norm_row<ROTATED, 0>(p); }
KERNEL(norm_rotated_int8_2048, NormParams, 256, 4) { norm_row<ROTATED_INT8, 2>(p); }
KERNEL(norm_rotated_int8_5120, NormParams, 256, 2) { norm_row<ROTATED_INT8, 5>(p); }
KERNEL(norm_rotated_int8_8192, NormParams, 256, 2) { norm_row<ROTATED_INT8, 8>(p); }
KERNEL(norm_rotated_int8, NormParams, 256, 4) { norm_row<ROTATED_INT8, 0>(p); }
KERNEL(norm_add_2048, NormParams, 256, 4) { norm_row<ADD, 2>(p); }
KERNEL(norm_add_5120, NormParams, 256, 2) { norm_row<ADD, 5>(p); }
KERNEL(norm_add_8192, NormParams, 256, 2) { norm_row<ADD, 8>(p); }
KERNEL(norm_add, NormParams, 256, 4) { norm_row<ADD, 0>(p); }

// ---- embedding ------------------------------------------------------------------------------------------

struct EmbedParams {
    const uint32_t *tokens;  // (n)
    const void *table;       // packed, vocab rows
    const uint16_t *scale;   // (rows / 16, K / 32, 8, 2) f16; null with a bf16 table
    float *x;                // (n, dim)
    uint32_t vocab, dim, n_groups;  // n_groups = K / 32
    float factor;                   // of every value
};

// Where the four columns of a token's row at a position are in the table. A token outside the table gets the last row.
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
    const uint32_t i = blockIdx.y * THREADS + threadIdx.x, position = position_of(i);
    if (position >= p.n_groups * 32) return;  // whole warps
    const Place at = place_of(p.tokens[blockIdx.x], position, p);
    const size_t word = (at.tile * 32 + at.lane) * 4 + at.half * 2 + at.row / 8;
    const uint32_t q = ((const uint32_t *)p.table)[word];
    const float scale = ptx::f32_of_f16(p.scale[at.tile * 16 + at.row % 8 * 2 + at.row / 8]);
    Four x;
#pragma unroll
    for (int j = 0; j < 4; ++j) x.v[j] = (float)(int8_t)(q >> (8 * j)) * scale * p.factor;
    store_four(p.x + (size_t)blockIdx.x * p.dim, column_of(i), p.dim, paired(x));
}

KERNEL(embed_bf16, EmbedParams, 256, 6) {
    const uint32_t i = blockIdx.y * THREADS + threadIdx.x, position = position_of(i);
    if (position >= p.n_groups * 32) return;  // whole warps
    const Place at = place_of(p.tokens[blockIdx.x], position, p);
    const size_t pair = ((at.tile * 2 + at.half) * 32 + at.lane) * 2 + at.row / 8;
    Four x = unpack(((const uint2 *)p.table)[pair]);
#pragma unroll
    for (int j = 0; j < 4; ++j) x.v[j] *= p.factor;
    store_four(p.x + (size_t)blockIdx.x * p.dim, column_of(i), p.dim, paired(x));
}
